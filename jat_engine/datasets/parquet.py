"""Write episodes to Parquet files, one row each, in shards of limited size. The files depend on the rows alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .frames import EncodedFrames, encode_frame
from .schema import features_dict

SHARD_BYTES = 500_000_000
"""Most bytes of a shard's rows, before compression (frames are PNG files, which hardly compress)."""

_ROW_GROUP_BYTES = 64_000_000
"""Bytes of rows from which on a row group is written; readers hold one group at a time, and no row is divided."""


def schema(names: Iterable[str]) -> pa.Schema:
    """Return the Arrow schema of RL columns, with the metadata that tells `datasets` images from bytes."""
    types = features_dict(names)
    fields = [pa.field(name, _arrow_type(feature)) for name, feature in types.items()]
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": types}})})


def _arrow_type(feature: Mapping[str, Any]) -> pa.DataType:
    if feature["_type"] == "Sequence":
        return pa.list_(_arrow_type(feature["feature"]))
    if feature["_type"] == "Image":
        return _IMAGE
    return pa.type_for_alias(feature["dtype"])


_IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def episode_row(episode: Mapping[str, Any]) -> pa.Table:
    """Convert a checked episode to a table of one row.

    Args:
        episode: the return value of `check_episode`.
    """
    types = schema(episode)
    rows = []
    for name, values in episode.items():
        if name == "image_observations":
            encoded = values if isinstance(values, EncodedFrames) else [encode_frame(frame) for frame in values]
            files = pa.array(encoded, pa.binary())
            steps = pa.StructArray.from_arrays([files, pa.nulls(len(files), pa.string())], fields=list(_IMAGE))
        elif isinstance(values, np.ndarray) and values.ndim == 2:
            offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
            steps = pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1)))
        else:
            steps = pa.array(values)
        rows.append(pa.ListArray.from_arrays(np.array([0, len(steps)], np.int32), steps))
    return pa.Table.from_arrays(rows, schema=types)


def read_rows(path: Path) -> Iterator[pa.Table]:
    """Yield the rows of a Parquet file, each a table of one row."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            for row in range(len(table)):
                yield table.take([row])  # a copy: a slice that someone keeps would keep the whole group


class RowWriter:
    """Write a Parquet file row by row. The limits of row groups depend on the rows' sizes alone.

    Args:
        path: the file; an existing one is overwritten.
        types: schema of the rows.

    Attributes:
        rows: rows appended so far.
        size_bytes: their size in memory.
    """

    def __init__(self, path: Path, types: pa.Schema) -> None:
        self.path = path
        self.rows = 0
        self.size_bytes = 0
        self._writer = pq.ParquetWriter(path, types, compression="zstd", write_page_index=False)
        self._pending: list[pa.Table] = []
        self._pending_bytes = 0

    def append(self, row: pa.Table) -> None:
        """Append a table of one row."""
        self._pending.append(row)
        self._pending_bytes += row.nbytes
        self.rows += 1
        self.size_bytes += row.nbytes
        if self._pending_bytes >= _ROW_GROUP_BYTES:
            self._flush()

    def close(self, metadata: Mapping[str, str] | None = None) -> None:
        """Write pending rows and close the file.

        Args:
            metadata: stored in the file's footer.
        """
        self._flush()
        if metadata is not None:
            self._writer.add_key_value_metadata(dict(metadata))
        self._writer.close()

    def _flush(self) -> None:
        if self._pending:
            table = pa.concat_tables(self._pending).combine_chunks()
            self._writer.write_table(table, row_group_size=len(table))
            self._pending, self._pending_bytes = [], 0


class ShardWriter:
    """Write one split of a task as files `<split>-00000-of-00003.parquet` and so on, named when it is closed.

    Args:
        folder: of the task; exists.
        split: "train" or "test".
        types: schema of the rows.
        shard_bytes: most bytes of a shard's rows, before compression.
    """

    def __init__(self, folder: Path, split: str, types: pa.Schema, shard_bytes: int = SHARD_BYTES) -> None:
        self._folder, self._split, self._types, self._shard_bytes = folder, split, types, shard_bytes
        self._shards: list[RowWriter] = []

    def append(self, row: pa.Table) -> None:
        """Append a table of one row, beginning a new shard if the last one is full."""
        if not self._shards or self._shards[-1].size_bytes + row.nbytes > self._shard_bytes:
            if self._shards:
                self._shards[-1].close()
            path = self._folder / f"{self._split}-{len(self._shards):05d}.tmp"
            self._shards.append(RowWriter(path, self._types))
        self._shards[-1].append(row)

    def close(self) -> list[Path]:
        """Close and name the shards, and return their paths; an empty list if there was no row."""
        if self._shards:
            self._shards[-1].close()
        count = len(self._shards)
        names = [self._folder / f"{self._split}-{i:05d}-of-{count:05d}.parquet" for i in range(count)]
        for shard, name in zip(self._shards, names, strict=True):
            shard.path.replace(name)
        return names
