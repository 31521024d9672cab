"""Folders of runs: their names, the lock of the one process that writes to them, and setting an old run aside."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ..atomic_io import hold
from ..checkpoint_files import local_path
from .database import FILE_NAME, RunError
from .results import EVALUATIONS, RESULTS


def default_folder(source: str) -> Path:
    """Return the folder for results of a checkpoint: `results/`, and a name made of the checkpoint's.

    It never is a folder that `source` names, or the results would be taken for the checkpoint from then on.

    Args:
        source: a folder, or the name of a repository on the hub.

    Example:
        >>> str(default_folder("jat-project/jat"))
        'results/jat-project--jat'
    """
    path = local_path(source)
    if path.is_dir():
        path, here = path.resolve(), Path.cwd().resolve()
        path = path.relative_to(here) if path != here and path.is_relative_to(here) else Path(path.name)
    parts = [part for part in path.parts if part not in (path.anchor, "..")]
    return Path("results") / ("--".join(parts)[-200:].lstrip(".") or "checkpoint")


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Lock a folder against other runs while the `with` block runs; created if needed, removed if left empty.

    Raises:
        RunError: another process plays into it.
        OSError: the folder cannot be created.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = None
    try:
        descriptor = hold(folder, wait=False)
    except BlockingIOError:
        raise RunError(f"{folder}: another evaluation writes its results there; name another --output_dir") from None
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)
        with contextlib.suppress(OSError):  # not empty
            folder.rmdir()


def check_results(folder: Path) -> None:
    """Check that a folder has no results without their run, which cannot be added to.

    Raises:
        RunError: it has.
    """
    for name in (RESULTS, EVALUATIONS):
        if (folder / name).exists() and not (folder / FILE_NAME).exists():
            raise RunError(
                f"{folder}: has {name} without {FILE_NAME}, of unknown settings; name another --output_dir, or add "
                "--overwrite to set it aside"
            )


def set_aside(folder: Path) -> list[Path]:
    """Rename a folder's run and results, so that another one can be played into it; nothing is deleted.

    Returns:
        The new paths, such as `run.sqlite.1` and `results.json.1`.
    """
    names = [name for name in (FILE_NAME, f"{FILE_NAME}-wal", RESULTS, EVALUATIONS) if (folder / name).exists()]
    number = 1
    while any((folder / f"{name}.{number}").exists() for name in (FILE_NAME, RESULTS, EVALUATIONS)):
        number += 1
    moved = []
    for name in names:
        stem, wal, _ = name.partition("-wal")  # SQLite finds it by the name of its file
        moved.append((folder / name).rename(folder / f"{stem}.{number}{wal}"))
    return moved
