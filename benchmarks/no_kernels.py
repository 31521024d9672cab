"""Make engines of the CUDA backend whose kernels are left out, on a machine without a GPU.

What the host does stays: parsing, planning, writing a step's inputs, reading its results. Kernels are recorded where a
step launches them, and predictions are zeros.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from jat_engine.backends import Choice
from jat_engine.backends.cuda import backend, graph, startup_check
from jat_engine.backends.cuda.weights import CudaWeights
from jat_engine.backends.options import EngineOptions
from jat_engine.checkpoint.weights import checkpoint_shapes
from jat_engine.config import JatConfig
from jat_engine.engine.engine import JatEngine
from jat_engine.text.assets import TextAssets

from .triton_launches import Launch, recorded


class Zeros:
    """Parameters of the right shapes, as `jat_engine.checkpoint.weights.Weights`."""

    def __init__(self, config: JatConfig) -> None:
        self._shapes = checkpoint_shapes(config)

    def get(self, name: str) -> Tensor:
        return torch.zeros(self._shapes[name])

    def pieces(self, name: str, rows: int = 2048) -> Iterator[Tensor]:
        yield from torch.zeros(self._shapes[name]).split(rows)

    def rows(self, name: str, count: int) -> Tensor:
        return torch.zeros(count, *self._shapes[name][1:])


@contextlib.contextmanager
def without_kernels(num_multiprocessors: int | None = None) -> Iterator[list[Launch]]:
    """Record the kernels of CUDA backends within the block instead of running them.

    Args:
        num_multiprocessors: of the GPU that is stood in for; it decides how many programs share the keys of one agent.

    Yields:
        The launches, in order.
    """
    make_weights = CudaWeights.__init__

    def make(weights: CudaWeights, *arguments: Any, **options: Any) -> None:
        make_weights(weights, *arguments, **options)
        if num_multiprocessors is not None:
            weights.num_multiprocessors = num_multiprocessors

    def wait(step: Any) -> None:
        step.predictions[:] = 0
        step.choices[:] = 0
        step.finite[:] = 1

    with (
        recorded() as launches,
        mock.patch.object(CudaWeights, "__init__", make),
        mock.patch.object(graph.GraphStep, "wait", wait),
        mock.patch.object(
            startup_check.StartupCheck, "disagreement", return_value=""
        ),  # what computes nothing cannot be checked
        mock.patch.object(
            backend, "load_module", return_value=SimpleNamespace(DEVICE="cpu", MAX_VALUES=1024, Step=NoStep)
        ),
    ):
        yield launches


class NoStep:
    """Stands in for `_cuda.Step`: all but its C++ is there, which reads some hundred bytes and launches."""

    scratch_bytes = num_blocks = cluster_size = num_threads = shared_bytes = num_grid_barriers = 0

    def __init__(self, output: int, capacity: int, **_: Any) -> None:
        ctypes.memset(output, 0, capacity * 4)

    def run(self, stream: int) -> str:
        return ""


def make_engine(config: JatConfig, max_cached_tokens: int, persistent: bool = False, **more: Any) -> JatEngine:
    """Return an engine of the CUDA backend in bfloat16, with weights of zeros; to be called in `without_kernels`.

    Args:
        config: sizes of the model.
        max_cached_tokens: of all sessions together.
        persistent: take steps of one agent on the path of the persistent kernel.
        more: other options of the engine.
    """
    choice = Choice(torch.device("cpu"), "cuda", "bfloat16", "", is_asked=True)
    options = EngineOptions(persistent=persistent, max_cached_tokens=max_cached_tokens, **more)
    nothing: Any = None  # no observation has a text
    return JatEngine(config, Zeros(config), choice, options, TextAssets(nothing, nothing, {}))
