"""Write files as a whole or not at all, and lock folders between processes."""

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
    """Write UTF-8 to a temporary file beside `path`, then rename it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Write strict JSON, as `write_text` does; NaN and infinities become null."""
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
    """Hold `folder`, once no other process does."""
    descriptor = hold(folder, wait=True)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def hold(folder: Path, *, wait: bool) -> int | None:
    """Lock a folder for this process and return the descriptor that ends the lock when it is closed; None on Windows.

    Raises:
        BlockingIOError: another process holds it, and `wait` is false.
    """
    if sys.platform == "win32":
        return None  # nothing keeps two commands apart there
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
