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
"""Context window in tokens: the smallest that holds a whole step, so that it is full after two steps."""

STEPS = 6
"""Steps to take: an episode's first, its second and those with a full window, alternately sampled and greedy."""


class Example(NamedTuple):
    """Example input: an observation by `get_next_action`'s keywords, and an action space."""

    observation: dict[str, Any]
    action_space: Any


def find_example(observation: dict[str, Any], action_space: Any, task: str | Task | None) -> Example:
    """Return the given example or, for a task, the first observation of its environment.

    Args:
        observation: by `OBSERVATION_KEYS`; None counts as absent.
        action_space: to choose from.
        task: a published task or its name, instead of the other two.

    Raises:
        InputError: a task was given as well as an observation or an action space, or something else for a task.
        UnknownTaskError, MissingSimulatorError: see `jat_engine.envs.make`.
    """
    given = [name for name, value in observation.items() if value is not None]
    given += ["action_space"] if action_space is not None else []
    if task is None:
        return Example(observation, action_space)
    if given:
        raise InputError(f"task: expected it alone, or an observation and an action_space, got it with {given[0]}")
    from ..envs import Task, make

    if not isinstance(task, str | Task):
        raise InputError(f"task: expected a published task or its name, got {task!r:.80}")
    with contextlib.closing(make(task)) as env:
        first, _ = env.reset(seed=0)
        return Example(first, env.action_space)


def play_batch(batch: AgentBatch, observation: Mapping[str, Any], action_space: Any) -> None:
    """Take `STEPS` steps of a batch with one observation for all agents, without counting them in `stats`.

    Args:
        batch: to step.
        observation: of one agent, by `OBSERVATION_KEYS`; None counts as absent.
        action_space: of one agent.
    """
    rows = {f"{key}s": [value] * batch.num_agents for key, value in observation.items() if value is not None}
    for number in range(STEPS):
        batch.step(rows, None, action_space, bool(number % 2), False, is_counted=False)
