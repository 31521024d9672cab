"""Function that `gymnasium.make` calls for the ids of the tasks; `registration` names it to Gymnasium."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from .make import make
from .tasks import TASKS


def create(task_name: str, **options: Any) -> gym.Env[Any, Any]:
    """Build a task's environment for `gymnasium.make`, which limits its steps.

    In Atari "episode" is left out of `info`, so that gymnasium's `RecordEpisodeStatistics` can be put around it.

    Args:
        task_name: the task.
        **options: as for `jat_engine.envs.make`.

    Raises:
        See `jat_engine.envs.make`.
    """
    if TASKS[task_name].domain == "atari":
        options.setdefault("episode_statistics", False)
    else:
        options.setdefault("max_episode_steps", -1)  # the registered limit is put around it
    return make(task_name, **options)
