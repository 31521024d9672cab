"""Convert episodes to a folder of arrays, once; every later run maps them into memory."""

from __future__ import annotations

import errno
import hashlib
import json
import secrets
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..datasets.sources import Source
from ..envs import Task
from ..envs.task import folder_name
from ..errors import DataError
from .arrays import ArrayFolder
from .segments import INFO_FILE, START, Cutter, SegmentSettings

_VERSION = 1
"""Version of the folder's layout; folders of another version are not used."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of the file system that more room would mend."""

_OFFSETS = {START: "segment_steps", "plane_index": "planes", "image_start": "image_bytes"}
"""Array of indices -> the array whose rows they count. Indices of appended rows are shifted by what is there."""


def prepare(
    source: Source,
    settings: SegmentSettings,
    processor: Any,
    root: Path,
    progress: Callable[[int], object] | None = None,
    task: Task | None = None,
) -> Path:
    """Return the folder with the segments of one split, preparing it first if it does not exist.

    Its name has a hash of everything that its contents depend on. It has a temporary name until it is complete, so that
    several processes can prepare the same one.

    Args:
        source: the split's episodes or texts.
        settings: how they are cut.
        processor: a `JatProcessor`; its tokenizer encodes texts.
        root: parent of prepared folders.
        progress: called after each read with the number of episodes read.
        task: the RL task, whose columns the rows must have; None takes any columns.

    Returns:
        The folder: `pieces.json`, and one .npy file per array of `Cutter.cut`.

    Raises:
        DataError: the data is malformed or empty. Names file, row and column; no folder is left behind.
        OSError: the folder cannot be written.
    """
    key = json.dumps([_VERSION, source.fingerprint, asdict(settings)], sort_keys=True)
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    name = folder_name(settings.task)  # a text dataset may lie deeper
    folder = root / f"{name}-{settings.split}-{digest}"
    if _is_whole(folder):
        return folder

    shutil.rmtree(folder, ignore_errors=True)
    root.mkdir(parents=True, exist_ok=True)
    temporary = root / f".{folder.name}.{secrets.token_hex(6)}.tmp"  # processes of two containers can have one number
    temporary.mkdir()
    try:
        _write(source, Cutter(settings, processor, task), temporary, progress)
        try:
            temporary.rename(folder)
        except OSError:  # another process was faster
            if not _is_whole(folder):
                raise
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise OSError(
            f"--cache_dir: expected room in {root} for the prepared data of {settings.task}, got {error.strerror}; "
            "make room, name another folder, or read it with --streaming"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _write(source: Source, cutter: Cutter, folder: Path, progress: Callable[[int], object] | None) -> None:
    """Cut all rows of `source` and write their arrays and `INFO_FILE` to `folder`."""
    num_steps = num_segments = 0
    shapes: dict[str, tuple[int, ...]] = {}
    with ArrayFolder(folder) as arrays:
        for rows in source.read():
            if not rows.table.num_rows:
                continue
            cut = cutter.cut(rows)
            found = {name: array.shape[1:] for name, array in cut.items()}
            shapes = shapes or found
            if found != shapes:
                raise DataError(
                    f"{rows.where}: rows from {rows.first}: expected steps of the shapes {_words(shapes)}, as in the "
                    f"rows before, got {_words(found)}"
                )

            first = {"segment_steps": num_steps, "planes": 0, "image_bytes": 0}
            first |= {name: arrays.num_rows(name) for name in ("planes", "image_bytes")}
            for name, array in cut.items():
                arrays.append(name, array + first[_OFFSETS[name]] if name in _OFFSETS else array)

            num_steps += len(cut["rewards"] if "rewards" in cut else cut["input_ids"])
            num_segments += len(cut[START])
            if progress is not None:
                progress(rows.table.num_rows)

        if not num_segments:
            raise DataError(f"{source.where}: {cutter.settings.split}: expected at least one episode or text, got none")
        if len(cutter.missions):
            arrays.append("missions", cutter.missions)

    (folder / INFO_FILE).write_text(
        json.dumps(
            {
                **asdict(cutter.settings),
                "num_episodes": cutter.num_episodes,
                "num_steps": num_steps,
                "digest": digest(folder),
                "bytes": {path.name: path.stat().st_size for path in folder.glob("*.npy")},
                "source": source.where,
            }
        )
    )


def _is_whole(folder: Path) -> bool:
    """Return whether a prepared folder has all files that were written, uncut. A crash of the machine can cut them."""
    try:
        info = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
        sizes = info.get("bytes", {})  # none in folders of earlier releases
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def digest(folder: Path) -> str:
    """Return a hash of all arrays in a prepared folder. Equal data have an equal one, wherever they were read from."""
    whole = hashlib.sha256()
    for path in sorted(folder.glob("*.npy")):
        with path.open("rb") as file:
            whole.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


def _words(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
