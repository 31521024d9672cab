"""What Meta-World and MuJoCo share: one vector as observation, and frames by MuJoCo."""

from __future__ import annotations

import ctypes.util
import os
import sys
from typing import Any

import gymnasium as gym
import numpy as np


class VectorAsDict(gym.Wrapper[Any, Any, Any, Any]):
    """The observation as `{"continuous_observation": [X]}`, of the same dtype; rewards as Python floats."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = gym.spaces.Dict({"continuous_observation": env.observation_space})

    def reset(self, **kwargs: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        return {"continuous_observation": observation}, info

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return {"continuous_observation": observation}, float(reward), bool(terminated), truncated, info

    def render(self) -> Any:
        frame = self.env.render()  # of MuJoCo: a view with negative strides, which torch refuses
        return np.ascontiguousarray(frame) if isinstance(frame, np.ndarray) else frame


def prefer_headless_rendering(render_mode: str | None) -> None:
    """Let frames be rendered on a Linux machine without a display.

    Gymnasium looks at `MUJOCO_GL` when it renders its first frame. Where it is not set, it takes GLFW, which can be
    imported without a display but gives no OpenGL context. EGL or OSMesa is needed then. A choice that the user made
    stands.
    """
    if render_mode != "rgb_array" or not sys.platform.startswith("linux"):
        return
    if any(os.environ.get(name) for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY")):
        return
    only_osmesa = not ctypes.util.find_library("EGL") and ctypes.util.find_library("OSMesa")
    os.environ["MUJOCO_GL"] = "osmesa" if only_osmesa else "egl"
