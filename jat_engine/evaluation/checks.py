"""Checks before the first episode: tasks can be built, and their sizes fit a checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..config import JatConfig
from ..envs import Task, get_domain
from ..errors import InputError
from ..observation import Limits, parse_action_space, parse_observation
from .environment import evaluation_env


def check_sizes(tasks: Iterable[Task], config: JatConfig, field: str = "--tasks") -> None:
    """Check that a checkpoint can act in tasks: observations and action spaces are within its configuration's sizes.

    Of a domain whose tasks all have the same sizes one environment is built, of the others every one.

    Args:
        tasks: the tasks; their simulators are installed.
        config: configuration of the checkpoint.
        field: the flag with the tasks, for the message.

    Raises:
        ValueError: tasks do not fit; the message names them.
    """
    limits, refused = Limits.of(config), {}
    chosen = {task.domain if get_domain(task.domain).has_equal_sizes else task.name: task for task in tasks}
    for key, task in chosen.items():
        with contextlib.closing(evaluation_env(task)) as env:
            try:
                parse_observation(limits, _largest(env.observation_space))
                parse_action_space(limits, env.action_space)
            except InputError as error:
                refused[key] = str(error)
    if refused:
        first, reason = next(iter(refused.items()))
        raise ValueError(
            f"{field}: the sizes of this checkpoint do not fit {', '.join(refused)} ({first}: {reason}); leave "
            f"{'it' if len(refused) == 1 else 'them'} out"
        )


def _largest(space: Any) -> dict[str, Any]:
    """Return an observation of a task's space; its integers are the largest."""
    observation: dict[str, Any] = space.sample()
    if "discrete_observation" in observation:
        integers = space["discrete_observation"]
        observation["discrete_observation"] = np.asarray(integers.start) + np.asarray(integers.nvec) - 1
    return observation
