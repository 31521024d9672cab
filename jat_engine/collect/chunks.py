"""Progress of an unfinished task: one atomically written Parquet file per chunk of episodes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..atomic_io import hold, naming, write_json
from ..datasets.parquet import RowWriter
from ..errors import DataError

RESUME = "finished chunks of episodes are kept: make room, or mend the folder, and run the same command again"
"""Remedy where an unfinished task cannot be written."""

_METADATA = "jat_engine.chunk"


@dataclass(frozen=True)
class Attempt:
    """One played episode, kept or not.

    Attributes:
        index: number among the task's attempts; its seed is the collection's seed + index.
        return_: sum of unclipped rewards.
        length: steps.
        success: None if the task does not define success.
        kept: the chunk has its row.
    """

    index: int
    return_: float
    length: int
    success: bool | None
    kept: bool


@dataclass(frozen=True)
class Chunk:
    """A file with the rows of those of some consecutive attempts that were kept.

    Attributes:
        path: the Parquet file.
        attempts: all attempts of the chunk, in order.
        expert: description of the expert that played.
    """

    path: Path
    attempts: tuple[Attempt, ...]
    expert: str


def write_chunk(
    folder: Path, types: pa.Schema, attempts: Sequence[Attempt], rows: Sequence[pa.Table], expert: str
) -> Chunk:
    """Write consecutive attempts to a new chunk in `folder`, atomically.

    Args:
        folder: exists.
        types: schema of the rows.
        attempts: at least one, in order.
        rows: tables of one row each, of the kept attempts, in order.
        expert: description of the expert that played.
    """
    first, last = attempts[0].index, attempts[-1].index
    path = folder / f"episodes-{first:07d}-{last:07d}.parquet"
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        writer = RowWriter(temporary, types)
        for row in rows:
            writer.append(row)
        record = {"expert": expert, "attempts": [asdict(attempt) for attempt in attempts]}
        writer.close({_METADATA: json.dumps(record)})
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return Chunk(path, tuple(attempts), expert)


class ChunkFolder:
    """Open the folder of an unfinished task and lock it against other processes.

    Args:
        folder: created if it does not exist.
        settings: everything that the episodes depend on; stored with the first chunk, and required to be equal later.

    Raises:
        DataError: another process collects this task, or the folder's chunks were made with other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self._lock = _lock(folder)
        try:
            self._check(settings)
            for temporary in folder.glob("*.tmp"):  # of a process that was killed
                temporary.unlink()
        except BaseException:
            self.close()
            raise

    def _check(self, settings: Mapping[str, Any]) -> None:
        """Compare `settings` with the stored ones, or store them if there are none, or no episodes that had them."""
        if (begun := begun_settings(self.folder)) is not None:
            check_settings(begun, settings, self.folder)
        else:
            for chunk in self.folder.rglob("episodes-*.parquet"):  # left by an interrupted removal
                chunk.unlink()
            write_json(self.folder / "settings.json", dict(settings), indent=2)

    def chunks(self) -> Iterator[Chunk]:
        """Yield the stored chunks in order. Removes files that cannot be read; their episodes are played again."""
        for path in sorted(self.folder.glob("episodes-*.parquet")):
            try:
                record = json.loads(pq.read_metadata(path).metadata[_METADATA.encode()])
                chunk = Chunk(path, tuple(Attempt(**attempt) for attempt in record["attempts"]), record["expert"])
            except (pa.ArrowException, OSError, KeyError, ValueError, TypeError):
                path.unlink()
                continue
            yield chunk

    def remove(self) -> None:
        """Remove the folder and unlock it: the task is finished."""
        shutil.rmtree(self.folder)
        self.close()
        with contextlib.suppress(OSError):  # other tasks are unfinished
            self.folder.parent.rmdir()

    def close(self) -> None:
        """Unlock the folder. A second call does nothing."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def begun_settings(folder: Path) -> dict[str, Any] | None:
    """Read the settings of an unfinished task.

    Args:
        folder: of its chunks.

    Returns:
        None if there are none, or no chunk that was played with them.

    Raises:
        DataError: see `read_settings`.
    """
    path = folder / "settings.json"
    stored = read_settings(path) if path.exists() else None
    return stored if any(folder.rglob("episodes-*.parquet")) else None


def read_settings(path: Path) -> dict[str, Any]:
    """Read the settings of an unfinished task.

    Args:
        path: its `settings.json`.

    Raises:
        DataError: the file is damaged.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(stored, dict) or not isinstance(stored.get("versions", {}), dict):
            raise ValueError("not the settings of a collection")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: expected what `jat-engine collect` writes, got {type(error).__name__}: {error}; delete "
            f"{path.parent} to start the task over"
        ) from None
    return stored


def check_settings(stored: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    """Check that stored episodes were collected with the settings that are wanted now.

    Args:
        stored: settings of the stored episodes.
        wanted: settings of this call.
        folder: their folder, for the error message.

    Raises:
        DataError: names the first setting that differs.
    """
    before, now = _flat(stored), _flat(wanted)
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            raise DataError(
                f"{folder}: expected what was collected with {name} {now.get(name)}, got {before.get(name)}; use the "
                f"same again, or another --output_dir, or delete {folder} to start over"
            )


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {**settings, **settings.get("versions", {}), "versions": None}


def _lock(folder: Path) -> int | None:
    """Create `folder` and lock it for this process, until it closes the returned descriptor or ends.

    Raises:
        DataError: another process holds the lock.
    """
    while True:
        with naming(folder):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = hold(folder, wait=False)
        except BlockingIOError:
            raise DataError(f"{folder}: another process is collecting this task; wait for it or stop it") from None
        if descriptor is None or _is(folder, descriptor):
            return descriptor
        os.close(descriptor)  # another process finished the task and removed the folder just now


def _is(folder: Path, descriptor: int) -> bool:
    return folder.exists() and os.path.samestat(folder.stat(), os.fstat(descriptor))
