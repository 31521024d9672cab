"""Read datasets of LeRobot, versions 2.0 to 3, with pyarrow alone.

A folder has `meta/info.json`, `data/chunk-*/*.parquet` with one row per frame, and for each episode its number and
length in `meta/episodes/**/*.parquet` (version 3) or `meta/episodes.jsonl` (versions 2). A feature of shape [1] is a
column of numbers, one of shape [n] a column of lists. `next.reward` is what the action of its frame gave.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...errors import DataError
from ..shards import damaged, open_shards
from .columns import choose_columns
from .parquet_table import read_rows
from .source import RawEpisode, Source
from .steps import episodes

_COLUMNS: dict[str, tuple[str, ...]] = {
    "observation": ("observation.state", "observation.environment_state"),
    "action": ("action",),
    "reward": ("next.reward", "reward"),
    "episode": ("episode_index",),
}
_FILMED = ("image", "video")
_BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index")
_CONVERT = "python -m lerobot.datasets.v30.convert_dataset_v21_to_v30 --repo-id=OWNER/NAME"


def open_lerobot(path: Path, columns: Mapping[str, tuple[str, ...]]) -> Source:
    """Open a folder of LeRobot.

    Args:
        path: the folder, with `meta/info.json`.
        columns: the return value of `parse_columns`.

    Raises:
        DataError: a file is missing or damaged, the version is another, or columns are missing.
    """
    import pyarrow as pa

    info = _info(path)
    features: dict[str, Any] = info["features"]
    stored = [name for name, feature in features.items() if feature.get("dtype") not in _FILMED]
    for use, wanted in columns.items():
        if use in ("done", "timeout"):
            raise DataError(f"--columns {use}=: LeRobot numbers its episodes in episode_index; leave {use} out")
        for name in wanted:
            if name in features and name not in stored:
                raise DataError(
                    f"--columns {use}={','.join(wanted)}: {name} is stored as {features[name]['dtype']}; expected "
                    "numbers: videos and images of LeRobot are not imported"
                )
    chosen = choose_columns(columns, stored, source=str(path), known=_COLUMNS)

    files = sorted((path / "data").glob("*/*.parquet"))
    if not files:
        raise DataError(f"{path}: expected data/chunk-*/*.parquet, got none; download the whole dataset")
    for shard in open_shards(files):
        for name in chosen.used:
            if name not in shard.types.names:
                raise DataError(f"{shard.path}: column {name!r} is missing, which meta/info.json lists")

    lengths = _lengths(path)
    notes: list[str] = []

    def read() -> Iterator[RawEpisode]:
        missing = dict(lengths)
        for episode in episodes(read_rows(files, chosen.used), chosen, notes):
            expected = missing.pop(episode.key, 0)
            if len(episode.actions) != expected:
                raise DataError(
                    f"{episode.where}: expected {expected} frames, as meta/episodes says, got "
                    f"{len(episode.actions)}; download the dataset again"
                )
            yield episode
        if missing:
            raise DataError(
                f"{path}: expected {len(lengths)} episodes in data, as meta/episodes says, got none with the number "
                f"{next(iter(missing))}; download the dataset again"
            )

    return Source(
        "lerobot",
        str(path),
        f"the LeRobot dataset `{path.name}`",
        read,
        chosen.by_use,
        _dropped(features, chosen.used, info),
        notes,
        versions={"pyarrow": pa.__version__},
    )


def _dropped(features: Mapping[str, Any], used: list[str], info: Mapping[str, Any]) -> list[str]:
    """Return what is not imported, in words."""
    words: list[str] = []
    for name, feature in features.items():
        if name in used or name in _BOOKKEEPING:
            continue
        if feature.get("dtype") in _FILMED:
            words.append(f"{feature['dtype']} {name}")
        elif name == "task_index":
            words.append(f"language instructions ({info.get('total_tasks', 'some')} different)")
        else:
            words.append(f"column {name}")
    if info.get("fps"):
        words.append(f"timestamps ({info['fps']:g} frames a second)")
    return words


def _info(path: Path) -> dict[str, Any]:
    """Read `meta/info.json`.

    Raises:
        DataError: it is missing or damaged, or its version is not known.
    """
    file = path / "meta" / "info.json"
    try:
        info: Any = json.loads(file.read_text(encoding="utf-8"))
        version = str(info["codebase_version"])
        if not isinstance(info["features"], dict) or not all(isinstance(f, dict) for f in info["features"].values()):
            raise ValueError("features that are no mapping")
    except FileNotFoundError:
        raise DataError(f"{path}: expected a folder of LeRobot, got one without meta/info.json") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: expected what LeRobot writes, got {type(error).__name__}: {error}") from None
    if version.removeprefix("v").partition(".")[0] not in ("2", "3"):
        raise DataError(
            f"{file}: expected codebase_version v2.0, v2.1 or v3, got {version}; convert it with LeRobot: {_CONVERT}"
        )
    return dict(info)


def _lengths(path: Path) -> dict[int, int]:
    """Return the number of each episode and its frames, in order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted((path / "meta" / "episodes").glob("*/*.parquet"))
    older = path / "meta" / "episodes.jsonl"
    lengths: dict[int, int] = {}
    if files:
        for file in files:
            try:
                table = pq.read_table(file, columns=["episode_index", "length"]).to_pydict()
                pairs = zip(table["episode_index"], table["length"], strict=True)
                lengths.update((int(index), int(length)) for index, length in pairs)
            except (OSError, ValueError, pa.ArrowException, KeyError, TypeError) as error:
                raise damaged(file, error) from None
    elif older.exists():
        try:
            rows = [json.loads(line) for line in older.read_text(encoding="utf-8").splitlines() if line.strip()]
            lengths.update((int(row["episode_index"]), int(row["length"])) for row in rows)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{older}: expected what LeRobot writes, got {type(error).__name__}: {error}") from None
    else:
        raise DataError(f"{path}: expected meta/episodes/*/*.parquet, got none; download the whole dataset")
    return dict(sorted(lengths.items()))
