"""Videos of episodes, H.264 in mp4: one per task, and a grid of all tasks. Frames are encoded one by one."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ..atomic_io import check_name, check_writable

if TYPE_CHECKING:
    import gymnasium

GRID_WIDTH = 1920
"""Largest width of a grid in pixels, as published."""

MAX_CELL = 480
"""Largest width and height of a video in a grid, in pixels, so that a small frame is not scaled up to 1920."""

DEFAULT_FPS = 30.0
"""Frames per second of an environment that names no rate."""

SUFFIXES = (".mp4", ".mkv", ".mov")
"""Endings of video files: the containers that H.264 is written in."""


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


class VideoError(OSError):
    """Video that cannot be written: the encoder failed, or the file could not be created."""


def _executable(module: Any) -> str:
    try:
        return str(module.get_ffmpeg_exe())
    except RuntimeError as error:
        raise VideoError(f"ffmpeg: {error}") from None


def check_video(field: str, path: str | Path) -> None:
    """Check that a video can be written to a file: its name, its folder and the encoder, which encodes one frame.

    Args:
        field: the flag or argument with the path, for the messages.
        path: the file.

    Raises:
        MissingVideoError: imageio-ffmpeg is not installed.
        ValueError: the file cannot be written, or the encoder does not work.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        endings = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        raise ValueError(f"{field}: expected a file name that ends in {endings}, got {str(path)!r}")
    try:
        check_name(path)
        if path.is_dir():
            raise ValueError(f"{field}: expected a file, got the folder {path}")
        check_writable(field, path.parent)
    except (OSError, ValueError) as error:
        if str(error).startswith(field):
            raise
        raise ValueError(f"{field}: expected the name of a file, got {str(path)!r} ({error})") from None

    with tempfile.TemporaryDirectory() as folder:
        try:
            with VideoWriter(Path(folder) / f"frame{suffix}", fps=1) as video:
                video.append(np.zeros((16, 16, 3), np.uint8))
        except VideoError as error:
            raise ValueError(f"{field}: videos cannot be encoded here: {error}") from None


class VideoWriter:
    """Writer of frames to a video. The file appears, complete, at `close` or at the end of a `with` block.

    Args:
        path: file to write, one of `SUFFIXES`. Its folder is created if needed.
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
        self._encoder: subprocess.Popen[bytes] | None = None
        self._messages: IO[bytes] | None = None

    def append(self, frame: np.ndarray) -> None:
        """Add a frame. The first one starts the encoder.

        Args:
            frame: uint8 [height, width, 3], the same shape for all frames.

        Raises:
            ValueError: wrong shape or dtype.
            VideoError: the encoder failed; what it wrote is removed.
        """
        if self._encoder is None:
            self._open(frame)
        if frame.shape != self._shape or frame.dtype != np.uint8:
            raise ValueError(f"frame: expected uint8 of shape {self._shape}, got {frame.dtype} of shape {frame.shape}")
        height, width = frame.shape[:2]
        if height % 2 or width % 2:  # H.264 with 4:2:0 colours needs even sizes
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")

        assert self._encoder is not None, "_open starts it"
        assert self._encoder.stdin is not None, "it is a pipe"
        try:
            self._encoder.stdin.write(np.ascontiguousarray(frame).data)
        except OSError:  # the encoder has ended; `close` says why
            self.close()
            raise VideoError(f"{self.path}: the encoder has ended") from None
        self.num_frames += 1

    def close(self, keep: bool = True) -> None:
        """Finish the file. Calling it again has no effect.

        Args:
            keep: with False the frames are dropped, and a file that is there stays.

        Raises:
            VideoError: the encoder failed; what it wrote is removed.
        """
        if self._encoder is None:
            return
        encoder, messages, self._encoder = self._encoder, self._messages, None
        assert encoder.stdin is not None, "it is a pipe"
        assert messages is not None, "opened with the encoder"
        with messages:
            with contextlib.suppress(OSError):  # the encoder has ended
                encoder.stdin.close()
            code = encoder.wait()
            messages.seek(0)
            said = " ".join(messages.read().decode(errors="replace").split())

        try:
            if code:
                raise VideoError(f"{self.path}: ffmpeg failed with exit code {code}: {said[:300]}")
            if keep:
                self._partial.replace(self.path)
            else:
                self._partial.unlink()
        except OSError as error:
            with contextlib.suppress(OSError):
                self._partial.unlink()
            raise error if isinstance(error, VideoError) else VideoError(f"{self.path}: {error}") from None

    @property
    def _partial(self) -> Path:
        """The file until it is complete. A path that begins with / is no option and no protocol of ffmpeg's."""
        return self.path.absolute().with_name(f".{os.getpid()}-{id(self):x}.partial{self.path.suffix.lower()}")

    def _open(self, frame: np.ndarray) -> None:
        if frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"frame: expected shape [height, width, 3], got {frame.shape}")
        self._shape = frame.shape
        height, width = frame.shape[:2]
        size = f"{width + width % 2}x{height + height % 2}"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            command = [_executable(self._ffmpeg), "-y", "-loglevel", "error"]
            command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", f"{self.fps:.3f}", "-i", "-", "-an"]
            command += ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "25", str(self._partial)]
            self._messages = tempfile.TemporaryFile()  # noqa: SIM115  # until `close`
            self._encoder = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._messages,
                start_new_session=True,  # Ctrl-C is for this process, which then finishes the file
            )
        except OSError as error:
            raise error if isinstance(error, VideoError) else VideoError(f"{self.path}: {error}") from None

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(*(() if kind is None else (VideoError,))):  # the first error is the one to see
            self.close()


