"""Kinds of observations, actions and success of a task."""

from __future__ import annotations

from typing import Literal, get_args

Observation = Literal["continuous", "discrete", "discrete+text", "image"]
Action = Literal["continuous", "discrete"]
Success = Literal["info", "positive_return"]

OBSERVATIONS: tuple[Observation, ...] = get_args(Observation)
"""All kinds of observation."""


def usual_window(observation: Observation) -> int:
    """Return the number of past tokens that agents see, two per step, in tasks of a kind of observation."""
    return 32 if observation == "image" else 256
