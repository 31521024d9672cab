"""Episodes -> a folder of arrays, made once and mapped into memory by every later run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import DataError
from .arrays import ArrayFolder
from .segments import Cutter, PieceSettings
from .sources import Source

_VERSION = 1
"""Of the layout; folders of another are not used."""

_OFFSETS = {"piece_start": "piece_steps", "plane_index": "planes", "image_start": "image_bytes"}
"""Arrays whose numbers count the rows of another one."""


def prepare(
    source: Source,
    settings: PieceSettings,
    processor: Any,
    root: Path,
    progress: Callable[[int], object] | None = None,
) -> Path:
    """The folder of a split's pieces, made unless it is there; under a temporary name until it is complete.

    Args:
        source: the episodes.
        processor: whose tokenizer texts go through.
        root: where such folders are kept.
        progress: called with the number of episodes that were just read.

    Raises:
        DataError: names file, row, column, what was expected and what came. Nothing is left behind then.
    """
    key = json.dumps([_VERSION, source.fingerprint, asdict(settings)], sort_keys=True)
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    folder = root / f"{settings.task}-{settings.split}-{digest}"
    if (folder / "pieces.json").exists():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    temporary = root / f".{folder.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        _write(source, Cutter(settings, processor), temporary, progress)
        try:
            temporary.rename(folder)
        except OSError:  # another process was faster
            if not (folder / "pieces.json").exists():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _write(source: Source, cutter: Cutter, folder: Path, progress: Callable[[int], object] | None) -> None:
    num_steps = num_pieces = 0
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
            first = {"piece_steps": num_steps, "planes": 0, "image_bytes": 0}
            first |= {name: arrays.num_rows(name) for name in ("planes", "image_bytes")}
            for name, array in cut.items():
                arrays.append(name, array + first[_OFFSETS[name]] if name in _OFFSETS else array)
            num_steps += len(cut["rewards"] if "rewards" in cut else cut["input_ids"])
            num_pieces += len(cut["piece_start"])
            if progress is not None:
                progress(rows.table.num_rows)
        if not num_pieces:
            raise DataError(f"{source.where}: {cutter.settings.split}: expected at least one episode or text, got none")
        if len(cutter.missions):
            arrays.append("missions", cutter.missions)
    (folder / "pieces.json").write_text(
        json.dumps(
            {
                **asdict(cutter.settings),
                "num_episodes": cutter.num_episodes,
                "num_steps": num_steps,
                "source": source.where,
            }
        )
    )


def _words(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
