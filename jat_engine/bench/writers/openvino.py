"""Write texts by OpenVINO on the CPU: a stateful decoder, as its own generation runs one.

Keys and values are variables of the model, which the plugin fuses with the attention; int8 and int4 weights are NNCF's.
OpenVINO GenAI itself is not used: greedy search is the loop of `StepWriter`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ...machine import available_cores
from ..peers.base import Unavailable
from ..peers.openvino import INSTALL
from ..peers.static_step import GROUP_SIZE, load_model
from .base import Choose, StepWriter

DTYPES = tuple(INSTALL)

_COMPUTED_IN = {"float32": "f32", "bfloat16": "bf16", "int8": "bf16", "int4": "bf16"}
"""dtype of the weights -> that of what is computed."""

_CACHE = {"float32": "f32", "bfloat16": "bf16"}
"""dtype of the weights -> that of the cache; with 8 and 4 bits OpenVINO's default, which has 8."""


def open_writer(folder: Path, dtype: str, group_size: int = GROUP_SIZE) -> OpenVinoWriter:
    """Make a checkpoint's graph, and compile it.

    Args:
        folder: of the checkpoint.
        dtype: of the weights.
        group_size: columns of a row that share a scale in int4.

    Raises:
        Unavailable: a package is missing, or the dtype is none of openvino's here.
    """
    if dtype not in DTYPES:
        raise Unavailable(f"openvino: expected one of {', '.join(DTYPES)}, got {dtype}")
    try:
        import openvino  # noqa: F401

        if dtype in ("int8", "int4"):
            import nncf  # noqa: F401
    except ImportError as error:
        raise Unavailable(f"{error.name} is not installed; pip install {INSTALL[dtype]}") from None
    return OpenVinoWriter(load_model(folder), dtype, group_size)


class OpenVinoWriter(StepWriter):
    """Run the compiled graph."""

    def __init__(self, model: Any, dtype: str, group_size: int) -> None:
        import openvino

        self.name, self.dtype = "openvino", dtype
        graph = _Graph(model.config).build(model)
        if dtype in ("int8", "int4"):
            graph = compress(graph, dtype, group_size)
        options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": available_cores(),
            "INFERENCE_PRECISION_HINT": _COMPUTED_IN[dtype],
        }
        if dtype in _CACHE:
            options["KV_CACHE_PRECISION"] = _CACHE[dtype]
        self._request: Any = openvino.Core().compile_model(graph, "CPU", options).create_infer_request()

    def run(self, prompts: np.ndarray, num_new: int, choose: Choose) -> None:
        from openvino import Tensor as Given

        request, num_texts = self._request, len(prompts)
        request.reset_state()
        request.set_tensor("beam_idx", Given(np.arange(num_texts, dtype=np.int32)))
        ids, cached = prompts, 0
        for _ in range(num_new):
            total = cached + ids.shape[1]
            request.set_tensor("input_ids", Given(np.ascontiguousarray(ids)))
            request.set_tensor("attention_mask", Given(np.ones((num_texts, total), np.int64)))
            request.set_tensor("position_ids", Given(np.tile(np.arange(cached, total), (num_texts, 1))))
            request.infer()
            ids, cached = choose(request.get_tensor("logits").data)[:, None], total

    def close(self) -> None:
        self._request = None


def compress(graph: Any, dtype: str, group_size: int) -> Any:
    """Return the graph with weights of 8 or 4 bits, every layer of it."""
    import logging

    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    if dtype == "int8":
        return nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_SYM)
    # A model whose columns do not divide into groups has smaller ones.
    adjust = nncf.AdvancedCompressionParameters(group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST)
    return nncf.compress_weights(
        graph,
        mode=nncf.CompressWeightsMode.INT4_SYM,
        group_size=group_size,
        all_layers=True,
        advanced_parameters=adjust,
    )


