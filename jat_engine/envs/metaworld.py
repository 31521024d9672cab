"""Meta-World environments: v3, changed to behave like the v2 environments of the published agent.

The agent was trained on episodes of 100 steps with a new goal in each, three zeros in place of the goal in the
observation, float32 observations and clipped actions: github.com/qgallouedec/Metaworld, branch gym2.6_register.
`metaworld_v2` reverts the changes that v3 and MuJoCo made since.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from .own_context import OwnContext
from .rendering import check_camera, check_view, import_mujoco
from .task import Task
from .wrappers import VectorAsDict

MAX_EPISODE_STEPS = 100
CAMERA = "corner2"  # as in the published frames; its images are upside down


def make(
    task: Task,
    *,
    render_mode: str | None = None,
    width: int = 640,
    height: int = 480,
    camera_name: str | None = None,
    camera_id: int | None = None,
    max_episode_steps: int | None = None,
) -> gym.Env[Any, Any]:
    """Build one of the 50 tasks.

    Args:
        task: a Meta-World task.
        render_mode: "human", "rgb_array" or None.
        width: width of rendered frames, in pixels.
        height: height of rendered frames, in pixels.
        camera_name: camera of the model that frames are taken with; None for the published one, "corner2".
        camera_id: its number instead; -1 is the free camera.
        max_episode_steps: end an episode after this number of steps; None for 100, as published, -1 for Meta-World's
            own limit of 500.

    Raises:
        ValueError: the model has no such camera, or a size is less than 1.
    """
    check_view(width, height, camera_name, camera_id)
    import_mujoco()
    if render_mode == "rgb_array" and camera_name is None and camera_id is None:
        camera_name = CAMERA  # in a window the user moves the camera
    simulator = RandomGoal(
        task.env_id,
        render_mode=render_mode,
        width=width,
        height=height,
        camera_name=camera_name,
        camera_id=camera_id,
    )
    check_camera(simulator.mujoco_renderer.model, camera_name, camera_id)
    env: gym.Env[Any, Any] = gym.wrappers.OrderEnforcing(simulator)
    if max_episode_steps != -1:
        env = gym.wrappers.TimeLimit(env, max_episode_steps or MAX_EPISODE_STEPS)
    return VectorAsDict(OwnContext(env))


class RandomGoal(gym.Env[np.ndarray, np.ndarray]):
    """Meta-World environment that draws its goal from `np_random` at every reset, so that a seed determines it.

    Observation: float32 [39]: hand, gripper and objects [18], the same one step ago [18], and three zeros in place of
    the goal, which the published environments hide (the simulator's default). Action: float32 [4], clipped to [-1, 1].
    """

    def __init__(self, env_id: str, **rendering: Any) -> None:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS

        from .metaworld_v2 import restore_v2

        simulator: Any = ALL_V3_ENVIRONMENTS[env_id]
        self._env: Any = simulator(**rendering)
        self._env._set_task_called = True  # reset() draws the goal; Meta-World expects one from a benchmark
        self._env._partially_observable = True  # hide the goal
        self._env.seeded_rand_vec = True
        restore_v2(self._env, env_id)
        self.mujoco_renderer = self._env.mujoco_renderer
        self.render_mode = rendering.get("render_mode")
        self.metadata = dict(self._env.metadata)
        bounds = self._env.sawyer_observation_space
        low, high = bounds.low.astype(np.float32), bounds.high.astype(np.float32)
        self.observation_space = gym.spaces.Box(low, high, dtype=np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (4,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        env = self._env
        env.np_random = self.np_random
        env._freeze_rand_vec = False
        env.reset_model()  # draws goals until one is far enough from the object
        # reset() sets up the scene twice more, with the same goal. Once is not enough: some tasks read positions before
        # they apply the new goal, and would read those of the previous episode.
        env._freeze_rand_vec = True
        observation, info = env.reset()
        return observation.astype(np.float32), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        action = np.clip(np.asarray(action, np.float32), -1.0, 1.0)
        observation, reward, terminated, truncated, info = self._env.step(action)
        return observation.astype(np.float32), float(reward), bool(terminated), bool(truncated), info

    def render(self) -> Any:
        frame = self._env.render()
        return frame[::-1, ::-1] if isinstance(frame, np.ndarray) else frame

    def close(self) -> None:
        self._env.close()
