"""BabyAI: the direction and the 7 x 7 x 3 view as 148 integers, the mission as text."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import gymnasium as gym
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .tasks import Task


def make(task: Task, *, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """One of the 39 tasks."""
    import minigrid  # registers its ids

    gym.register_envs(minigrid)
    return MissionInFrame(FlatObservation(gym.make(task.env_id, render_mode=render_mode)))


class FlatObservation(gym.ObservationWrapper[Any, Any, Any]):
    """`discrete_observation`: int64 [148], the direction, then the view row by row; `text_observation`: the mission."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        spaces: Any = env.observation_space
        sizes = np.concatenate(([spaces["direction"].n], spaces["image"].high.flatten().astype(np.int64) + 1))
        self.observation_space = gym.spaces.Dict(
            {"discrete_observation": gym.spaces.MultiDiscrete(sizes), "text_observation": spaces["mission"]}
        )

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        integers = np.concatenate(([observation["direction"]], observation["image"].flatten()))
        return {"discrete_observation": integers.astype(np.int64), "text_observation": observation["mission"]}

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        with contextlib.redirect_stdout(io.StringIO()):  # minigrid prints each level that it rejects
            return super().reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, float(reward), terminated, truncated, info


class MissionInFrame(gym.Wrapper[Any, Any, Any, Any]):
    """Rendered frames show the mission in their upper left corner."""

    def render(self) -> Any:
        frame = super().render()
        if not isinstance(frame, np.ndarray):
            return frame
        image = Image.fromarray(frame.astype(np.uint8))
        font = ImageFont.load_default(size=20)
        # wrappers do not forward attributes, so the mission is asked of the environment itself
        ImageDraw.Draw(image).text((10, 5), self.unwrapped.mission, fill=(255, 255, 255), font=font)  # type: ignore[attr-defined]
        return np.array(image)
