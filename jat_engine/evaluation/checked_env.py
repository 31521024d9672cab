"""`CheckedEnv`, which names task, seed and step where an environment returns what a dataset cannot hold."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError, InputError, TaskError

if TYPE_CHECKING:
    import gymnasium

    from ..envs import Task

MAX_STEPS = 100_000
"""Steps after which an episode is taken to be one that never ends."""


class CheckedEnv:
    """Play one episode after another in a task's environment, and check what it returns.

    Args:
        task: the task of `env`.
        env: as `make` returns it.
    """

    def __init__(self, task: Task, env: gymnasium.Env[Any, Any]) -> None:
        self._task, self._env = task, env
        self._seed, self._step = 0, 0

    def reset(self, seed: int) -> dict[str, Any]:
        """Begin the episode of a seed, and return its first observation.

        Raises:
            DataError: the observation has a NaN or infinity, or is not one of its space; or the environment raised an
                error.
        """
        self._seed, self._step = seed, 0
        try:
            observation: dict[str, Any] = self._env.reset(seed=seed)[0]
        except (InputError, TaskError) as error:
            raise self._error(str(error)) from error
        self._check(observation)
        return observation

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, dict[str, Any]]:
        """Execute an action.

        Returns:
            The observation, the reward, True if the episode has ended, and `info`.

        Raises:
            DataError: observation or reward have a NaN or infinity, the observation is not one of its space, the
                episode does not end within `MAX_STEPS`, or the environment raised an error.
        """
        self._step += 1
        try:
            observation, reward, terminated, truncated, info = self._env.step(action)
        except (InputError, TaskError) as error:
            raise self._error(str(error)) from error

        if not math.isfinite(reward):
            raise self._error(f"reward: expected a finite number, got {reward}; mend the environment")
        ended = bool(terminated or truncated)
        if not ended:
            self._check(observation)
            if self._step >= MAX_STEPS:
                raise self._error(
                    f"expected an episode that ends, got {MAX_STEPS:,} steps; wrap the environment in "
                    "gymnasium.wrappers.TimeLimit"
                )
        return observation, float(reward), ended, info

    def _check(self, observation: dict[str, Any]) -> None:
        for name, values in observation.items():
            if isinstance(values, np.ndarray) and values.dtype.kind == "f" and not np.isfinite(values).all():
                index = int(np.argmin(np.isfinite(values.reshape(-1))))
                raise self._error(
                    f"{name} (element {index}): expected a finite number, got {values.reshape(-1)[index]}; mend the "
                    "environment"
                )

    def _error(self, reason: str) -> DataError:
        reason = reason.removeprefix(f"{self._task.name}: ")
        return DataError(f"{self._task.name}: episode with seed {self._seed}, step {self._step}: {reason}")
