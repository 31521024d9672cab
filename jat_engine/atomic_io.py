"""Atomic writes of files, and locks on folders between processes."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if sys.platform != "win32":
    import fcntl


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8: write a temporary file in the same folder, then rename it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Write a JSON file atomically. NaN and infinities are not valid JSON and become null.

    Args:
        path: the file to write.
        value: dicts, lists, tuples, strings, numbers, bools and None. Keys of dicts are converted to strings.
        indent: spaces per level; None writes one line.
    """
    write_text(path, json.dumps(_strict(value), indent=indent, allow_nan=False) + "\n")


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder while the `with` block runs. Waits until no other process holds the lock; no lock on Windows."""
    descriptor = hold(folder, wait=True)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def hold(folder: Path, *, wait: bool) -> int | None:
    """Lock a folder for this process.

    Args:
        folder: an existing folder.
        wait: wait for another process to release the lock, instead of raising an error.

    Returns:
        A file descriptor. Closing it releases the lock. None on Windows, where folders are not locked.

    Raises:
        BlockingIOError: another process holds the lock, and `wait` is false.
    """
    if sys.platform == "win32":
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
