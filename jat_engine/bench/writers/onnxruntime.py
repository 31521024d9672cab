"""Write texts by ONNX Runtime on the CPU, with the operators that it has for decoders.

`GroupQueryAttention` takes a scale, a local window, and a cache that it appends to in place; an exported graph would
join the cache with the new keys in every step. int4, and int8 in groups, are `MatMulNBits`, as in the models of
onnxruntime-genai; int8 without groups is the dynamic quantization. That package itself is not used: greedy search
is the loop of `StepWriter`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...machine import available_cores
from ..peers.base import Unavailable
from ..peers.static_step import GROUP_SIZE, load_model
from .base import Choose, StepWriter

INSTALL = "pip install onnx onnxruntime"

DTYPES = ("float32", "int8", "int4")

_BITS = {"int8": 8, "int4": 4}

_INT8_PRODUCTS = 4
"""Accuracy level of `MatMulNBits` at which it rounds activations to int8: several times faster than in float32."""


def open_writer(folder: Path, dtype: str, group_size: int | None = None) -> OnnxWriter:
    """Make a checkpoint's graph, and open it.

    Args:
        folder: of the checkpoint.
        dtype: of the weights.
        group_size: columns of a row that share a scale; by default all of them in int8, and in int4 as in the engine.

    Raises:
        Unavailable: a package is missing, or the dtype is not float32, int8 or int4.
    """
    if dtype not in DTYPES:
        raise Unavailable(f"onnxruntime has no {dtype} kernels on a CPU; use float32, int8 or int4")
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise Unavailable(f"{error.name} is not installed; {INSTALL}") from None
    return OnnxWriter(load_model(folder), dtype, group_size)


class OnnxWriter(StepWriter):
    """Run the graph; the cache is bound as input and output at once."""

    def __init__(self, model: Any, dtype: str, group_size: int | None) -> None:
        import onnx
        import onnxruntime

        self.name, self.dtype = "onnxruntime", dtype
        self._config = model.config
        self._caches: dict[int, dict[str, np.ndarray]] = {}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = available_cores()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        graph = make_graph(model)
        if dtype == "int4" or group_size is not None:
            graph = quantize_groups(graph, _BITS[dtype], group_size or GROUP_SIZE)
        with tempfile.TemporaryDirectory(prefix="jat-engine-onnx-") as made:
            path = Path(made) / "decoder.onnx"
            onnx.save_model(graph, path, save_as_external_data=True, location="decoder.onnx.data")
            del graph
            if dtype == "int8" and group_size is None:
                path = quantize_rows(path)
            self._session: Any = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])

    def _open_caches(self, num_texts: int) -> dict[str, np.ndarray]:
        """Return keys and values of as many texts, which may be those of texts before; made once for each number."""
        config = self._config
        if num_texts not in self._caches:
            head_dim = config.hidden_size // config.num_heads
            shape = num_texts, config.num_heads, config.max_position_embeddings, head_dim
            names = _cache_names(config.num_layers)
            self._caches[num_texts] = {name: np.zeros(shape, np.float32) for name in names}
        return self._caches[num_texts]

    def run(self, prompts: np.ndarray, num_new: int, choose: Choose) -> None:
        config, num_texts = self._config, len(prompts)
        caches = self._open_caches(num_texts)
        logits = np.empty((num_texts, config.vocab_size), np.float32)

        ids, cached = prompts, 0
        for _ in range(num_new):
            total = cached + ids.shape[1]
            positions = np.tile(np.arange(cached, total), (num_texts, 1))
            mask = np.ones((num_texts, total), np.int64)
            inputs = {"input_ids": np.ascontiguousarray(ids), "attention_mask": mask, "position_ids": positions}
            binding = self._session.io_binding()
            for name, array in inputs.items():
                binding.bind_input(name, "cpu", 0, np.int64, array.shape, array.ctypes.data)
            for name, array in caches.items():
                binding.bind_input(f"past.{name}", "cpu", 0, np.float32, array.shape, array.ctypes.data)
                binding.bind_output(f"present.{name}", "cpu", 0, np.float32, array.shape, array.ctypes.data)
            binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
            self._session.run_with_iobinding(binding)
            ids, cached = choose(logits)[:, None], total

    def close(self) -> None:
        self._session = None
        self._caches.clear()


def _cache_names(num_layers: int) -> list[str]:
    return [f"{layer}.{what}" for layer in range(num_layers) for what in ("key", "value")]


# ---- the graph -------------------------------------------------------------------------------------------------------

_CONTRIBUTED = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""


class _Nodes:
    """Nodes and weights of a graph, in order."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def weight(self, name: str, values: Tensor | np.ndarray, *, transposed: bool = False) -> str:
        """Add a constant, and return its name."""
        from onnx import numpy_helper

        array = values.detach().float().numpy() if isinstance(values, Tensor) else values
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array.T) if transposed else array, name))
        return name

    def add(self, operator: str, inputs: list[str], *outputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node, and return its first output."""
        from onnx import helper

        node = helper.make_node(operator, inputs, list(outputs), name=outputs[0], domain=domain, **attributes)
        self.nodes.append(node)
        return outputs[0]


def make_graph(model: Any) -> Any:
    """Return the decoder as an ONNX model.

    Inputs: input_ids [B, S], attention_mask [B, T] of ones and position_ids [B, S], int64; past.{layer}.{key, value},
    float32 [B, heads, most, D]. Outputs: logits, float32 [B, V], after the last token; present.{layer}.{key, value}.
    """
    from onnx import TensorProto, helper

    config, transformer, graph = model.config, model.transformer, _Nodes()
    _add_lengths(graph)
    tokens = graph.add("Gather", [graph.weight("wte", transformer.wte.weight), "input_ids"], "tokens")
    positions = graph.add("Gather", [graph.weight("wpe", transformer.wpe.weight), "position_ids"], "positions")
    x = graph.add("Add", [tokens, positions], "x")
    norm, epsilon = transformer.h[0].ln_1, config.layer_norm_epsilon
    scale, shift = graph.weight("first.scale", norm.weight), graph.weight("first.shift", norm.bias)
    normed = graph.add("LayerNormalization", [x, scale, shift], "normed", axis=-1, epsilon=epsilon)
    for layer, block in enumerate(transformer.h):
        is_last = layer == config.num_layers - 1
        next_norm = transformer.ln_f if is_last else transformer.h[layer + 1].ln_1
        x, normed = _add_block(graph, config, layer, block, next_norm, x, normed)

    hidden = graph.add("Gather", [normed, graph.weight("last", np.array(-1))], "hidden", axis=1)
    head = graph.weight("head", model.single_discrete_decoder.weight, transposed=True)
    graph.add("MatMul", [hidden, head], "logits")

    def info(name: str, kind: Any, *shape: Any) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    names = _cache_names(config.num_layers)
    cache = config.num_heads, "most", config.hidden_size // config.num_heads
    inputs = [
        info("input_ids", TensorProto.INT64, "texts", "new"),
        info("attention_mask", TensorProto.INT64, "texts", "all"),
    ]
    inputs += [info("position_ids", TensorProto.INT64, "texts", "new")]
    inputs += [info(f"past.{name}", TensorProto.FLOAT, "texts", *cache) for name in names]
    outputs = [info("logits", TensorProto.FLOAT, "texts", config.vocab_size)]
    outputs += [info(f"present.{name}", TensorProto.FLOAT, "texts", *cache) for name in names]
    made = helper.make_graph(graph.nodes, "decoder", inputs, outputs, graph.weights)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(_CONTRIBUTED, 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10)


def _add_lengths(graph: _Nodes) -> None:
    """Add what the attention is told of lengths: `others`, tokens of each text without the newest, and `total`."""
    from onnx import TensorProto

    one, axis = graph.weight("one", np.array([1])), graph.weight("axis", np.array(1))
    lengths = graph.add("ReduceSum", ["attention_mask", one], "lengths", keepdims=0)
    others = graph.add("Sub", [lengths, one], "others.int64")
    graph.add("Cast", [others], "others", to=TensorProto.INT32)
    total = graph.add("Gather", [graph.add("Shape", ["attention_mask"], "mask.shape"), axis], "total.int64", axis=0)
    graph.add("Cast", [total], "total", to=TensorProto.INT32)


def _add_block(
    graph: _Nodes, config: Any, layer: int, block: Any, next_norm: Any, x: str, normed: str
) -> tuple[str, str]:
    """Add a block and the norm behind it. Returns the names of the block's sum and of the norm's output."""
    attention, mlp, at = block.attn.attention, block.mlp, f"{layer}."

    def product(name: str, given: str, weight: Tensor) -> str:
        return graph.add("MatMul", [given, graph.weight(f"{at}{name}.weight", weight, transposed=True)], at + name)

    def add_and_norm(name: str, given: str, to: str, bias: Tensor, norm: Any) -> tuple[str, str]:
        weights = [
            graph.weight(f"{at}{name}.{what}", each)
            for what, each in (("scale", norm.weight), ("shift", norm.bias), ("bias", bias))
        ]
        outputs = f"{at}{name}.normed", "", "", f"{at}{name}.sum"
        graph.add(
            "SkipLayerNormalization",
            [given, to, *weights],
            *outputs,
            domain=_CONTRIBUTED,
            epsilon=config.layer_norm_epsilon,
        )
        return outputs[3], outputs[0]

    joined = torch.cat([each.weight for each in (attention.q_proj, attention.k_proj, attention.v_proj)])
    names = [f"{when}.{layer}.{what}" for when in ("past", "present") for what in ("key", "value")]
    attended = graph.add(
        "GroupQueryAttention",
        [product("qkv", normed, joined), "", "", *names[:2], "others", "total"],
        f"{at}attended",
        *names[2:],
        domain=_CONTRIBUTED,
        num_heads=config.num_heads,
        kv_num_heads=config.num_heads,
        scale=1.0,  # GPT-Neo has no 1 / sqrt(head_dim)
        local_window_size=config.window_size if config.attention_layers[layer] == "local" else -1,
    )
    out = product("out", attended, attention.out_proj.weight)
    x, normed = add_and_norm("attention", out, x, attention.out_proj.bias, block.ln_2)
    inner = product("fc", normed, mlp.c_fc.weight)
    inner = graph.add(
        "FastGelu", [inner, graph.weight(f"{at}fc.bias", mlp.c_fc.bias)], f"{at}gelu", domain=_CONTRIBUTED
    )
    out = product("proj", inner, mlp.c_proj.weight)
    return add_and_norm("mlp", out, x, mlp.c_proj.bias, next_norm)


def quantize_rows(path: Path) -> Path:
    """Write the graph with products in int8, one scale for each row, and return its path; activations become uint8."""
    from onnx import TensorProto
    from onnxruntime.quantization import QuantType, quantize_dynamic

    target = path.with_name("int8.onnx")
    quantize_dynamic(
        path,
        target,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        use_external_data_format=True,
        extra_options={"DefaultTensorType": TensorProto.FLOAT},  # behind operators whose types onnx does not know
    )
    return target


def quantize_groups(graph: Any, bits: int, group_size: int) -> Any:
    """Return the graph with weights of 8 or 4 bits, symmetric, one scale for a group; activations become int8."""
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    options = DefaultWeightOnlyQuantConfig(
        block_size=group_size, is_symmetric=True, accuracy_level=_INT8_PRODUCTS, bits=bits
    )
    quantizer = MatMulNBitsQuantizer(graph, algo_config=options)
    quantizer.process()
    return quantizer.model.model
