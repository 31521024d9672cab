"""Read episodes from a folder of `jat-engine collect`, a folder of `save_to_disk`, or a dataset on the hub."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa


def _rows_at_once(names: list[str]) -> int:
    """Return how many rows to read at once: few of episodes with images, which take megabytes each."""
    return 2 if "image_observations" in names else 256


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of a dataset.

    Attributes:
        table: the rows.
        where: their file or dataset, for error messages.
        first: number of the first row within the file or dataset.
    """

    table: pa.Table
    where: str
    first: int


@dataclass(frozen=True)
class Source:
    """One split of one task.

    Attributes:
        where: folder or dataset, for error messages.
        fingerprint: changes whenever the data does; None if that cannot be known.
        read: returns an iterator over all rows, from the first.
    """

    where: str
    fingerprint: str | None
    read: Callable[[], Iterator[Rows]]


def open_source(
    dataset: str, task: str, split: str, *, cache_dir: str | None = None, streaming: bool = False
) -> Source | None:
    """Open one split of a task.

    Args:
        dataset: a folder, or the name of a dataset on the hub, as "owner/name".
        task: name of the task or text dataset.
        split: "train" or "test".
        cache_dir: folder for downloads; None takes that of `datasets`.
        streaming: read hub data when it is needed, without keeping it on disk.

    Returns:
        The source, or None if the dataset has the task but not this split.

    Raises:
        DataError: there is no such folder or dataset, or it does not have the task.
    """
    folder = Path(dataset)
    if not folder.is_dir():
        if dataset.startswith((".", "/", "~")) or dataset.count("/") != 1:
            raise DataError(f"--dataset: expected a folder or the name of a dataset on the hub, got {dataset!r}")
        return _hub(dataset, task, split, cache_dir, streaming)
    if any((folder / task).glob("*.parquet")):
        files = sorted((folder / task).glob(f"{split}-*.parquet"))
        return _parquet(files) if files else None
    if any((folder / task / name).exists() for name in ("dataset_dict.json", "dataset_info.json")):
        return _saved(folder / task, split)
    if any(folder.glob("*.md")) or any(folder.rglob("*.parquet")):
        return _hub(dataset, task, split, cache_dir, streaming)
    raise DataError(f"{folder}: expected the task's folder {folder / task} with train-*.parquet, got none")


def _parquet(files: list[Path]) -> Source:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def read() -> Iterator[Rows]:
        for file in files:
            first = 0
            try:
                with pq.ParquetFile(file) as parquet:
                    for batch in parquet.iter_batches(batch_size=_rows_at_once(parquet.schema_arrow.names)):
                        yield Rows(_table(batch), str(file), first)
                        first += batch.num_rows
            except (OSError, pa.ArrowException) as error:
                raise DataError(f"{file}: expected a parquet file, got one that cannot be read: {error}") from None

    state = "\n".join(f"{file.resolve()} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)
    return Source(str(files[0].parent), hashlib.sha256(state.encode()).hexdigest(), read)


def _saved(folder: Path, split: str) -> Source | None:
    import datasets

    loaded: Any = datasets.load_from_disk(str(folder))
    if isinstance(loaded, dict):
        if split not in loaded:
            return None
        loaded = loaded[split]
    elif split != "train":
        return None
    return _dataset(loaded, str(folder))


def _hub(name: str, task: str, split: str, cache_dir: str | None, streaming: bool) -> Source | None:
    import datasets

    try:
        loaded = datasets.load_dataset(name, task, split=split, cache_dir=cache_dir, streaming=streaming)
    except (ValueError, OSError) as error:
        # Asked for this way, since a list of the splits cannot be had without the hub.
        if re.match(r"(Unknown|Bad) split", str(error)):
            return None
        # There is no such dataset or configuration, or no way to the hub.
        raise DataError(f"--dataset {name}: {task}: {' '.join(str(error).split())}") from error
    return _dataset(loaded, f"{name} ({task}, {split})")


def _dataset(dataset: Any, where: str) -> Source:
    def read() -> Iterator[Rows]:
        first = 0
        for table in dataset.with_format("arrow").iter(batch_size=_rows_at_once(dataset.column_names or [])):
            yield Rows(table, where, first)
            first += table.num_rows

    return Source(where, getattr(dataset, "_fingerprint", None), read)


def _table(batch: pa.RecordBatch) -> pa.Table:
    import pyarrow as pa

    return pa.Table.from_batches([batch])
