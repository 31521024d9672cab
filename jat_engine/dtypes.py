"""Names of the types that an engine's weights can have."""

DTYPES = ("float32", "bfloat16", "float16", "int8", "int4")
"""dtypes of an engine. "int8" and "int4" apply to blocks and to large layers of encoders; the rest is float."""

CPU_DTYPES = ("float32", "bfloat16", "int8", "int4")
"""dtypes of the native CPU backend."""

KV_DTYPES = {"cpu": ("auto", "bfloat16", "int8"), "cuda": ("auto", "float8_e4m3"), "torch": ("auto",)}
"""backend -> names of the types that its cached keys and values can have; "auto" follows the weights."""

QUANTIZED_DTYPES = ("int8", "int4")
"""dtypes whose weights are whole numbers with scales."""

NOTES = {
    "float32": "32 bits a weight of the blocks; within rounding of the published answers",
    "bfloat16": "16 bits a weight, half the bytes of a step",
    "float16": "16 bits a weight; GPUs and plain torch",
    "int8": "8 bits a weight; on a CPU activations, too",
    "int4": "4.5 bits a weight; native CPU backend; best with a checkpoint that `jat-engine quantize` has calibrated",
}
"""dtype -> its cost and where it runs, in a line. `docs/quantization.md` has bytes, errors and skill."""
