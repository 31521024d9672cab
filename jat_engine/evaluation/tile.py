"""Draw the states of an episode as tiles of a video: frames, enlarged without blur, above task, step and return."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..envs import Task
from .environment import render_frame

BACKGROUND = (24, 26, 30)
"""Colour around frames, RGB."""

ENLARGED_SIDE, LARGEST_SIDE = 640, 960
"""Pixels up to which a small frame is enlarged, and beyond which a large one is reduced."""

HELD_SECONDS, SHORTEST_SECONDS = 1.0, 3.0
"""Time that the last state of an episode is shown at least, and the whole episode."""

_TEXT = (235, 235, 235)
_NARROWEST = 160  # of a tile, so that its text can be read
_LONGEST_CAPTION = "   step 00000   return -00000.0"


class EpisodeTiles:
    """Draw the states of one episode after another, each with the task, the step and the return so far.

    Args:
        task: the task, for the caption.
        size: width and height of all tiles, in pixels; None for that of the first frame, see `tile_size`.
    """

    def __init__(self, task: Task, size: tuple[int, int] | None = None) -> None:
        self._task, self._size = task, size
        self._step, self._return = 0, 0.0

    def first(self, frame: np.ndarray) -> np.ndarray:
        """Return the tile of an episode's first state, uint8 [height, width, 3].

        Args:
            frame: as `render_frame` returns it.
        """
        self._step, self._return = 0, 0.0
        return self._draw(frame)

    def next(self, frame: np.ndarray, reward: float) -> np.ndarray:
        """Return the tile of the state after a step, uint8 [height, width, 3].

        Args:
            frame: as `render_frame` returns it.
            reward: of the step.
        """
        self._step += 1
        self._return += reward
        return self._draw(frame)

    def _draw(self, frame: np.ndarray) -> np.ndarray:
        if self._size is None:
            self._size = tile_size(frame.shape[1], frame.shape[0])
        caption = f"step {self._step}   return {_number(self._return)}"
        return draw_tile(frame, (self._task.name, caption), self._size)


class RecordTiles(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Pass a tile to `sink` after each reset with a seed and after each step.

    Args:
        env: of `jat_engine.envs.make`, with `render_mode="rgb_array"`.
        task: its task, for the caption.
        sink: called with each tile, uint8 [height, width, 3], and the number of times that it is shown.
        size: as for `EpisodeTiles`.
        fps: frames per second of the video, by which an episode's last tile is held, see `held_frames`; None: it is
            shown once.
        max_tiles: after so many nothing is rendered any more; None for no limit.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        task: Task,
        sink: Callable[[np.ndarray, int], object],
        size: tuple[int, int] | None = None,
        fps: float | None = None,
        max_tiles: int | None = None,
    ) -> None:
        super().__init__(env)
        self._tiles, self._sink, self._fps = EpisodeTiles(task, size), sink, fps
        self._left = sys.maxsize if max_tiles is None else max_tiles
        self._last: np.ndarray | None = None
        self._shown = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment. Without a seed an episode goes on, as after a lost life of Atari."""
        if seed is not None:
            self._hold()
        observation, info = self.env.reset(seed=seed, options=options)
        if seed is not None and self._left:
            self._show(self._tiles.first(render_frame(self.env)))
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self._left:
            self._show(self._tiles.next(render_frame(self.env), float(reward)))
        if terminated or truncated:
            self._hold()
        return observation, reward, terminated, truncated, info

    def close(self) -> None:
        """Hold the last tile of an episode that was stopped, and close the environment."""
        self._hold()
        self.env.close()

    def _show(self, tile: np.ndarray, times: int = 1) -> None:
        times = min(times, self._left)
        if times:
            self._sink(tile, times)
        self._left -= times
        self._last = tile
        self._shown += times

    def _hold(self) -> None:
        if self._last is not None and self._fps is not None:
            self._show(self._last, held_frames(self._shown, self._fps))
        self._last, self._shown = None, 0


