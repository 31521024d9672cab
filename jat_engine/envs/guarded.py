"""`GuardedEnv`, which reports in one line what an environment of another package raised or wrongly returned."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from ..errors import InputError, TaskError, Terminated, describe_error
from .adapters import own_kind


class GuardedEnv(gym.Wrapper[Any, Any, Any, Any]):
    """Wrapper of the environments that are not published: checks that they return what Gymnasium asks for.

    Args:
        env: the environment, as its maker returns it.
        task_name: the task, for messages.
    """

    def __init__(self, env: gym.Env[Any, Any], task_name: str) -> None:
        super().__init__(env)
        self._task_name = task_name
        self._own: Any = env.observation_space if own_kind(env.observation_space) else None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode.

        Raises:
            TaskError: the environment raised an error, or returned no observation with an info.
            InputError: its observations are keywords of `get_next_action`, and this one is not of its space.
        """
        try:
            result: Any = self.env.reset(seed=seed, options=options)
        except Terminated:
            raise
        except (Exception, SystemExit) as error:  # of the environment's own code
            raise self._error("reset", error) from error
        if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
            raise TaskError(
                f"{self._task_name}: reset(): expected the tuple (observation, info), got {result!r:.80}; mend the "
                "environment"
            )
        self._check(result[0])
        return result

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take a step.

        Raises:
            gymnasium.error.ResetNeeded: the episode has not begun.
            TaskError: the environment raised an error, or returned other than an observation, one number, two truth
                values and an info.
            InputError: see `reset`.
        """
        try:
            result: Any = self.env.step(action)
        except (gym.error.ResetNeeded, Terminated):
            raise
        except (Exception, SystemExit) as error:  # of the environment's own code
            raise self._error("step", error) from error
        if not (isinstance(result, tuple) and len(result) == 5 and isinstance(result[4], dict)):
            raise TaskError(
                f"{self._task_name}: step(): expected the tuple (observation, reward, terminated, truncated, info), "
                f"got {result!r:.80}; mend the environment"
            )
        observation, reward, terminated, truncated, info = result
        self._check(observation)
        return (
            observation,
            self._number("reward", reward),
            bool(self._number("terminated", terminated)),
            bool(self._number("truncated", truncated)),
            info,
        )

    def _number(self, name: str, value: Any) -> float:
        array = np.asarray(value)
        try:
            if array.size == 1 and (array.dtype.kind in "biuf" or isinstance(value, int)):
                return float(array.item())
        except OverflowError:
            pass
        raise TaskError(
            f"{self._task_name}: step(): {name}: expected one {'number' if name == 'reward' else 'truth value'}, got "
            f"{value!r:.80}; mend the environment"
        )

    def _check(self, observation: Any) -> None:
        """Check an observation that is passed on as it is."""
        if self._own is None:
            return
        if not isinstance(observation, dict) or observation.keys() != self._own.spaces.keys():
            raise InputError(f"observation: expected {', '.join(self._own.spaces)}, got {observation!r:.80}")
        for key, space in self._own.spaces.items():
            value = observation[key]
            if key == "text_observation":
                fits = isinstance(value, str)
            else:
                fits = isinstance(value, np.ndarray) and value.shape == space.shape
                fits = fits and np.can_cast(value.dtype, space.dtype, "same_kind")
            if not fits:
                got = f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else f"{value!r:.80}"
                raise InputError(f"{key}: expected one of {space}, got {got}; mend the environment")

    def _error(self, method: str, error: BaseException) -> TaskError:
        reason = describe_error(error)
        return TaskError(f"{self._task_name}: {method}() of the environment raised {reason:.300}")
