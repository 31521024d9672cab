"""What every suite is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .bandwidth import Bandwidth
from .pacing import PACES
from .results import Results


@dataclass(frozen=True)
class Options:
    """Attributes:
    num_iters: rounds; in each every contender takes a turn of several calls.
    num_iters_warmup: untimed calls of each contender before the first round.
    batch_sizes: agents that step together, of the throughput suite.
    models: presets.
    dtypes: of the engine and its peers.
    observations: modalities.
    windows: tokens an agent looks back on.
    peers: names of `peers.NAMES`.
    upstream: a Python with the published package.
    device: "cpu" or "cuda".
    hz: calls a second, of the loop suite.
    paces: of `pacing.PACES`.
    neighbours: "none", "busy", or both.
    minutes: what the loop suite's calls may take together.
    """

    num_iters: int
    num_iters_warmup: int
    batch_sizes: tuple[int, ...]
    models: tuple[str, ...]
    dtypes: tuple[str, ...]
    observations: tuple[str, ...]
    windows: tuple[int, ...]
    peers: tuple[str, ...]
    upstream: str | None
    device: str
    hz: tuple[int, ...] = (20, 50, 100, 200)
    paces: tuple[str, ...] = PACES
    neighbours: tuple[str, ...] = ("none", "busy")
    minutes: float = 30.0


@dataclass(frozen=True)
class Context:
    """Attributes:
    note: says to a person what goes on.
    save: writes what has been measured so far.
    """

    options: Options
    results: Results
    bandwidth: Bandwidth
    note: Callable[[str], object]
    save: Callable[[], object]

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.options.device)
