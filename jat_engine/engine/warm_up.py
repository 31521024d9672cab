"""Example inputs for `JatEngine.warm_up`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import InputError

if TYPE_CHECKING:
    from ..envs import Task
    from .batch import AgentBatch

WINDOW = 2
"""Tokens: the smallest that a whole step fits into, so that it is full after two steps."""

STEPS = 6
"""An episode's first step, its second, those with a full window; greedy and sampled in turns."""


class Example(NamedTuple):
    """An observation, by the keywords of `get_next_action`, and what to choose from."""

    observation: dict[str, Any]
    action_space: Any


def find_example(observation: dict[str, Any], action_space: Any, task: str | Task | None) -> Example:
    """Return what was given or, for a task, the first observation of its environment.

    Raises:
        InputError: a task was given as well as an observation or an action space.
        UnknownTaskError, MissingSimulatorError: see `jat_engine.envs.make`.
    """
    given = [name for name, value in observation.items() if value is not None]
    given += ["action_space"] if action_space is not None else []
    if task is None:
        return Example(observation, action_space)
    if given:
        raise InputError(f"task: expected it alone, or an observation and an action_space, got it with {given[0]}")
    from ..envs import make

    with contextlib.closing(make(task if isinstance(task, str) else task.name)) as env:
        first, _ = env.reset(seed=0)
        return Example(first, env.action_space)


def play_batch(batch: AgentBatch, observation: Mapping[str, Any], action_space: Any) -> None:
    """Take `STEPS` steps of agents that all see the same, without counting them.

    Args:
        observation: of one agent, by `OBSERVATION_KEYS`; None counts as absent.
    """
    rows = {f"{key}s": [value] * batch.num_agents for key, value in observation.items() if value is not None}
    for number in range(STEPS):
        batch.step(rows, None, action_space, bool(number % 2), False, is_counted=False)
