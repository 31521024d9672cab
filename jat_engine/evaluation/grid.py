"""A video of several episodes at once, in a grid."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ..atomic_io import temporary_path
from .tile import BACKGROUND
from .video import H264_FORMATS, H264_OPTIONS, VideoError, executable, ffmpeg

GRID_WIDTH = 1920
"""Largest width of a grid in pixels, as published."""

MIN_CELL = 480
"""Pixels up to which small videos are enlarged, where there is room."""

_TALL = 1.07  # height to width of a cell: a square frame with a line of text below it


def write_grid(
    videos: Sequence[str | Path],
    output: str | Path,
    *,
    fps: int = 30,
    max_seconds: float = 180.0,
    repeat: bool = False,
) -> Path:
    """Combine videos to a grid that is as long as the longest of them.

    Videos keep their proportions and their speed. They are reduced if they have to be, and enlarged only by a whole
    number, so that tiles stay sharp.

    Args:
        videos: files, row by row; a last row that is not full is centred. See `count_columns` and `place_cells`.
        output: mp4 file to write, at most `GRID_WIDTH` pixels wide.
        fps: frames per second of the output.
        max_seconds: longest duration of the output, in seconds.
        repeat: show shorter videos again and again, as published, instead of holding their last frame.

    Returns:
        The path of the output.

    Raises:
        MissingVideoError: imageio-ffmpeg is not installed.
        ValueError: there are no videos, one has no frames, or the output has an ending of no video.
        RuntimeError: a file is no video.
        VideoError: the encoder failed, or the file cannot be written. An earlier file is kept.
    """
    if not videos:
        raise ValueError("videos: expected at least one, got none")
    output = Path(output)
    container = H264_FORMATS.get(output.suffix.lower())
    if container is None:
        raise ValueError(f"output: expected a name that ends in {', '.join(H264_FORMATS)}, got {str(output)!r}")
    module = ffmpeg()
    seconds = min(max_seconds, max(_seconds(path) for path in videos))
    (cell_width, cell_height), cells = place_cells([_size(path) for path in videos])

    command = [executable(module), "-y", "-loglevel", "error"]
    for path in videos:
        command += [*(("-stream_loop", "-1") if repeat else ()), "-threads", "1", "-i", str(Path(path).absolute())]

    colour = "0x" + bytes(BACKGROUND).hex()
    filters, places = [], []
    for i, (x, y, width, height) in enumerate(cells):
        left, top = (cell_width - width) // 4 * 2, (cell_height - height) // 4 * 2
        flags = "neighbor" if _size(videos[i])[0] < width else "area"
        fit = f"scale={width}:{height}:flags={flags}:out_color_matrix=bt709"
        fit += f",pad={cell_width}:{cell_height}:{left}:{top}:{colour},setsar=1"
        filters.append(f"[{i}:v]{fit},fps={fps}[v{i}]")
        places.append(f"{x}_{y}")
    final = "v0"
    if len(videos) > 1:
        inputs = "".join(f"[v{i}]" for i in range(len(videos)))
        # The last frame of a video that has ended is held.
        filters.append(f"{inputs}xstack=inputs={len(videos)}:layout={'|'.join(places)}:fill={colour}[grid]")
        final = "grid"

    partial = temporary_path(output.absolute())
    command += ["-filter_complex", ";".join(filters), "-map", f"[{final}]", "-frames:v", str(math.ceil(seconds * fps))]
    command += [*H264_OPTIONS, "-map_metadata", "-1", "-f", container, str(partial)]
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
    return output


def count_columns(videos: int) -> int:
    """Return the columns of a grid: about as many as rows, or up to half as many more if that leaves fewer cells empty.

    Example:
        >>> [count_columns(videos) for videos in (1, 3, 4, 5, 10)]
        [1, 3, 2, 3, 5]
    """
    least = math.ceil(math.sqrt(videos))
    return min(range(least, math.ceil(1.5 * math.sqrt(videos)) + 1), key=lambda columns: -videos % columns)


def place_cells(sizes: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], list[tuple[int, int, int, int]]]:
    """Return where videos lie in a grid. All numbers are even, since two by two pixels share a colour.

    Args:
        sizes: width and height of each video, in pixels.

    Returns:
        Width and height of all cells; and for each video the corner of its cell, x and y, and the width and height
        that it is shown with.
    """
    columns = count_columns(len(sizes))
    limit = min(GRID_WIDTH // columns, max(MIN_CELL, *(side for size in sizes for side in size)))
    shown = []
    for width, height in sizes:
        factor = min(limit / width, _TALL * limit / height)
        factor = int(factor) if factor >= 1 else factor
        shown.append((max(2, int(width * factor) // 2 * 2), max(2, int(height * factor) // 2 * 2)))
    cell_width, cell_height = (max(sides) for sides in zip(*shown, strict=True))

    cells = []
    for i, (width, height) in enumerate(shown):
        row, column = divmod(i, columns)
        empty = columns - min(columns, len(sizes) - row * columns)
        cells.append((column * cell_width + empty * cell_width // 4 * 2, row * cell_height, width, height))
    return (cell_width, cell_height), cells


def _size(path: str | Path) -> tuple[int, int]:
    """Return width and height of a video."""
    reader = ffmpeg().read_frames(str(Path(path).absolute()))
    try:
        width, height = next(reader)["size"]
        return int(width), int(height)
    finally:
        reader.close()


def _seconds(path: str | Path) -> float:
    frames, seconds = ffmpeg().count_frames_and_secs(str(Path(path).absolute()))
    if not frames:
        raise ValueError(f"{path}: expected a video, found no frames")
    return float(seconds)
