"""Animated GIF files of episodes, for pages that show no videos."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ..atomic_io import naming, temporary_path

GIF_SUFFIX = ".gif"

MAX_PICTURES = 512
"""Most pictures of a file, some megabytes. Of more frames every second, fourth, ... is kept, and the last one."""

_COLOURS = 255  # one more is for pixels that stay as they are
_SAMPLES = 16  # pictures that the colours are chosen from
_SHORTEST = 4  # hundredths of a second; players show faster ones unevenly


class GifWriter:
    """Writer of frames to an animated GIF. The file appears, complete, at `close`.

    All pictures have one palette, so that what does not move does not flicker. Frames are kept in memory until then.

    Args:
        path: file to write. Its folder is created if needed.
        fps: frames per second. A picture is shown for a whole number of hundredths of a second, at least four.
        title: stored as the file's comment.

    Attributes:
        num_frames: number of frames so far.

    Raises:
        ValueError: `fps` is not positive.
    """

    def __init__(self, path: str | Path, fps: float, title: str = "") -> None:
        if not fps > 0:
            raise ValueError(f"fps: expected a positive number, got {fps}")
        self.path = Path(path)
        self.title = title
        self.num_frames = 0
        self._hundredths = max(_SHORTEST, -int(-100 // fps))
        self._shape: tuple[int, ...] | None = None
        self._kept: list[_Picture] = []
        self._last: _Picture | None = None
        self._calls, self._stride = 0, 1

    def append(self, frame: np.ndarray, times: int = 1) -> None:
        """Add a frame.

        Args:
            frame: uint8 [height, width, 3], the same shape for all frames.
            times: how many frames it is.

        Raises:
            ValueError: wrong shape or dtype.
        """
        if frame.shape != (self._shape or frame.shape) or frame.dtype != np.uint8 or frame.shape[2:] != (3,):
            raise ValueError(
                f"frame: expected uint8 [height, width, 3], the same shape for all frames, got {frame.dtype} of shape "
                f"{frame.shape}"
            )
        self._shape, self._last = frame.shape, _Picture(frame, times)
        if self._calls % self._stride == 0:
            self._kept.append(self._last)
        if len(self._kept) > MAX_PICTURES:
            self._kept, self._stride = self._kept[::2], 2 * self._stride
        self._calls += 1
        self.num_frames += times

    def close(self, keep: bool = True) -> None:
        """Write the file. Calling it again has no effect.

        Args:
            keep: with False the frames are dropped, and a file that is there stays.

        Raises:
            OSError: the file cannot be written; names it. An earlier one is kept.
        """
        pictures, last = self._kept, self._last
        self._kept, self._last = [], None
        if last is None or not keep:
            return
        if pictures[-1] is not last:
            pictures.append(last)

        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_path(self.path)
        with naming(self.path):
            try:
                self._write(pictures, temporary)
                temporary.replace(self.path)
            finally:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)

    def _write(self, pictures: list[_Picture], path: Path) -> None:
        samples = [picture.image for picture in pictures[:: -(-len(pictures) // _SAMPLES)]] + [pictures[-1].image]
        mixed = Image.fromarray(np.vstack([np.asarray(image)[::2, ::2] for image in samples]))
        palette = mixed.quantize(_COLOURS)

        def indexed() -> Iterator[Image.Image]:
            for picture in pictures:
                yield picture.image.quantize(palette=palette, dither=Image.Dither.NONE)

        images = indexed()
        times = [picture.times * self._hundredths * 10 for picture in pictures]
        first = next(images)
        options = {"save_all": True, "append_images": images, "duration": times, "loop": 0, "optimize": True}
        first.save(path, "GIF", comment=self.title.encode(), **options)


class _Picture:
    """Frame of a GIF, compressed, and the number of frames that it is."""

    def __init__(self, frame: np.ndarray, times: int) -> None:
        self._data, self._shape = zlib.compress(np.ascontiguousarray(frame).data, 1), frame.shape
        self.times = times

    @property
    def image(self) -> Image.Image:
        return Image.fromarray(np.frombuffer(zlib.decompress(self._data), np.uint8).reshape(self._shape))
