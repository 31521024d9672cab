"""`EpisodeColumns`, which takes an episode step by step and returns its published columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..envs import Task
from ..errors import DataError
from .frames import EncodedFrames, encode_frame
from .schema import FRAMES_SHAPE, task_columns

Columns = dict[str, "np.ndarray | list[str] | EncodedFrames"]

_COLUMN_OF = {
    "continuous_observation": "continuous_observations",
    "discrete_observation": "discrete_observations",
    "text_observation": "text_observations",
    "image_observation": "image_observations",
}
_DTYPES = {
    "continuous_observations": np.float32,
    "discrete_observations": np.int64,
    "image_observations": np.uint8,
}


class EpisodeColumns:
    """Columns of one episode, while it is played: `observe`, then `act`, for each step.

    Args:
        task: the task.
        encode_images: keep frames as PNG files, a tenth of their size. A game of Atari can have 27,000 of 28 kB.
    """

    def __init__(self, task: Task, encode_images: bool = False) -> None:
        self._encode_images = encode_images
        self._observations: dict[str, Any] = {}
        for name in task_columns(task):
            if name in _COLUMN_OF.values():
                encoded = encode_images and name == "image_observations"
                self._observations[name] = EncodedFrames() if encoded else []
        self._is_discrete = task.action == "discrete"
        self._actions: list[Any] = []
        self._rewards: list[float] = []

    def observe(self, observation: Mapping[str, Any]) -> None:
        """Add an observation. Arrays are copied, since an environment may return one array again and again.

        Args:
            observation: keyword arguments of `get_next_action`.
        """
        for key, value in observation.items():
            name = _COLUMN_OF[key]
            if name == "image_observations" and self._encode_images:
                value = _encoded(value)
            elif isinstance(value, np.ndarray):
                value = value.copy()
            self._observations[name].append(value)

    def act(self, action: Any, reward: float) -> None:
        """Add the action for the last observation, an int or float32 [A], and its reward."""
        self._actions.append(action)
        self._rewards.append(reward)

    def columns(self) -> Columns:
        """Return the columns, for `check_episode`.

        Returns:
            Published column name -> one entry per step. `continuous_observations` float32 [L, X],
            `discrete_observations` int64 [L, X], `text_observations` L strings, `image_observations` uint8
            [L, 84, 84, 4] or L PNG files, `continuous_actions` float32 [L, A], `discrete_actions` int64 [L], `rewards`
            float32 [L].
        """
        columns: Columns = {
            name: np.asarray(values, _DTYPES[name]) if type(values) is list and name in _DTYPES else values
            for name, values in self._observations.items()
        }
        if self._is_discrete:
            columns["discrete_actions"] = np.asarray(self._actions, np.int64)
        else:
            columns["continuous_actions"] = np.asarray(self._actions, np.float32)
        columns["rewards"] = np.asarray(self._rewards, np.float32)
        return columns


def _encoded(frame: Any) -> bytes:
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.shape != FRAMES_SHAPE:
        got = f"{frame.dtype} {list(frame.shape)}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise DataError(f"image_observation: expected frames, uint8 {list(FRAMES_SHAPE)}, got {got}")
    return encode_frame(frame)
