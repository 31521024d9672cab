"""MuJoCo: the v4 observation layouts and rewards that the agent was trained on."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from .continuous import as_dict, prefer_headless_rendering
from .tasks import Task


def make(task: Task, *, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """One of the 11 tasks. v4 and v5 differ in layout (Ant 27, Humanoid 376, ...), so ids stay at v4."""
    prefer_headless_rendering(render_mode)
    import mujoco  # noqa: F401 (so that a missing simulator is told from other errors)

    if task.published_env_id == "Pusher-v4":
        return as_dict(PusherReward(gym.make("Pusher-v5", render_mode=render_mode)))
    level, gym.logger.min_level = gym.logger.min_level, gym.logger.ERROR  # it says that v4 is out of date
    try:
        return as_dict(gym.make(task.env_id, render_mode=render_mode))
    finally:
        gym.logger.min_level = level


class PusherReward(gym.Wrapper[np.ndarray, np.ndarray, np.ndarray, np.ndarray]):
    """Pusher-v5 with v4's reward: computed from the positions before the step.

    reward = -|object - goal| - 0.1 |action|^2 - 0.5 |object - fingertip|
    """

    def __init__(self, env: gym.Env[np.ndarray, np.ndarray]) -> None:
        super().__init__(env)
        self._before: np.ndarray | None = None

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        self._before, info = self.env.reset(**kwargs)
        return self._before, info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self._before is not None, "reset() comes before step()"
        fingertip, thing, goal = self._before[14:17], self._before[17:20], self._before[20:23]
        near = -float(np.linalg.norm(thing - fingertip))
        distance = -float(np.linalg.norm(thing - goal))
        control = -float(np.square(action).sum())
        self._before, _, terminated, truncated, info = self.env.step(action)
        info |= {"reward_dist": distance, "reward_ctrl": 0.1 * control, "reward_near": 0.5 * near}
        return self._before, distance + 0.1 * control + 0.5 * near, terminated, truncated, info
