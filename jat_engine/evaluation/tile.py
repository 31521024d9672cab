"""Record episodes as tiles of a video: frames, enlarged without blur, above the task, the step and the return."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..envs import Task

_BACKGROUND, _TEXT = (24, 26, 30), (235, 235, 235)


class RecordTiles(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Pass a tile to `sink` after each reset with a seed and after each step; the last one several times.

    Args:
        env: of `jat_engine.envs.make`, with `render_mode="rgb_array"`.
        task: its task, for the caption.
        sink: called with each tile, uint8 [size, size, 3].
        size: of tiles, in pixels; even.
        hold: times that an episode's last tile is repeated, so that the cut is seen.
        max_tiles: after so many nothing is rendered any more; None for no limit.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        task: Task,
        sink: Callable[[np.ndarray], None],
        size: int,
        hold: int = 0,
        max_tiles: int | None = None,
    ) -> None:
        super().__init__(env)
        self._task, self._sink, self._size, self._hold = task, sink, size, hold
        self._left = sys.maxsize if max_tiles is None else max_tiles
        self._step, self._return = 0, 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment. Without a seed an episode goes on, as after a lost life of Atari."""
        observation, info = self.env.reset(seed=seed, options=options)
        if seed is not None:
            self._step, self._return = 0, 0.0
            self._record()
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._step += 1
        self._return += float(reward)
        self._record(1 + self._hold * (terminated or truncated))
        return observation, reward, terminated, truncated, info

    def _record(self, times: int = 1) -> None:
        times = min(times, self._left)
        if not times:
            return
        frame = self.env.render()
        assert isinstance(frame, np.ndarray), 'expected render_mode="rgb_array"'
        shown = draw_tile(frame, f"{self._task.name}   step {self._step}   return {self._return:.4g}", self._size)
        for _ in range(times):
            self._sink(shown)
        self._left -= times


def draw_tile(frame: np.ndarray, caption: str, size: int) -> np.ndarray:
    """Draw a frame above a line of text.

    Args:
        frame: uint8 [height, width, 3]. It keeps its proportions; small ones are enlarged by a whole number.
        caption: one line.
        size: of the tile, in pixels.

    Returns:
        uint8 [size, size, 3].
    """
    strip = max(12, size // 15)
    picture = Image.fromarray(frame)
    factor = min(size / picture.width, (size - strip) / picture.height)
    if factor >= 1:
        shown = picture.resize((picture.width * int(factor), picture.height * int(factor)), Image.Resampling.NEAREST)
    else:
        shown = picture.resize((int(picture.width * factor), int(picture.height * factor)), Image.Resampling.LANCZOS)
    tile = Image.new("RGB", (size, size), _BACKGROUND)
    tile.paste(shown, ((size - shown.width) // 2, (size - strip - shown.height) // 2))

    drawing, font_size = ImageDraw.Draw(tile), strip * 0.65
    width = drawing.textlength(caption, ImageFont.load_default(font_size))
    font = ImageFont.load_default(font_size * min(1.0, 0.95 * size / max(width, 1.0)))
    drawing.text((size // 2, size - strip // 2), caption, _TEXT, font, anchor="mm")
    return np.asarray(tile)
