"""Folders of runs: their names, the lock of the one process that writes to them, and setting an old run aside."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from ..atomic_io import hold, remove_temporaries
from ..checkpoint_files import local_path
from .database import FILE_NAME, RunDatabase, RunError
from .recorders import REPLAY, TRAJECTORIES, VIDEOS
from .results import EVALUATIONS, REPORT, RESULTS, TIMING
from .text_results import TEXT_RESULTS


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

    Files that a process was writing when it was killed are removed.

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
        for name in (RESULTS, EVALUATIONS, TIMING, REPLAY, TEXT_RESULTS):
            remove_temporaries(folder / name)
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


def set_aside_texts(folder: Path) -> Path | None:
    """Move a folder's results of texts into a folder of their own. See `set_aside`."""
    path = folder / TEXT_RESULTS
    if not path.exists():
        return None
    aside = _new_folder(folder)
    path.rename(aside / path.name)
    return aside


def set_aside(folder: Path) -> Path | None:
    """Move a folder's run and everything made of it into a folder of its own, so that another one can be played.

    Returns:
        The new folder, such as `earlier-1` in the old one, which is a run like any other; None if there was nothing.
    """
    files = [path for name in _NAMES if (path := folder / name).exists()]
    if not files:
        return None
    with contextlib.suppress(RunError):  # such as of another version
        RunDatabase(folder).close()  # which takes in the log of a process that was killed
        files = [path for path in files if path.exists()]
    aside = _new_folder(folder)
    for path in files:
        path.rename(aside / path.name)
    return aside


def _new_folder(folder: Path) -> Path:
    aside = next(path for number in itertools.count(1) if not (path := folder / f"earlier-{number}").exists())
    aside.mkdir()
    return aside


_NAMES = (
    *(FILE_NAME + suffix for suffix in ("", "-wal", "-shm")),  # the last two are those of a run that was killed
    RESULTS,
    EVALUATIONS,
    TIMING,
    REPORT,
    REPLAY,
    VIDEOS,
    TRAJECTORIES,
)
