"""Run the static step by torch.compile on the CPU: float32 and bfloat16, for one agent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._inductor.config

from ... import JatConfig, JatProcessor
from .base import Unavailable
from .static_step import ENCODERS, Host, RunTrunk, StaticPeer, Trunk, encoder_example, load_model, trunk_example

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def open_peer(folder: Path, dtype: str, backend: str = "inductor") -> StaticPeer:
    """Open a checkpoint; graphs are compiled when agents are opened.

    Args:
        backend: of `torch.compile`.

    Raises:
        Unavailable: the dtype is not float32 or bfloat16.
    """
    if dtype not in DTYPES:
        raise Unavailable(f"torch.compile has no {dtype} of its own; pip install openvino nncf for int8 and int4")
    model = load_model(folder)
    host = Host(model, JatProcessor.from_pretrained(folder))
    return StaticPeer("torch.compile", dtype, host, Compiled(model.to(DTYPES[dtype]), backend))


class Compiled:
    """Compile the graphs with their weights frozen in, so that they are packed once; again for each window."""

    def __init__(self, model: Any, backend: str) -> None:
        self._dtype = model.continuous_decoder.weight.dtype
        self.cache_dtype = np.uint16 if self._dtype == torch.bfloat16 else np.float32
        modules = {"trunk": Trunk(model), **{kind: encoder(model) for kind, encoder in ENCODERS.items()}}
        self._config: JatConfig = model.config
        self._calls: dict[str, Any] = {}
        for name, module in modules.items():
            self._calls[name] = torch.compile(module.eval(), backend=backend, dynamic=False)

    def _warm(self, name: str, example: tuple[Any, ...]) -> Callable[..., Any]:
        """Return the graph `name`, compiled for inputs like these."""
        call = self._calls[name]
        # Not as an option of torch.compile: the tracer would not see it, and the weights would stay arguments.
        with torch.no_grad(), torch._inductor.config.patch(freezing=True):
            call(*example)
        warm: Callable[..., Any] = torch.no_grad()(call)
        return warm

    def open_trunk(self, caches: np.ndarray) -> RunTrunk:
        tensors = [torch.from_numpy(array).view(self._dtype) for array in caches]
        inputs = trunk_example(self._config, caches.shape[1], caches.shape[3], self._dtype)[:3]
        call = self._warm("trunk", (*inputs, *tensors))

        def run(*inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            hidden, new = call(*map(torch.from_numpy, inputs), *tensors)
            return hidden.numpy(), (new.view(torch.uint16) if new.dtype == torch.bfloat16 else new).numpy()

        return run

    def open_encoder(self, kind: str, num_agents: int) -> Callable[..., np.ndarray]:
        call = self._warm(kind, encoder_example(self._config, kind, num_agents))
        return lambda *arrays: call(*map(torch.from_numpy, arrays)).numpy()
