"""Meta-World: v3 environments as the agent met their v2 versions.

Trained on were episodes of 100 steps, a new goal in every one, the goal left out of the observation (three zeros),
float32 observations and clipped actions.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from .continuous import as_dict, prefer_headless_rendering
from .tasks import Task

MAX_EPISODE_STEPS = 100


def make(task: Task, *, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """One of the 50 tasks."""
    prefer_headless_rendering(render_mode)
    return as_dict(gym.wrappers.TimeLimit(RandomGoal(task.env_id, render_mode), MAX_EPISODE_STEPS))


class RandomGoal(gym.Env[np.ndarray, np.ndarray]):
    """A Meta-World environment that draws its goal from `np_random` at every reset, so that seeds reach it.

    Observation: float32 [39]. Action: float32 [4], clipped to [-1, 1].
    """

    def __init__(self, env_id: str, render_mode: str | None) -> None:
        import mujoco
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS

        self._env: Any = ALL_V3_ENVIRONMENTS[env_id](render_mode=render_mode)
        self._env._set_task_called = True  # the goal is drawn here, no benchmark hands one out
        self._env.seeded_rand_vec = True
        # The convex collisions of the MuJoCo that the agent was trained with; today's default lets go of some objects.
        self._env.model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_NATIVECCD)
        self.render_mode = render_mode
        self.metadata = dict(self._env.metadata)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (39,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (4,), np.float32)

    @property
    def unwrapped(self) -> Any:
        return self

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        env = self._env
        env.np_random = self.np_random
        env._freeze_rand_vec = False
        env.reset_model()  # draws goals until one is far enough from the object
        env._freeze_rand_vec = True  # its reset sets the scene up twice more; to the same goal
        observation, info = env.reset()
        return observation.astype(np.float32), info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        action = np.clip(np.asarray(action, np.float32), -1.0, 1.0)
        observation, reward, terminated, _, info = self._env.step(action)
        return observation.astype(np.float32), float(reward), bool(terminated), False, info

    def render(self) -> Any:
        return self._env.render()

    def close(self) -> None:
        self._env.close()
