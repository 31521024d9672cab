"""MuJoCo environments, with the v4 observation layouts, rewards and episode ends that the agent was trained on."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import numpy as np

from .own_context import OwnContext
from .rendering import check_camera, check_view, import_mujoco
from .task import Task
from .wrappers import VectorAsDict


def make(
    task: Task,
    *,
    render_mode: str | None = None,
    width: int = 480,
    height: int = 480,
    camera_name: str | None = None,
    camera_id: int | None = None,
    max_episode_steps: int | None = None,
) -> gym.Env[Any, Any]:
    """Build one of the 11 tasks, in version v4, because v5 changed observation layouts (Ant 27, Humanoid 376, ...).

    Actions are not clipped here. MuJoCo clips the controls, and the control cost in the reward is computed from the
    action before clipping, as published.

    Args:
        task: a MuJoCo task.
        render_mode: "human", "rgb_array" or None.
        width: width of rendered frames, in pixels.
        height: height of rendered frames, in pixels.
        camera_name: camera of the model that frames are taken with; None for the published view.
        camera_id: its number instead; -1 is the free camera.
        max_episode_steps: end an episode after this number of steps; None for the published limit, -1 for none.

    Raises:
        ValueError: the model has no such camera, or a size is less than 1.
    """
    check_view(width, height, camera_name, camera_id)
    mujoco = import_mujoco()
    from .pusher import make_pusher  # imports mujoco

    options: dict[str, Any] = {
        "render_mode": render_mode,
        "width": width,
        "height": height,
        "camera_name": camera_name,
        "camera_id": camera_id,
        "max_episode_steps": max_episode_steps,
    }
    if task.published_env_id == "Pusher-v4":
        env = make_pusher(task.env_id, **options)
    else:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r".*The environment .* is out of date")
            env = gym.make(task.env_id, disable_env_checker=True, **options)
    check_camera(env.unwrapped.model, camera_name, camera_id)  # type: ignore[attr-defined]
    if env.unwrapped.model.jnt_type[0] == mujoco.mjtJoint.mjJNT_FREE:  # type: ignore[attr-defined]
        env = UnitQuaternionAtReset(env)
    return VectorAsDict(OwnContext(env))


class UnitQuaternionAtReset(gym.Wrapper[Any, Any, Any, Any]):
    """Wrapper that normalizes the torso's orientation, entries 1 to 4, in the first observation.

    A reset adds noise to this quaternion. MuJoCo 2 normalized it before the observation; MuJoCo 3 does so a step later.
    """

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        observation[1:5] /= np.linalg.norm(observation[1:5])
        return observation, info
