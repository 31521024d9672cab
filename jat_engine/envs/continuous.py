"""What Meta-World and MuJoCo share: one vector as observation."""

from __future__ import annotations

import os
import sys
from typing import Any

import gymnasium as gym
import numpy as np


def as_dict(env: gym.Env[np.ndarray, np.ndarray]) -> gym.Env[dict[str, np.ndarray], np.ndarray]:
    """The observation as `{"continuous_observation": [X]}`."""
    space = gym.spaces.Dict({"continuous_observation": env.observation_space})
    return gym.wrappers.TransformObservation(env, lambda x: {"continuous_observation": x}, space)


def prefer_headless_rendering(render_mode: Any) -> None:
    """Frames without a display need EGL. A choice that the user made stands; so does a simulator already imported."""
    headless = sys.platform == "linux" and not os.environ.get("DISPLAY")
    if render_mode == "rgb_array" and headless and "mujoco" not in sys.modules:
        os.environ.setdefault("MUJOCO_GL", "egl")
