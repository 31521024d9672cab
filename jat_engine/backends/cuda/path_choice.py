"""Choose the path of a single agent's step, CUDA graphs or the persistent kernel, by timing both on this GPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

Clock = Callable[[], float]
"""Seconds, from any beginning."""

ROUNDS = 20
_WARM_UP = 3

_MARGIN = 0.03
"""By this share the persistent kernel must be faster: blocks of graphs wait for no others."""


class PathTimes(NamedTuple):
    """Medians of whole steps, Python included.

    Attributes:
        graphs_us, persistent_us: microseconds of a step.
        num_tokens: that the step attended to.
    """

    graphs_us: float
    persistent_us: float
    num_tokens: int

    @property
    def is_persistent_faster(self) -> bool:
        """Return whether the persistent kernel is to be used."""
        return self.persistent_us <= self.graphs_us * (1 - _MARGIN)

    def __str__(self) -> str:
        return (
            f"one agent's step with {self.num_tokens} tokens takes {self.graphs_us:.0f} us by CUDA graphs, "
            f"{self.persistent_us:.0f} us by the persistent kernel"
        )


def time_paths(
    graphs: Callable[[], object],
    persistent: Callable[[], object],
    num_tokens: int,
    clock: Clock = time.perf_counter,
    rounds: int = ROUNDS,
) -> PathTimes:
    """Time the two paths in turns, so that a change of the clock rate or a busy neighbour meets both.

    Args:
        graphs: runs a step to its end, by CUDA graphs.
        persistent: runs the same step by the persistent kernel.
        num_tokens: that the step attends to.
        clock: before and after each step.
        rounds: steps of each path whose median is taken; a few come before, untimed.

    Raises:
        What a path raises.
    """
    seconds: tuple[list[float], list[float]] = ([], [])
    paths = graphs, persistent
    for number in range(_WARM_UP + rounds):
        for index in (0, 1) if number % 2 else (1, 0):
            begin = clock()
            paths[index]()
            end = clock()
            if number >= _WARM_UP:
                seconds[index].append(end - begin)
    graphs_us, persistent_us = (statistics.median(own) * 1e6 for own in seconds)
    return PathTimes(graphs_us, persistent_us, num_tokens)
