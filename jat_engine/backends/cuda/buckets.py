"""Buckets: the few sizes of steps that CUDA graphs are captured for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from ..base import Group
from .inputs import StepShape
from .staging import num_values

_MIN_VALUES = 64
"""Least `StepShape.values` of an agent; with `_MIN_CAPACITY` it keeps small sizes in one bucket."""

_MIN_CAPACITY = 32
"""Least `StepShape.capacity`."""


def shape_of(groups: Sequence[Group]) -> StepShape:
    """Return the bucket of a step. Few distinct ones, since each is captured once."""
    if len(groups) == 1:
        group = groups[0]
        return _shape(group.num_agents, num_values(groups), group.space.size, group.observations.modality)
    return _shape(
        count_agents(groups),
        num_values(groups),
        max([group.space.size for group in groups]),
        *{group.observations.modality for group in groups},
    )


def count_agents(groups: Sequence[Group]) -> int:
    """Return how many agents a step has."""
    return sum([group.num_agents for group in groups])


@lru_cache(maxsize=1024)
def _shape(num_agents: int, num_values: int, capacity: int, *modalities: str) -> StepShape:
    sessions = bucket(num_agents)
    return StepShape(
        sessions=sessions,
        values=sessions * _next_power(-(-num_values // sessions), _MIN_VALUES),
        capacity=_next_power(capacity, _MIN_CAPACITY),
        frames="image" in modalities,
        integers=any(modality.startswith("discrete") for modality in modalities),
    )


def bucket(num_agents: int) -> int:
    """Round up to 1, 2, 4, 8, a multiple of 16 up to 256, or one of 64: at most a third of the rows is padding."""
    if num_agents <= 8:
        return _next_power(num_agents, 1)
    step = 16 if num_agents <= 256 else 64
    return -(-num_agents // step) * step


def bucket_below(num_agents: int) -> int:
    """Return the largest bucket that is smaller than the one of so many agents; 0 below the first."""
    size = bucket(num_agents)
    if size <= 8:
        return size // 2
    return max(8, size - (16 if size <= 256 else 64))


def _next_power(count: int, least: int) -> int:
    return max(least, 1 << (count - 1).bit_length())
