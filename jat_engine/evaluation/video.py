"""Videos of episodes, H.264 in mp4: one per task, and a grid of all tasks. Frames are encoded one by one."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

GRID_WIDTH = 1920
"""Largest width of a grid in pixels, as published."""

MAX_CELL = 480
"""Largest width and height of a video in a grid, in pixels, so that a small frame is not scaled up to 1920."""


class MissingVideoError(ImportError):
    """Missing package imageio-ffmpeg, which contains the encoder."""


def ffmpeg() -> Any:
    """Import and return the module imageio_ffmpeg. Call it early to fail before the first episode is played.

    Raises:
        MissingVideoError: it is not installed; the message says how to install it.
    """
    try:
        import imageio_ffmpeg
    except ImportError:
        raise MissingVideoError(
            "saving videos needs imageio-ffmpeg; install it with: pip install 'jat-engine[video]'"
        ) from None
    return imageio_ffmpeg


class VideoWriter:
    """Writer of frames to an mp4 file. The file is complete after `close`, or at the end of a `with` block.

    Args:
        path: file to write. Its folder is created if needed.
        fps: frames per second.

    Attributes:
        num_frames: number of frames so far.

    Raises:
        MissingVideoError: imageio-ffmpeg is not installed.
        ValueError: `fps` is not positive.

    Example:
        >>> with VideoWriter("pong.mp4", fps=30) as video:
        ...     run_episode(agent, processor, env, task=task, on_frame=video.append)
    """

    def __init__(self, path: str | Path, fps: float) -> None:
        self._ffmpeg = ffmpeg()
        if not fps > 0:
            raise ValueError(f"fps: expected a positive number, got {fps}")
        self.path = Path(path)
        self.fps = float(fps)
        self.num_frames = 0
        self._shape: tuple[int, ...] | None = None
        self._encoder: Any = None

    def append(self, frame: np.ndarray) -> None:
        """Add a frame. The first one opens the file.

        Args:
            frame: uint8 [height, width, 3], the same shape for all frames.

        Raises:
            ValueError: wrong shape or dtype.
        """
        if self._encoder is None:
            self._open(frame)
        if frame.shape != self._shape or frame.dtype != np.uint8:
            raise ValueError(f"frame: expected uint8 of shape {self._shape}, got {frame.dtype} of shape {frame.shape}")
        height, width = frame.shape[:2]
        if height % 2 or width % 2:  # H.264 with 4:2:0 colours needs even sizes
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        self._encoder.send(np.ascontiguousarray(frame))
        self.num_frames += 1

    def close(self) -> None:
        """Finish the file. Calling it again has no effect."""
        if self._encoder is not None:
            self._encoder.close()
            self._encoder = None

    def _open(self, frame: np.ndarray) -> None:
        if frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"frame: expected shape [height, width, 3], got {frame.shape}")
        self._shape = frame.shape
        height, width = frame.shape[:2]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._encoder = self._ffmpeg.write_frames(
            str(self.path),
            (width + width % 2, height + height % 2),
            fps=self.fps,
            codec="libx264",
            macro_block_size=2,
            ffmpeg_log_level="error",
        )
        self._encoder.send(None)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_video(path: str | Path) -> Iterator[np.ndarray]:
    """Yield the frames of a video, uint8 [height, width, 3]."""
    reader = ffmpeg().read_frames(str(path))
    try:
        width, height = next(reader)["size"]
        for data in reader:
            yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
    finally:
        reader.close()


def write_grid(videos: Sequence[str | Path], output: str | Path, *, fps: int = 30, max_seconds: float = 180.0) -> Path:
    """Combine videos to a grid that is as long as the longest of them. Shorter ones are repeated.

    Args:
        videos: mp4 files, row by row. The grid has `ceil(sqrt(n))` columns.
        output: mp4 file to write, at most `GRID_WIDTH` pixels wide. Videos keep their proportions and their speed.
        fps: frames per second of the output.
        max_seconds: longest duration of the output, in seconds.

    Returns:
        The path of the output.

    Raises:
        MissingVideoError: imageio-ffmpeg is not installed.
        ValueError: there are no videos, or one has no frames.
        RuntimeError: ffmpeg failed.
    """
    if not videos:
        raise ValueError("videos: expected at least one, got none")
    module = ffmpeg()
    columns = math.ceil(math.sqrt(len(videos)))
    cell = min(MAX_CELL, GRID_WIDTH // columns) // 2 * 2
    seconds = min(max_seconds, max(_seconds(path) for path in videos))

    command = [module.get_ffmpeg_exe(), "-y", "-loglevel", "error"]
    for path in videos:
        command += ["-stream_loop", "-1", "-threads", "1", "-i", str(path)]
    fit = (
        f"scale={cell}:{cell}:force_original_aspect_ratio=decrease:flags=area,"
        f"pad={cell}:{cell}:-1:-1,setsar=1,fps={fps}"
    )
    filters = [f"[{i}:v]{fit}[v{i}]" for i in range(len(videos))]
    final = "v0"
    if len(videos) > 1:
        places = [f"{i % columns * cell}_{i // columns * cell}" for i in range(len(videos))]
        inputs = "".join(f"[v{i}]" for i in range(len(videos)))
        filters.append(f"{inputs}xstack=inputs={len(videos)}:layout={'|'.join(places)}:fill=black[grid]")
        final = "grid"

    command += ["-filter_complex", ";".join(filters), "-map", f"[{final}]"]
    command += ["-frames:v", str(math.ceil(seconds * fps)), "-c:v", "libx264", "-preset", "veryfast"]
    command += ["-pix_fmt", "yuv420p", "-movflags", "+faststart", str(output)]

    Path(output).parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{output}: ffmpeg failed with exit code {done.returncode}: {done.stderr.strip()}")
    return Path(output)


def _seconds(path: str | Path) -> float:
    frames, seconds = ffmpeg().count_frames_and_secs(str(path))
    if not frames:
        raise ValueError(f"{path}: expected a video, found no frames")
    return float(seconds)
