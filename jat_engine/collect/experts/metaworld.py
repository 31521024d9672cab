"""Play Meta-World with its scripted policies."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import gymnasium

    from ...envs import Task

_GOAL = slice(36, 39)


class ScriptedExpert:
    """Meta-World's scripted policy of the task, given the goal that the observation hides."""

    def __init__(self, env: gymnasium.Env[Any, Any], task: Task) -> None:
        from metaworld import policies

        words = task.env_id.removesuffix("-v3").split("-")
        self._policy: Any = getattr(policies, f"Sawyer{''.join(map(str.capitalize, words))}V3Policy")()
        self._simulator: Any = env.unwrapped._env  # type: ignore[attr-defined]

    def reset(self) -> None:
        """Do nothing: the policies have no state."""

    def act(self, observation: dict[str, Any]) -> np.ndarray:
        """Return the policy's action, float32 [4], clipped to [-1, 1]. See `Expert.act`."""
        seen = np.array(observation["continuous_observation"], np.float64)
        seen[_GOAL] = self._simulator._target_pos
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "Environments clip response to [-1, 1]": clipped below
            action = self._policy.get_action(seen)
        return np.asarray(np.clip(action, -1.0, 1.0), np.float32)

    def executed(self, action: Any) -> None:
        """Do nothing: the policies have no state."""
