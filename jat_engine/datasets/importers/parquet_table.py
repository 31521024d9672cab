"""Read Parquet files with one row per step, in pieces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError
from ..arrow import is_list, plain, strings
from ..shards import damaged, open_shards
from .columns import choose_columns
from .source import RawEpisode, Source
from .steps import Rows, episodes

_ROWS = 4096
"""Rows of a piece."""


def open_parquet(path: Path, columns: Mapping[str, tuple[str, ...]]) -> Source:
    """Open a Parquet file, or a folder of them, with one row per step.

    Args:
        path: the file; or a folder, whose *.parquet files are read in the order of their names.
        columns: the return value of `parse_columns`.

    Raises:
        DataError: there is no such file, it is not a Parquet file, or columns are missing.
    """
    import pyarrow as pa

    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path}: expected *.parquet files with one row per step, got none")
    shards = open_shards(files)
    names = list(shards[0].types.names)
    chosen = choose_columns(columns, names, source=str(files[0]), file_per_episode=path.is_dir())
    for shard in shards[1:]:
        for name in chosen.used:
            if name not in shard.types.names:
                raise DataError(f"{shard.path}: column {name!r} is missing, which {files[0].name} has")

    notes: list[str] = []

    def read() -> Iterator[RawEpisode]:
        return episodes(read_rows(files, chosen.used), chosen, notes)

    return Source(
        "parquet",
        str(path),
        f"the Parquet table `{path.name}`",
        read,
        chosen.by_use,
        [f"column {name}" for name in names if name not in chosen.used],
        notes,
        versions={"pyarrow": pa.__version__},
    )


def read_rows(files: Sequence[Path], names: Sequence[str]) -> Iterator[Rows]:
    """Yield the rows of Parquet files in pieces.

    Args:
        files: in order.
        names: columns to read; all files have them.

    Raises:
        DataError: a file is damaged, or a column has no numbers or strings; names file, column and row.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    for file in files:
        first = 0
        try:
            with pq.ParquetFile(file) as parquet:
                for batch in parquet.iter_batches(batch_size=_ROWS, columns=list(names)):
                    arrays = {name: _array(batch.column(name), f"{file}: column {name}", first) for name in names}
                    if batch.num_rows:
                        yield Rows(str(file), first, arrays)
                    first += batch.num_rows
        except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
            raise damaged(file, error) from None


def _array(column: Any, where: str, first: int) -> np.ndarray:
    """Return a column as an array [rows, ...]."""
    import pyarrow as pa

    values = plain(column)
    if values.null_count:
        row = first + values.is_null().to_pylist().index(True)
        raise DataError(f"{where}, row {row}: expected a value, got none; fill or remove the row")
    if is_list(values.type):
        return _lists(values, where, first)
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        return np.array(strings(values, where), object)
    if pa.types.is_boolean(values.type) or pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        return np.asarray(values.to_numpy(zero_copy_only=False))
    raise DataError(f"{where}: expected numbers, lists of numbers or strings, got {values.type}; convert the column")


def _lists(values: Any, where: str, first: int) -> np.ndarray:
    """Return a column of lists of one size as an array [rows, size, ...]."""
    import pyarrow.compute as pc

    sizes = np.asarray(pc.list_value_length(values).to_numpy(zero_copy_only=False))
    size = int(sizes[0]) if len(sizes) else 0
    if (sizes != size).any():
        row = int(np.argmax(sizes != size))
        raise DataError(
            f"{where}, row {first + row}: expected {size} values as in row {first}, got {int(sizes[row])}; every step "
            "has the same size"
        )
    inner = plain(values.flatten())
    if inner.null_count:
        row = first + inner.is_null().to_pylist().index(True) // size
        raise DataError(f"{where}, row {row}: expected numbers, got a missing one; fill or remove the row")
    flat = _array(inner, where, first)
    return flat.reshape(len(sizes), size, *flat.shape[1:])
