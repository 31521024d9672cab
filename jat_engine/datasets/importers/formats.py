"""Open demonstrations of any format that can be imported."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ...checkpoint_files import local_path
from ...errors import DataError
from .source import Source

FORMATS = ("minari", "lerobot", "npz", "parquet")
"""Formats that can be imported."""

_MINARI_ID = re.compile(r"[\w/-]+-v\d+")


def open_source(name: str, format: str | None, columns: Mapping[str, tuple[str, ...]]) -> Source:
    """Open demonstrations.

    Args:
        name: a file, a folder, or the id of a Minari dataset.
        format: one of `FORMATS`; None finds it out.
        columns: the return value of `parse_columns`.

    Raises:
        DataError: there is nothing of that name, or its format is not clear.
        ValueError: columns are given for Minari, which has none.
        ImportError: Minari is needed and not installed.
    """
    path = local_path(name)
    format = format or guess_format(name, path)
    if format == "minari":
        if columns:
            raise ValueError("--columns: expected none for Minari, whose datasets name their parts; leave it out")
        from .minari import open_minari

        return open_minari(str(path) if path.is_dir() else name)

    if not path.exists():
        hint = ""
        if format == "lerobot":
            hint = f"; `hf download {name} --repo-type dataset --local-dir FOLDER` downloads one from the hub"
        raise DataError(f"{name}: expected a file or folder, got none{hint}")
    if format == "lerobot":
        from .lerobot import open_lerobot

        return open_lerobot(path, columns)
    if format == "npz":
        from .npz import open_npz

        return open_npz(path, columns)
    from .parquet_table import open_parquet

    return open_parquet(path, columns)


def guess_format(name: str, path: Path) -> str:
    """Return the format of demonstrations by the names of their files.

    Args:
        name: as it was given.
        path: its path, if it has one.

    Raises:
        DataError: there is nothing of that name, or its format is not clear.
    """
    if path.is_file() and path.suffix in (".npz", ".parquet"):
        return path.suffix.removeprefix(".")
    if (path / "meta" / "info.json").exists():
        return "lerobot"
    if (path / "data" / "metadata.json").exists() or (path / "metadata.json").exists():
        return "minari"
    if path.is_dir():
        found = [suffix for suffix in ("npz", "parquet") if any(path.glob(f"*.{suffix}"))]
        if len(found) == 1:
            return found[0]
    if not path.exists() and _MINARI_ID.fullmatch(name):
        return "minari"
    if not path.exists():
        raise DataError(
            f"{name}: expected a file, a folder, or the id of a Minari dataset, such as mujoco/ant/expert-v0, got "
            "nothing of that name"
        )
    raise DataError(
        f"{name}: expected *.npz or *.parquet files, meta/info.json of LeRobot or data/metadata.json of Minari, got "
        f"none of them, or several; name its format with --format {', '.join(FORMATS)}"
    )
