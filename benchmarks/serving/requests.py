"""Make the requests of the benchmark's clients: those of a continuous task, as openpi's client packs them."""

from __future__ import annotations

from typing import Any

from jat_engine.bench.workload import REWARD, SPACES, observation
from jat_engine.serving import codec
from jat_engine.serving.spaces import describe_space

from .targets import Target

SPACE = SPACES["continuous"]

CYCLE = 16
"""Number of different observations of a client."""

OBSERVATIONS = [observation("continuous", step) for step in range(CYCLE)]
"""Observations of a client, made before anything is timed."""


def fields_of(target: Target, client: int, step: int, window: int) -> dict[str, Any]:
    """Return the fields of a client's request for a step. The first begins an episode."""
    fields = OBSERVATIONS[step % CYCLE] | target.extra(client)
    if not step or target.repeats_settings:
        fields |= {"action_space": describe_space(SPACE), "context_window": window, "deterministic": True}
    return fields | ({"reward": REWARD} if step else {"episode_start": True})


def packed_requests(target: Target, client: int, window: int) -> tuple[bytes, list[bytes]]:
    """Return the request that begins an episode, and those that follow."""
    first, *others = (codec.pack(fields_of(target, client, step, window)) for step in range(CYCLE + 1))
    return first, others
