"""BabyAI environments: direction and 7 x 7 x 3 view as 148 integers, mission as text."""

from __future__ import annotations

import logging
from typing import Any

import gymnasium as gym
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .mission import Mission
from .task import Task

_logger = logging.getLogger(__name__)


def make(task: Task, *, render_mode: str | None = None, max_episode_steps: int | None = None) -> gym.Env[Any, Any]:
    """Build one of the 39 tasks.

    Args:
        task: a BabyAI task.
        render_mode: "human", "rgb_array" or None.
        max_episode_steps: end an episode after this number of steps; None for the task's own limit alone.
    """
    import minigrid  # registers its ids

    gym.register_envs(minigrid)
    _log_rejected_missions()
    env: gym.Env[Any, Any] = gym.make(
        task.env_id, render_mode=render_mode, max_episode_steps=max_episode_steps, disable_env_checker=True
    )
    return MissionInFrame(FlatObservation(env))


def _log_rejected_missions() -> None:
    # Minigrid prints every mission that it rejects while it searches for one. Standard output belongs to the program,
    # so the module gets a `print` that logs. Replacing sys.stdout during a reset would redirect other threads' output.
    from minigrid.envs.babyai.core import roomgrid_level

    def log(*values: object) -> None:
        _logger.debug("%s", " ".join(map(str, values)))

    setattr(roomgrid_level, "print", log)  # noqa: B010 (the module declares no such name)


class FlatObservation(gym.ObservationWrapper[Any, Any, Any]):
    """Wrapper that returns `discrete_observation`, int64 [148] (direction, then view), and `text_observation`."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        spaces: Any = env.observation_space
        sizes = np.concatenate(([spaces["direction"].n], spaces["image"].high.flatten().astype(np.int64) + 1))
        self.observation_space = gym.spaces.Dict(
            {"discrete_observation": gym.spaces.MultiDiscrete(sizes), "text_observation": Mission()}
        )

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        integers = np.concatenate(([observation["direction"]], observation["image"].flatten()))
        return {"discrete_observation": integers.astype(np.int64), "text_observation": observation["mission"]}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, float(reward), terminated, truncated, info


class MissionInFrame(gym.Wrapper[Any, Any, Any, Any]):
    """Wrapper that writes the mission at the top of rendered frames."""

    def render(self) -> Any:
        frame = super().render()
        if not isinstance(frame, np.ndarray):
            return frame  # in a window Minigrid writes the mission itself
        # The mission is an attribute of the environment itself, and wrappers do not forward attributes.
        return _write(frame, self.unwrapped.mission)  # type: ignore[attr-defined]


def _write(frame: np.ndarray, text: str) -> np.ndarray:
    image = Image.fromarray(np.ascontiguousarray(frame, dtype=np.uint8))
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=max(10, image.width // 20))
    margin = image.width // 40

    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and draw.textlength(longer, font=font) > image.width - 2 * margin:
            lines.append(word)
        else:
            lines[-1] = longer

    draw.multiline_text(
        (margin, margin), "\n".join(lines), fill="white", font=font, stroke_width=1, stroke_fill="black"
    )
    return np.array(image)