class EpisodeVideo:
    """Video of episodes, whose failure does not end them.

    Args:
        path: file to write, as for `VideoWriter`.

    Attributes:
        error: description of the failure; "" if there was none.
        num_frames: number of frames so far.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.error = ""
        self.num_frames = 0
        self._writer: VideoWriter | None = None

    def start(self, fps: float) -> Callable[[np.ndarray], None]:
        """Start the video, and return the function that takes its frames."""
        self._writer = VideoWriter(self.path, fps)
        return self.append

    def append(self, frame: np.ndarray) -> None:
        """Add a frame, as `VideoWriter.append` does; after a failure nothing."""
        if self._writer is None:
            return
        try:
            self._writer.append(frame)
            self.num_frames += 1
        except (VideoError, ValueError) as error:
            self.error, self._writer = str(error), None

    def finish(self, keep: bool = True) -> None:
        """Finish the file.

        Args:
            keep: replace a file that is there; with False the new one is dropped instead.
        """
        try:
            if self._writer is not None:
                self._writer.close(keep=keep or not self.path.exists())
        except VideoError as error:
            self.error = str(error)
        self._writer = None


def frame_rate(env: gymnasium.Env[Any, Any]) -> float:
    """Return the frames per second that an environment's metadata gives as `render_fps`; 30 if it gives none."""
    fps: Any = env.metadata.get("render_fps")
    is_rate = isinstance(fps, int | float | np.number) and math.isfinite(fps) and fps > 0
    return float(fps) if is_rate else DEFAULT_FPS


def read_video(path: str | Path) -> Iterator[np.ndarray]:
    """Yield the frames of a video, uint8 [height, width, 3]."""
    reader = ffmpeg().read_frames(str(Path(path).absolute()))
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
        RuntimeError: a file is no video.
        VideoError: the encoder failed, or the file cannot be written. An earlier file is kept.
    """
    if not videos:
        raise ValueError("videos: expected at least one, got none")
    module = ffmpeg()
    columns = math.ceil(math.sqrt(len(videos)))
    cell = min(MAX_CELL, GRID_WIDTH // columns) // 2 * 2
    seconds = min(max_seconds, max(_seconds(path) for path in videos))

    command = [_executable(module), "-y", "-loglevel", "error"]
    for path in videos:
        command += ["-stream_loop", "-1", "-threads", "1", "-i", str(Path(path).absolute())]
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
    partial = Path(output).absolute().with_name(f".{os.getpid()}.partial{Path(output).suffix.lower()}")
    command += ["-pix_fmt", "yuv420p", "-movflags", "+faststart", str(partial)]

    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
        if done.returncode:
            said = " ".join(done.stderr.decode(errors="replace").split())
            raise VideoError(f"{output}: ffmpeg failed with exit code {done.returncode}: {said[:300]}")
        partial.replace(output)
    except OSError as error:
        raise error if isinstance(error, VideoError) else VideoError(f"{output}: {error}") from None
    finally:
        partial.unlink(missing_ok=True)
    return Path(output)


def _seconds(path: str | Path) -> float:
    frames, seconds = ffmpeg().count_frames_and_secs(str(Path(path).absolute()))
    if not frames:
        raise ValueError(f"{path}: expected a video, found no frames")
    return float(seconds)
