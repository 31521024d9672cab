"""List the launches of a step by graphs, as the engine makes them at the published size, without a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from jat_engine.bench.workload import batch_arguments
from jat_engine.config import JatConfig
from jat_engine.engine.engine import JatEngine

from ..no_kernels import make_engine, without_kernels
from ..triton_launches import Launch
from .kernels import NUM_MULTIPROCESSORS

WINDOW = 4
"""Tokens of the recorded batches: launches depend on the agents alone, and short windows fill soon."""


def record(engine: JatEngine, launches: list[Launch], agents: int, context: int) -> list[Launch]:
    """Return the launches of a step of so many agents with continuous observations and actions.

    Args:
        engine: made by `make_engine`.
        launches: where its launches are noted.
        agents: in the batch.
        context: cached tokens of each, written over what the short recorded episode had.
    """
    with engine.open_batch(agents, WINDOW, seed=0) as batch:
        for step in range(WINDOW):
            launches.clear()
            batch.get_next_actions(**batch_arguments(agents, step))
    for launch in launches:
        set_context(launch, context)
    return list(launches)


def set_context(launch: Launch, context: int) -> None:
    """Give every session of a launch of the attention so many cached tokens, of a window that sees them all."""
    lengths = launch.arguments.get("context_lens_ptr")
    if isinstance(lengths, Tensor):
        lengths.fill_(context)
        launch.arguments["window"] = 512


@contextlib.contextmanager
def step_launches(config: JatConfig | None = None, most: int = 1024) -> Iterator[tuple[JatEngine, list[Launch]]]:
    """Yield an engine without kernels, with room for batches of up to `most` agents, and the list of its launches."""
    with without_kernels(NUM_MULTIPROCESSORS) as launches:
        yield make_engine(config or JatConfig(), max_cached_tokens=most * (WINDOW + 2 * 16)), launches


def dtype_name(tensor: Tensor) -> str:
    """Return e.g. "bfloat16"."""
    return str(tensor.dtype).removeprefix("torch.")


def key(launch: Launch) -> tuple[object, ...]:
    """Return what makes two launches alike to the clock."""
    values: list[object] = []
    for name, value in launch.arguments.items():
        values.append((name, tuple(value.shape), value.dtype) if isinstance(value, Tensor) else (name, str(value)))
    return launch.name, launch.grid, tuple(sorted(launch.options.items())), tuple(values)


__all__ = ["dtype_name", "key", "record", "step_launches", "torch"]
