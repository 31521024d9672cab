"""Find the Parquet files of one split, and check that they are all there, once each, readable and unchanged."""

from __future__ import annotations

import filecmp
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoint_files import LFS_POINTER
from ..errors import DataError, one_line
from .collection import Collection

if TYPE_CHECKING:
    import pyarrow as pa

_NUMBERED = re.compile(r"(\d+)-of-(\d+)")
_MAGIC = b"PAR1"


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a split.

    Attributes:
        path: of the file.
        rows: number of its rows.
        types: its Arrow schema.
    """

    path: Path
    rows: int
    types: pa.Schema


def open_split(folder: Path, split: str, described: Collection | None) -> list[Shard]:
    """Find the files of a split, read their footers, and compare them with the description of `jat-engine collect`.

    Args:
        folder: of the task.
        split: "train" or "test".
        described: what is in `collection.json`; None without one.

    Returns:
        The files in order; an empty list if the task does not have the split.

    Raises:
        DataError: see `find_shards`, `open_shards` and `Collection.check_names`.
    """
    shards = open_shards(find_shards(folder, split))
    if described is not None:
        described.check_names(folder, split, {shard.path.name: shard.rows for shard in shards})
    return shards


def find_shards(folder: Path, split: str) -> list[Path]:
    """Return the files of a split by their names, in order; an empty list if there is none.

    Episodes that an evaluation saved, `episode-0000.parquet` and so on, are of the split train, as for `datasets`.

    Args:
        folder: of the task.
        split: "train" or "test".

    Raises:
        DataError: see `check_numbers`.
    """
    episodes = r"|episode-\d+" if split == "train" else ""
    pattern = re.compile(rf"({re.escape(split)}([-._ ].*)?{episodes})\.parquet")
    files = sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name))
    check_numbers(files)
    return files


def check_numbers(files: Sequence[Path]) -> None:
    """Check that files of a split that are numbered, as `train-00000-of-00003.parquet`, are all there, and no others.

    Args:
        files: in one folder.

    Raises:
        DataError: names the file that is missing or too many.
    """
    numbered = {path: match for path in files if (match := _NUMBERED.search(path.name))}
    if not numbered:
        return

    other = [path for path in files if path not in numbered]
    if other:
        raise DataError(
            f"{other[0]}: expected only files named as {next(iter(numbered)).name}, got another name, whose episodes "
            "may be in the others too; move it away, or number all files alike"
        )

    by_total: dict[int, list[Path]] = defaultdict(list)
    for path, match in numbered.items():
        by_total[int(match[2])].append(path)
    if len(by_total) > 1:
        named = ", ".join(f"{len(paths)} of {total} ({paths[0].name})" for total, paths in sorted(by_total.items()))
        raise DataError(
            f"{files[0].parent}: expected files of one set, got those of {len(by_total)}: {named}; move away all files "
            "of the older one, whose episodes would count twice"
        )

    seen: dict[int, Path] = {}
    for path, match in numbered.items():
        number = int(match[1])
        if number in seen:
            raise DataError(
                f"{path}: expected one file with the number {match[1]}, got {seen[number].name} as well; move one of "
                "them away"
            )
        seen[number] = path

    (total,) = by_total
    expected = range(1, total + 1) if 0 not in seen and total in seen else range(total)
    missing = [number for number in expected if number not in seen]
    if missing:
        path, match = next(iter(numbered.items()))
        names = [
            _NUMBERED.sub(f"{number:0{len(match[1])}d}-of-{match[2]}", path.name, count=1) for number in missing[:3]
        ]
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise DataError(
            f"{path.parent}: expected {total} files, got {len(seen)}, without {', '.join(names)}{more}; copy or "
            "download the dataset again"
        )
    beyond = [path for number, path in seen.items() if number not in expected]
    if beyond:
        raise DataError(f"{beyond[0]}: expected a number below {total}, got a higher one; move the file away")


def open_shards(files: Sequence[Path]) -> list[Shard]:
    """Read the footers of Parquet files, which have their schemas and numbers of rows.

    Args:
        files: of one split.

    Raises:
        DataError: a file is not there, not a whole Parquet file, or has the same bytes as another.
    """
    shards = [_open(path) for path in files]

    by_size: dict[int, list[Path]] = defaultdict(list)
    for shard in shards:
        if shard.rows:
            by_size[shard.path.stat().st_size].append(shard.path)
    for same in by_size.values():
        for first, second in combinations(same, 2):
            if filecmp.cmp(first, second, shallow=False):
                raise DataError(
                    f"{second}: expected other episodes than those of {first.name}, got the same file twice; move one "
                    "of them away, or download the one that was overwritten again"
                )
    return shards


def _open(path: Path) -> Shard:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.is_symlink() and not path.exists():
        raise DataError(f"{path}: expected a Parquet file, got a link to {path.readlink()}, which is not there")
    if not path.is_file():
        raise DataError(f"{path}: expected a Parquet file, got no file but a folder or device; move it away")
    try:
        with path.open("rb") as file:
            head = file.read(len(LFS_POINTER))
            size = file.seek(0, 2)
            file.seek(max(0, size - len(_MAGIC)))
            tail = file.read()
    except OSError as error:
        raise DataError(f"{path}: expected a file that can be read: {error.strerror}") from error

    if head == LFS_POINTER:
        raise DataError(f"{path}: expected a Parquet file, got the pointer of Git LFS to one; run `git lfs pull` there")
    if not head:
        raise DataError(f"{path}: expected a Parquet file, got an empty one; copy or download it again")
    if head[: len(_MAGIC)] != _MAGIC:
        raise DataError(f"{path}: expected a Parquet file, got something else that begins with {head[:16]!r}")
    if tail != _MAGIC:
        raise DataError(f"{path}: expected a whole Parquet file, got one cut off at {size} bytes; copy it again")

    try:
        with pq.ParquetFile(path) as parquet:
            return Shard(path, parquet.metadata.num_rows, parquet.schema_arrow)
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise damaged(path, error) from None


def damaged(path: Path, error: Exception) -> DataError:
    """Return the error for a Parquet file that cannot be read."""
    words = one_line(error)
    return DataError(
        f"{path}: expected a parquet file, got one that cannot be read: {words}; copy or download it again"
    )