class _Graph:
    """Write the decoder in OpenVINO's operators."""

    def __init__(self, config: Any) -> None:
        from openvino import opset13

        self._config, self._ops = config, opset13
        self._assignments: list[Any] = []

    def build(self, model: Any) -> Any:
        """Return the graph.

        Inputs: input_ids [B, S], attention_mask [B, T] of ones and position_ids [B, S], int64; beam_idx, int32 [B], the
        text that each goes on from. Output: logits, float32 [B, V], after the last token.
        """
        import openvino

        ops, config, transformer = self._ops, self._config, model.transformer
        shapes = {"input_ids": [-1, -1], "attention_mask": [-1, -1], "position_ids": [-1, -1], "beam_idx": [-1]}
        given = {
            name: ops.parameter(shape, np.int32 if name == "beam_idx" else np.int64, name=name)
            for name, shape in shapes.items()
        }
        for name, node in given.items():
            node.output(0).get_tensor().set_names({name})
        self._beams = given["beam_idx"]
        masks = self._masks(given)

        tokens = ops.gather(self._weight(transformer.wte.weight), given["input_ids"], self._int(0))
        x = ops.add(tokens, ops.gather(self._weight(transformer.wpe.weight), given["position_ids"], self._int(0)))
        for layer, block in enumerate(transformer.h):
            mask = masks[config.attention_layers[layer]]
            x = ops.add(x, self._attend(layer, block.attn.attention, self._norm(x, block.ln_1), mask))
            inner = ops.gelu(self._linear(self._norm(x, block.ln_2), block.mlp.c_fc), "tanh")
            x = ops.add(x, self._linear(inner, block.mlp.c_proj))
        hidden = ops.gather(self._norm(x, transformer.ln_f), self._int(-1), self._int(1))
        logits = self._linear(hidden, model.single_discrete_decoder)
        logits.output(0).get_tensor().set_names({"logits"})
        return openvino.Model([logits.output(0)], self._assignments, list(given.values()), "decoder")

    def _masks(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return the masks of global and local layers, bool [B, 1, S, T].

        With one mask for all texts, OpenVINO 2026.4 computes something else in bfloat16.
        """
        ops = self._ops
        sizes = ops.shape_of(given["input_ids"])
        total = ops.gather(ops.shape_of(given["attention_mask"]), self._int(1), self._int(0))
        queries = ops.unsqueeze(ops.gather(given["position_ids"], self._int(0), self._int(0)), self._int(1))
        keys = ops.unsqueeze(ops.range(self._int(0), total, self._int(1), "i64"), self._int(0))
        ages = ops.subtract(queries, keys)
        self._num_texts = ops.gather(sizes, self._ints(0), self._int(0))
        num_new = ops.gather(sizes, self._ints(1), self._int(0))
        shape = ops.concat([self._num_texts, self._ints(1), num_new, ops.unsqueeze(total, self._int(0))], 0)
        is_earlier = ops.greater_equal(ages, self._int(0))
        is_near = ops.less(ages, self._int(self._config.window_size))
        return {
            "global": ops.broadcast(is_earlier, shape),
            "local": ops.broadcast(ops.logical_and(is_earlier, is_near), shape),
        }

    def _attend(self, layer: int, attention: Any, x: Any, mask: Any) -> Any:
        ops, config = self._ops, self._config
        head_dim = config.hidden_size // config.num_heads

        def heads(linear: Any) -> Any:
            split = ops.reshape(self._linear(x, linear), self._ints(0, 0, config.num_heads, head_dim), True)
            return ops.transpose(split, self._ints(0, 2, 1, 3))

        keys = self._cached(heads(attention.k_proj), f"past_key_values.{layer}.key")
        values = self._cached(heads(attention.v_proj), f"past_key_values.{layer}.value")
        scale = ops.constant(np.float32(1))  # GPT-Neo has no 1 / sqrt(head_dim)
        attended = ops.scaled_dot_product_attention(heads(attention.q_proj), keys, values, mask, scale)
        joined = ops.reshape(
            ops.transpose(attended, self._ints(0, 2, 1, 3)), self._ints(0, 0, config.hidden_size), True
        )
        return self._linear(joined, attention.out_proj)

    def _cached(self, new: Any, name: str) -> Any:
        """Append to a variable of the model, and return all of it."""
        import openvino
        from openvino.op.util import Variable, VariableInfo

        ops, config = self._ops, self._config
        head_dim = config.hidden_size // config.num_heads
        info = VariableInfo()
        info.data_shape = openvino.PartialShape([-1, config.num_heads, -1, head_dim])
        info.data_type = openvino.Type.f32
        info.variable_id = name
        variable = Variable(info)
        shape = ops.concat([self._num_texts, self._ints(config.num_heads, 0, head_dim)], 0)
        empty = ops.broadcast(ops.constant(np.float32(0)), shape)
        past = ops.gather(ops.read_value(empty, variable), self._beams, self._int(0))
        joined = ops.concat([past, new], 2)
        self._assignments.append(ops.assign(joined, variable))
        return joined

    def _norm(self, x: Any, norm: Any) -> Any:
        ops = self._ops
        normed = ops.mvn(x, self._ints(-1), True, self._config.layer_norm_epsilon, "INSIDE_SQRT")
        return ops.add(ops.multiply(normed, self._weight(norm.weight)), self._weight(norm.bias))

    def _linear(self, x: Any, linear: Any) -> Any:
        product = self._ops.matmul(x, self._weight(linear.weight), False, True)
        return product if linear.bias is None else self._ops.add(product, self._weight(linear.bias))

    def _weight(self, values: Tensor) -> Any:
        return self._ops.constant(np.ascontiguousarray(values.detach().float().numpy()))

    def _int(self, value: int) -> Any:
        return self._ops.constant(np.int64(value))

    def _ints(self, *values: int) -> Any:
        return self._ops.constant(np.array(values, np.int64))