def held_frames(shown: int, fps: float) -> int:
    """Return how many more times the last state of an episode is shown.

    Args:
        shown: frames of the episode so far.
        fps: frames per second.
    """
    return max(math.ceil(HELD_SECONDS * fps), math.ceil(SHORTEST_SECONDS * fps) - shown)


def tile_size(width: int, height: int) -> tuple[int, int]:
    """Return width and height of the tile for frames of one size, in pixels, both even.

    Frames keep their size; small ones are enlarged by an even number, up to `ENLARGED_SIDE`, and those of more than
    `LARGEST_SIDE` are reduced to it.

    Args:
        width: of the frames, in pixels.
        height: of the frames.
    """
    side = max(width, height)
    factor = _whole(ENLARGED_SIDE / side) if side <= LARGEST_SIDE else LARGEST_SIDE / side
    tile_width = _even_up(max(round(width * factor), _NARROWEST))
    return tile_width, _even_up(round(height * factor)) + _strip(tile_width)


def draw_tile(frame: np.ndarray, caption: tuple[str, str], size: tuple[int, int]) -> np.ndarray:
    """Draw a frame above a line of text.

    Videos keep the colours of two by two pixels in one. Where a frame is enlarged, it is by an even number and from an
    even pixel, so that none of its pixels shares a colour with its neighbours.

    Args:
        frame: uint8 [height, width, 3]. It keeps its proportions; small ones are enlarged by a whole number.
        caption: the left and the right part of the line.
        size: width and height of the tile, in pixels.

    Returns:
        uint8 [height, width, 3].
    """
    width, height = size
    strip = _strip(width)
    factor = min(width / frame.shape[1], (height - strip) / frame.shape[0])
    if factor >= 1:
        shown = frame.repeat(_whole(factor), axis=1).repeat(_whole(factor), axis=0)
    else:
        reduced = max(1, int(frame.shape[1] * factor)), max(1, int(frame.shape[0] * factor))
        shown = np.asarray(Image.fromarray(frame).resize(reduced, Image.Resampling.LANCZOS))

    tile = _empty_tile(width, height).copy()
    top, left = _even((height - strip - shown.shape[0]) // 2), _even((width - shown.shape[1]) // 2)
    tile[top : top + shown.shape[0], left : left + shown.shape[1]] = shown
    tile[height - strip :] = _draw_line(caption, width, strip)
    return tile


@functools.lru_cache(maxsize=4)
def _empty_tile(width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), BACKGROUND, np.uint8)


def _draw_line(caption: tuple[str, str], width: int, height: int) -> np.ndarray:
    """Return the line of text, uint8 [height, width, 3]."""
    left, right = caption
    line = Image.new("RGB", (width, height), BACKGROUND)
    drawing, margin, middle = ImageDraw.Draw(line), height // 3, height // 2
    font = _font(left + _LONGEST_CAPTION, height * 0.65, width - 2 * margin)
    drawing.text((margin, middle), left, _TEXT, font, anchor="lm")
    drawing.text((width - margin, middle), right, _TEXT, font, anchor="rm")
    return np.asarray(line)


@functools.lru_cache(maxsize=64)
def _font(longest: str, size: float, width: int) -> Any:
    """Return a font of a size, or a smaller one in which a text is not wider than `width` pixels."""
    wide = ImageFont.load_default(size).getlength(longest)
    return ImageFont.load_default(size * min(1.0, width / max(wide, 1.0)))


def _strip(width: int) -> int:
    """Return the height of a tile's line of text."""
    return _even(10 + width // 20)


def _whole(factor: float) -> int:
    """Return a factor's largest even part; 1 of a factor below 2."""
    return _even(int(factor)) or 1


def _even(number: int) -> int:
    return number // 2 * 2


def _even_up(number: int) -> int:
    return number + number % 2


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:.0f}"
