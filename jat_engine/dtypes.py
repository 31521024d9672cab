"""Names of the types that an engine's weights can have."""

DTYPES = ("float32", "bfloat16", "float16", "int8", "int4")
"""All of them. "int8" and "int4" are the blocks' matrices and the encoders' large layers; the rest stays in float."""

CPU_DTYPES = ("float32", "bfloat16", "int8", "int4")
"""Those of the native CPU backend."""

QUANTIZED_DTYPES = ("int8", "int4")
"""Those whose weights are whole numbers with scales."""
