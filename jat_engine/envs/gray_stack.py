"""`GrayStack`: the published observation of pictures, four grey frames of 84 x 84 pixels."""

from __future__ import annotations

from collections import deque
from typing import Any

import gymnasium as gym
import numpy as np

STACK, SIZE = 4, 84


class FrameStack:
    """The last 4 pictures of an episode as one observation."""

    def __init__(self) -> None:
        self._frames: deque[np.ndarray] = deque(maxlen=STACK)

    def first(self, frame: np.ndarray) -> dict[str, np.ndarray]:
        """Return the first observation of an episode: `image_observation`, uint8 [84, 84, 4], four equal pictures."""
        self._frames.extend([gray(frame)] * STACK)
        return self._observation()

    def next(self, frame: np.ndarray) -> dict[str, np.ndarray]:
        """Return the observation after a step, whose last picture is `frame`."""
        self._frames.append(gray(frame))
        return self._observation()

    def _observation(self) -> dict[str, np.ndarray]:
        return {"image_observation": np.stack(self._frames, axis=-1)}


def stack_space() -> gym.spaces.Dict:
    """Return the space of a `FrameStack`'s observations."""
    return gym.spaces.Dict({"image_observation": gym.spaces.Box(0, 255, (SIZE, SIZE, STACK), np.uint8)})


class GrayStack(gym.Wrapper[Any, Any, Any, Any]):
    """Wrapper that returns `image_observation`, uint8 [84, 84, 4]: the last 4 frames, scaled, then made grey.

    Before the first step all four are the first frame.

    Args:
        env: its observations are pictures, as `gray` takes them.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._stack = FrameStack()
        self.observation_space = stack_space()

    def reset(self, **kwargs: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        frame, info = self.env.reset(**kwargs)
        return self._stack.first(frame), info

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], Any, bool, bool, dict[str, Any]]:
        frame, reward, terminated, truncated, info = self.env.step(action)
        return self._stack.next(frame), reward, terminated, truncated, info


def gray(frame: np.ndarray) -> np.ndarray:
    """Return a picture as the agent sees it: uint8 [84, 84], scaled first and then made grey, as published.

    Args:
        frame: uint8 [height, width, 3], [height, width, 1] or [height, width].
    """
    import cv2

    small = cv2.resize(frame, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return np.asarray(small if small.ndim == 2 else cv2.cvtColor(small, cv2.COLOR_RGB2GRAY))
