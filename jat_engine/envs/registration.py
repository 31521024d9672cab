"""Ids of the tasks for `gymnasium.make`: "jat/atari-pong-v0" and so on."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import gymnasium as gym

from .metaworld import MAX_EPISODE_STEPS
from .task import Task
from .tasks import TASKS

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec


def env_id(task: Task) -> str:
    """Return the id of a task for `gymnasium.make`, such as "jat/atari-pong-v0"."""
    return f"jat/{task.name}-v0"


def register() -> None:
    """Register the ids of all tasks. Those that are registered stay."""
    for task in TASKS.values():
        if env_id(task) not in gym.registry:
            gym.register(
                env_id(task),
                entry_point="jat_engine.envs.entry_point:create",
                max_episode_steps=_step_limit(task),
                disable_env_checker=True,  # tests of this package run the checker
                kwargs={"task_name": task.name},
            )


def spec_of(task: Task, options: dict[str, Any]) -> EnvSpec:
    """Return the description of an environment that `make` has built, from which `gymnasium.make` builds an equal one.

    Args:
        task: the task.
        options: the arguments of `make`.
    """
    spec = copy.deepcopy(gym.spec(env_id(task)))
    options = dict(options)
    if task.domain == "atari":
        options.setdefault("episode_statistics", True)
    elif options.get("max_episode_steps") is not None:
        spec.max_episode_steps = options.pop("max_episode_steps")
    spec.kwargs |= options
    return spec


def _step_limit(task: Task) -> int | None:
    if task.domain == "metaworld":
        return MAX_EPISODE_STEPS
    return gym.spec(task.env_id).max_episode_steps if task.domain == "mujoco" else None
