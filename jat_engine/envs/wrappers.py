"""Wrappers for several domains."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


class VectorAsDict(gym.Wrapper[Any, Any, Any, Any]):
    """Wrapper that returns observations as `{"continuous_observation": [X]}`, and rewards as Python floats."""

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
        frame = self.env.render()  # from MuJoCo: a view with negative strides, which torch does not accept
        return np.ascontiguousarray(frame) if isinstance(frame, np.ndarray) else frame
