"""Videos of episodes, H.264 in mp4. Frames are encoded one by one, in a process of the encoder."""

from __future__ import annotations

import contextlib
import math
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np

from ..atomic_io import check_name, check_writable, temporary_path
from ..envs import Task, get_domain
from .gif import GIF_SUFFIX, GifWriter

if TYPE_CHECKING:
    import gymnasium

DEFAULT_FPS = 30.0
"""Frames per second of an environment that names no rate."""

MAX_FPS = 30.0
"""Most frames per second of an episode's video. Each state has a frame, so faster environments are shown slower."""

H264_FORMATS = {".mp4": "mp4", ".mkv": "matroska", ".mov": "mov"}
"""Endings of video files -> the encoder's name of the container."""

SUFFIXES = (*H264_FORMATS, GIF_SUFFIX)
"""Endings of files that `open_writer` writes."""

H264_OPTIONS = [
    *("-c:v", "libx264", "-preset", "veryfast", "-crf", "20", "-pix_fmt", "yuv420p"),
    *("-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"),
]
"""Options of the encoder. Without names of the colours players assume some by the size of the frames."""

TO_BT709 = "scale=out_color_matrix=bt709:flags=accurate_rnd+full_chroma_int+full_chroma_inp"
"""Filter of the encoder that converts RGB to these colours."""


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


def executable(module: Any) -> str:
    """Return the path of the encoder.

    Args:
        module: the return value of `ffmpeg`.

    Raises:
        VideoError: it has none for this platform.
    """
    try:
        return str(module.get_ffmpeg_exe())
    except RuntimeError as error:
        raise VideoError(f"ffmpeg: {error}") from None


def check_video(field: str, path: str | Path, suffixes: Sequence[str] = SUFFIXES) -> None:
    """Check that a video can be written to a file: its name, its folder and the encoder, which encodes one frame.

    Args:
        field: the flag or argument with the path, for the messages.
        path: the file.
        suffixes: endings that its name can have, of `SUFFIXES`.

    Raises:
        MissingVideoError: imageio-ffmpeg is not installed.
        ValueError: the file cannot be written, or the encoder does not work.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in suffixes:
        endings = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"
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
            writer = open_writer(Path(folder) / f"frame{suffix}", fps=1)
            writer.append(np.zeros((16, 16, 3), np.uint8))
            writer.close()
        except VideoError as error:
            raise ValueError(f"{field}: videos cannot be encoded here: {error}") from None


class VideoWriter:
    """Writer of frames to a video. The file appears, complete, at `close` or at the end of a `with` block.

    Args:
        path: file to write, with an ending of `H264_FORMATS`. Its folder is created if needed.
        fps: frames per second.
        title: that players show.

    Attributes:
        num_frames: number of frames so far.

    Raises:
        MissingVideoError: imageio-ffmpeg is not installed.
        ValueError: `fps` is not positive, or the file has another ending.

    Example:
        >>> with VideoWriter("pong.mp4", fps=30) as video:
        ...     run_episode(agent, processor, env, task=task, on_frame=video.append)
    """

    def __init__(self, path: str | Path, fps: float, title: str = "") -> None:
        self._ffmpeg = ffmpeg()
        if not fps > 0:
            raise ValueError(f"fps: expected a positive number, got {fps}")
        self.path = Path(path)
        if self.path.suffix.lower() not in H264_FORMATS:
            raise ValueError(f"path: expected a file name that ends in {', '.join(H264_FORMATS)}, got {str(path)!r}")
        self.fps = float(fps)
        self.title = title
        self.num_frames = 0
        self._partial = temporary_path(self.path.absolute())
        self._shape: tuple[int, ...] | None = None
        self._encoder: subprocess.Popen[bytes] | None = None
        self._messages: IO[bytes] | None = None

    def append(self, frame: np.ndarray, times: int = 1) -> None:
        """Add a frame. The first one starts the encoder.

        Args:
            frame: uint8 [height, width, 3], the same shape for all frames.
            times: how many frames it is.

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
            for _ in range(times):
                self._encoder.stdin.write(np.ascontiguousarray(frame).data)
        except OSError:  # the encoder has ended; `close` says why
            self.close()
            raise VideoError(f"{self.path}: the encoder has ended") from None
        self.num_frames += times

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

    def _open(self, frame: np.ndarray) -> None:
        if frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"frame: expected shape [height, width, 3], got {frame.shape}")
        self._shape = frame.shape
        height, width = frame.shape[:2]
        size = f"{width + width % 2}x{height + height % 2}"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            command = [executable(self._ffmpeg), "-y", "-loglevel", "error"]
            command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", f"{self.fps:.3f}", "-i", "-", "-an"]
            command += ["-vf", f"{TO_BT709},format=yuv420p", *H264_OPTIONS, "-threads", "1"]
            command += ["-metadata", f"title={self.title}", "-f", H264_FORMATS[self.path.suffix.lower()]]
            # A path that begins with / is no option and no protocol of ffmpeg's.
            command.append(str(self._partial))
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


class Writer(Protocol):
    """Interface of `VideoWriter` and `GifWriter`."""

    def append(self, frame: np.ndarray, times: int = 1) -> None:
        """Add a frame, uint8 [height, width, 3], which is shown `times` times as long as one of them."""
        ...

    def close(self, keep: bool = True) -> None:
        """Finish the file, or with `keep=False` drop the frames; then a file that is there stays."""
        ...


def open_writer(path: str | Path, fps: float, title: str = "") -> Writer:
    """Return the writer of a video, which its file's ending decides.

    Args:
        path: file to write, with one of `SUFFIXES`.
        fps: frames per second.
        title: stored in the file.

    Raises:
        MissingVideoError: imageio-ffmpeg is not installed; GIF does not need it.
        ValueError: `fps` is not positive, or the file has another ending.
    """
    if Path(path).suffix.lower() == GIF_SUFFIX:
        return GifWriter(path, fps, title)
    return VideoWriter(path, fps, title)


class EpisodeVideo:
    """Video of episodes, whose failure does not end them.

    Args:
        path: file to write, as for `open_writer`.

    Attributes:
        error: description of the failure; "" if there was none.
        num_frames: number of frames so far.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.error = ""
        self.num_frames = 0
        self._writer: Writer | None = None

    def start(self, fps: float) -> Callable[..., None]:
        """Start the video, and return `append`."""
        self._writer = open_writer(self.path, fps)
        return self.append

    def append(self, frame: np.ndarray, times: int = 1) -> None:
        """Add a frame, as `Writer.append` does; after a failure nothing."""
        if self._writer is None:
            return
        try:
            self._writer.append(frame, times)
            self.num_frames += times
        except (VideoError, ValueError) as error:
            self.error, self._writer = str(error), None

    def finish(self) -> None:
        """Finish the file."""
        try:
            if self._writer is not None:
                self._writer.close()
        except OSError as error:
            self.error = str(error)
        self._writer = None


def video_rate(task: Task, env: gymnasium.Env[Any, Any]) -> float:
    """Return the frames per second of a task's videos, which have one frame for each state; at most `MAX_FPS`.

    Args:
        task: a published one has the rate of its domain, at which an eye can follow; others that of `frame_rate`.
        env: its environment.
    """
    rate = get_domain(task.domain).shown_steps_per_second if task.is_published else frame_rate(env)
    return min(float(rate), MAX_FPS)


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
