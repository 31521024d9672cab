"""Run the static step by OpenVINO on the CPU: float32, bfloat16, and int8 or int4 weights by NNCF."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ... import JatProcessor
from ...machine import available_cores
from .base import Unavailable
from .static_step import (
    ENCODERS,
    GROUP_SIZE,
    ROWS,
    Host,
    RunTrunk,
    StaticPeer,
    Trunk,
    encoder_example,
    load_model,
    trunk_example,
)

INSTALL = {"float32": "openvino", "bfloat16": "openvino", "int8": "openvino nncf", "int4": "openvino nncf"}


def open_peer(folder: Path, dtype: str, group_size: int = GROUP_SIZE) -> StaticPeer:
    """Open a checkpoint.

    Args:
        folder: of the checkpoint.
        dtype: of the weights.
        group_size: columns of a row that share a scale in int4.

    Raises:
        Unavailable: a package is missing, or the dtype is none of openvino's here.
    """
    if dtype not in INSTALL:
        raise Unavailable(f"openvino: expected one of {', '.join(INSTALL)}, got {dtype}")
    try:
        import openvino  # noqa: F401

        if dtype in ("int8", "int4"):
            import nncf  # noqa: F401
    except ImportError as error:
        raise Unavailable(f"{error.name} is not installed; pip install {INSTALL[dtype]}") from None
    model = load_model(folder)
    host = Host(model, JatProcessor.from_pretrained(folder))
    return StaticPeer("openvino", dtype, host, OpenVino(model, dtype, group_size))


class OpenVino:
    """Compile a graph for each number of agents and slots: fixed shapes spare it their inference in every step."""

    def __init__(self, model: Any, dtype: str, group_size: int) -> None:
        import openvino

        self._core = openvino.Core()
        self._config, self._dtype, self._group_size = model.config, dtype, group_size
        # With 4-bit weights, the rest in bfloat16 is the fastest; with 8-bit ones it makes no difference.
        self._is_half = dtype in ("bfloat16", "int4")
        self._type = openvino.Type.bf16 if self._is_half else openvino.Type.f32
        self.cache_dtype = np.uint16 if self._is_half else np.float32
        self._graphs = {"trunk": self._graph(Trunk(model), trunk_example(model.config, 1, 8, torch.float32))}
        for kind, encoder in ENCODERS.items():
            self._graphs[kind] = self._graph(encoder(model), encoder_example(model.config, kind, 1))
        self._compiled: dict[tuple[Any, ...], Any] = {}

    def _graph(self, module: torch.nn.Module, example: tuple[Any, ...]) -> Any:
        import openvino

        graph = openvino.convert_model(module.eval(), example_input=example)
        if self._dtype in ("int8", "int4"):
            import nncf

            logging.getLogger("nncf").setLevel(logging.ERROR)  # its tables are not ours
            if self._dtype == "int8":
                return nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_SYM)
            # Symmetric: as fast as with zero points, and nearer to the weights. Every layer: by default the last has 8.
            mode = nncf.CompressWeightsMode.INT4_SYM
            graph = nncf.compress_weights(
                graph,
                mode=mode,
                group_size=self._group_size,
                all_layers=True,
                advanced_parameters=nncf.AdvancedCompressionParameters(
                    # Of encoders, whose columns do not divide into groups: smaller ones, else 8 bits.
                    group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST
                ),
            )
        return graph

    def _request(self, name: str, shapes: list[tuple[int, ...]]) -> Any:
        """Return a new request of the graph `name` for inputs of these shapes."""
        import openvino

        key = (name, *shapes)
        if key not in self._compiled:
            graph = self._graphs[name].clone()
            graph.reshape({port: list(shape) for port, shape in zip(graph.inputs, shapes, strict=True)})
            if name == "trunk" and self._is_half:  # the cache as bfloat16: half of it to read
                prepared = openvino.preprocess.PrePostProcessor(graph)
                for index in range(3, len(shapes)):
                    prepared.input(index).tensor().set_element_type(self._type)
                prepared.output(1).tensor().set_element_type(self._type)
                graph = prepared.build()
            options = {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": available_cores(),
                "INFERENCE_PRECISION_HINT": self._type,
            }
            self._compiled[key] = self._core.compile_model(graph, "CPU", options)
        return self._compiled[key].create_infer_request()

    def open_trunk(self, caches: np.ndarray) -> RunTrunk:
        from openvino import Tensor

        num_tensors, num_agents, num_heads, window, head_dim = caches.shape
        x = np.zeros((num_agents, ROWS, num_heads * head_dim), np.float32)
        masks = [np.zeros((ROWS, window + ROWS), np.float32) for _ in range(2)]
        request = self._request("trunk", [x.shape, *(mask.shape for mask in masks), *(c.shape for c in caches)])
        hidden = np.empty((num_agents, num_heads * head_dim), np.float32)
        new = np.empty((num_tensors, num_agents, num_heads, ROWS, head_dim), caches.dtype)
        for index, array in enumerate((x, *masks)):
            request.set_input_tensor(index, Tensor(array, shared_memory=True))
        for index, array in enumerate(caches, 3):
            request.set_input_tensor(index, Tensor(array, array.shape, self._type))
        request.set_output_tensor(0, Tensor(hidden, shared_memory=True))
        request.set_output_tensor(1, Tensor(new, new.shape, self._type))

        def run(*inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            for bound, given in zip((x, *masks), inputs, strict=True):
                np.copyto(bound, given)
            request.infer()
            return hidden, new

        return run

    def open_encoder(self, kind: str, num_agents: int) -> Callable[..., np.ndarray]:
        from openvino import Tensor

        arrays = [np.zeros(each.shape, each.numpy().dtype) for each in encoder_example(self._config, kind, num_agents)]
        request = self._request(kind, [array.shape for array in arrays])
        for index, array in enumerate(arrays):
            request.set_input_tensor(index, Tensor(array, shared_memory=True))
        encoded: np.ndarray = request.get_output_tensor(0).data

        def run(*inputs: np.ndarray) -> np.ndarray:
            for bound, given in zip(arrays, inputs, strict=True):
                np.copyto(bound, given)
            request.infer()
            return encoded

        return run
