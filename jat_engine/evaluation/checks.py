"""Checks before the first episode: tasks can be built, and their sizes fit a checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from ..config import JatConfig
from ..envs import TASKS
from ..errors import InputError
from ..observation import Limits, parse_action_space, parse_observation
from .environment import evaluation_env


def check_sizes(names: Iterable[str], config: JatConfig, field: str = "--tasks") -> None:
    """Check that a checkpoint can act in tasks: observations and action spaces are within its configuration's sizes.

    Environments of MuJoCo are built one by one. In the other domains all tasks have observations of the same sizes,
    and one environment is built.

    Args:
        names: names of tasks, whose simulators are installed.
        config: configuration of the checkpoint.
        field: the flag with the tasks, for the message.

    Raises:
        ValueError: tasks do not fit; the message names them.
    """
    limits, refused = Limits.of(config), {}
    tasks = {TASKS[name].name if TASKS[name].domain == "mujoco" else TASKS[name].domain: TASKS[name] for name in names}
    for key, task in tasks.items():
        with contextlib.closing(evaluation_env(task)) as env:
            try:
                parse_observation(limits, env.observation_space.sample())
                parse_action_space(limits, env.action_space)
            except InputError as error:
                refused[key] = str(error)
    if refused:
        first, reason = next(iter(refused.items()))
        raise ValueError(
            f"{field}: the sizes of this checkpoint do not fit {', '.join(refused)} ({first}: {reason}); leave "
            f"{'it' if len(refused) == 1 else 'them'} out"
        )
