"""Read episodes from a folder of `jat-engine collect`, a folder of `save_to_disk`, or a dataset on the hub."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint_files import local_path
from ..envs import Task
from ..errors import DataError, one_line
from .schema import check_belong

if TYPE_CHECKING:
    import pyarrow as pa

    from .shards import Shard


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
        files: the local files that are read; empty for a dataset on the hub.
    """

    where: str
    fingerprint: str | None
    read: Callable[[], Iterator[Rows]]
    files: tuple[Path, ...] = ()


def open_source(
    dataset: str,
    name: str,
    split: str,
    *,
    task: Task | None = None,
    cache_dir: str | None = None,
    streaming: bool = False,
) -> Source | None:
    """Open one split of a task.

    Args:
        dataset: a folder, or the name of a dataset on the hub, as "owner/name".
        name: folder or configuration of the task or text dataset.
        split: "train" or "test".
        task: the RL task, whose columns are checked; None takes any columns.
        cache_dir: folder for downloads; None takes that of `datasets`.
        streaming: read hub data when it is needed, without keeping it on disk.

    Returns:
        The source, or None if the dataset has the task but not this split.

    Raises:
        DataError: there is no such folder or dataset, or it does not have the task.
    """
    folder = local_path(dataset)
    if not folder.is_dir():
        return _loaded(dataset, name, split, cache_dir, streaming)
    if any((folder / name).glob("*.parquet")):
        return _parquet(folder / name, task, split, streaming)
    if any((folder / name / file).exists() for file in ("dataset_dict.json", "dataset_info.json", "state.json")):
        return _saved(folder / name, split)

    names = local_tasks(folder)
    if any(folder.glob("*.md")) and name not in names:  # the card can give a task's files other names
        return _card(folder, name, task, split, cache_dir, streaming)
    raise DataError(_absent(folder, name, names))


def local_tasks(folder: Path) -> list[str]:
    """Return the names of the tasks whose episodes are in a folder, in alphabetical order."""
    return sorted({path.parent.name for pattern in _TASK_FILES for path in folder.glob(f"*/{pattern}")})


_TASK_FILES = ("*.parquet", "dataset_dict.json", "dataset_info.json")


def _absent(folder: Path, task: str, names: list[str]) -> str:
    """Say in words that `folder` does not have `task`, and what it has."""
    if any(folder.glob("*.parquet")) or (folder / "dataset_dict.json").exists():
        return (
            f"--dataset {folder}: expected the folder that has the folders of the tasks, got that of a task; name "
            f"{folder.parent}"
        )
    begun = (folder / ".incomplete" / task).is_dir()
    listed = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    has = f"the tasks there are {listed}" if names else "there are no tasks in it"
    hint = f"; finish it with `jat-engine collect --tasks {task} --output_dir {folder}`" if begun else ""
    return f"--dataset {folder}: expected the task's folder {folder / task} with train-*.parquet, got none; {has}{hint}"


def _parquet(folder: Path, task: Task | None, split: str, streaming: bool) -> Source | None:
    """Open the Parquet files of a task. All of them are checked before the first row is read."""
    from .collection import Collection
    from .shards import open_split

    described = Collection.read(folder)
    shards = open_split(folder, split, described)
    if not shards:
        if split == "train":
            names = ", ".join(sorted(path.name for path in folder.glob("*.parquet"))[:5])
            raise DataError(
                f"{folder}: expected files named train-*.parquet, got {names}; rename those of the split train"
            )
        return None

    def check() -> None:
        if described is not None:
            described.check_contents(folder, [shard.path.name for shard in shards])

    return _shards(shards, folder, task, check, streaming)


def _card(
    folder: Path, name: str, task: Task | None, split: str, cache_dir: str | None, streaming: bool
) -> Source | None:
    """Open the files that the card of a folder names for a task."""
    from .remote import local_files
    from .shards import check_numbers, open_shards

    files = local_files(folder, name, split)
    if not files:
        return None
    if all(path.suffix == ".parquet" for path in files):
        if len({path.parent for path in files}) == 1:
            check_numbers(files)
        return _shards(open_shards(files), folder, task, lambda: None, streaming)
    source = _loaded(str(folder), name, split, cache_dir, streaming)
    return None if source is None else replace(source, fingerprint=_state(files), files=tuple(files))


def _shards(
    shards: Sequence[Shard], folder: Path, task: Task | None, check: Callable[[], None], streaming: bool
) -> Source:
    """Return a source that reads Parquet files, after their columns and `check` have been found right."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from .arrow import check_header, has_texts
    from .shards import damaged

    for shard in shards:
        if task is not None:
            check_belong(shard.types.names, task, source=str(shard.path))
        if not has_texts(shard.types):
            check_header(shard.types, source=str(shard.path))

    files = [shard.path for shard in shards]
    checks = [check]  # done once; prepared data is read once, and a stream is checked before the training
    if streaming:
        checks.pop()()

    def read() -> Iterator[Rows]:
        while checks:
            checks[0]()
            checks.clear()
        for file in files:
            first = 0
            try:
                with pq.ParquetFile(file) as parquet:
                    for batch in parquet.iter_batches(batch_size=_rows_at_once(parquet.schema_arrow.names)):
                        yield Rows(_table(batch), str(file), first)
                        first += batch.num_rows
            except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
                raise damaged(file, error) from None

    return Source(str(folder), _state(files), read, tuple(files))


def _state(files: Sequence[Path]) -> str:
    """Return a hash that changes with the files."""
    states = "\n".join(f"{file.resolve()} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)
    return hashlib.sha256(states.encode()).hexdigest()


def _saved(folder: Path, split: str) -> Source | None:
    import datasets

    try:
        loaded: Any = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        words = one_line(error)
        raise DataError(f"{folder}: expected a whole folder of `save_to_disk`: {words}; copy it again") from error
    if isinstance(loaded, dict):
        if split not in loaded:
            return None
        loaded = loaded[split]
    elif split != "train":
        return None
    # Of the files as well: the fingerprint of `datasets` stays that of the first writing.
    files = tuple(sorted(folder.rglob("*.arrow")))
    return replace(_dataset(loaded, str(folder)), fingerprint=_state(files), files=files)


def _loaded(name: str, task: str, split: str, cache_dir: str | None, streaming: bool) -> Source | None:
    from .remote import load_split

    loaded = load_split(name, task, split, cache_dir=cache_dir, streaming=streaming)
    return None if loaded is None else _dataset(loaded, f"{name} ({task}, {split})")


def _dataset(dataset: Any, where: str) -> Source:
    def read() -> Iterator[Rows]:
        first = 0
        try:
            for table in dataset.with_format("arrow").iter(batch_size=_rows_at_once(dataset.column_names or [])):
                yield Rows(table, where, first)
                first += table.num_rows
        except (DataError, ImportError):
            raise
        except Exception as error:  # of `datasets` or of its file systems
            words = one_line(error.__cause__ or error)
            raise DataError(f"{where}: rows from {first}: expected rows that can be read: {words}") from error

    return Source(where, getattr(dataset, "_fingerprint", None), read)


def _table(batch: pa.RecordBatch) -> pa.Table:
    import pyarrow as pa

    return pa.Table.from_batches([batch])
