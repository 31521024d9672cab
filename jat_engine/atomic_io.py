"""Atomic writes of files, checks that they are possible, and locks on folders between processes."""

from __future__ import annotations

import contextlib
import glob
import json
import math
import os
import re
import secrets
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if sys.platform != "win32":
    import fcntl


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8; see `write_bytes`.

    Args:
        path: the file to write; its folder exists.
        text: its contents.

    Raises:
        OSError: the file cannot be written; names it. An existing file is left as it was.
    """
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, contents: bytes) -> None:
    """Write a file atomically: write a temporary file in the same folder, then rename it.

    A link stays one, and the file it points to is replaced. An existing file keeps its permissions.

    Args:
        path: the file to write; its folder exists.
        contents: its bytes.

    Raises:
        OSError: the file cannot be written; names it. An existing file is left as it was.
    """
    target = path.resolve() if path.is_symlink() else path
    temporary = temporary_path(target)
    with naming(path):
        try:
            with temporary.open("xb") as file:
                file.write(contents)
                file.flush()
                os.fsync(file.fileno())  # else a crash of the machine could leave an empty file under the new name
            if target.exists():
                temporary.chmod(stat.S_IMODE(target.stat().st_mode))
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """Return a hidden name in a file's folder, to write the file under until it is complete.

    Other writers of the file get other names. `remove_temporaries` removes what a killed process has left.
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


def remove_temporaries(path: Path) -> None:
    """Remove the incomplete files that writers of a file have left; see `temporary_path`.

    A writer that is still at work fails when it renames its file.
    """
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Path, remedy: str = "") -> Iterator[None]:
    """Name a file or folder in every OSError of the `with` block, such as of a full disk, which names none itself.

    Args:
        path: the file or folder that is written.
        remedy: added to the message.
    """
    try:
        yield
    except OSError as error:
        cause = _DETAIL.sub("", error.strerror or str(error))
        named = type(error)(f"{path}: cannot be written: {cause}{'; ' if remedy else ''}{remedy}")
        named.errno = error.errno
        raise named from error


_DETAIL = re.compile(r"^Error writing bytes to file. Detail: \[errno \d+\] ")  # of Arrow


def check_writable(field: str, folder: Path) -> None:
    """Check that a folder exists or can be created, and that files can be written to it. Creates nothing.

    Args:
        field: the flag or argument with the folder, for the message.
        folder: the folder.

    Raises:
        ValueError: they cannot; the message begins with `field`.
    """
    try:
        check_name(folder)
        existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"0")
    except (OSError, ValueError) as error:
        raise ValueError(f"{field}: expected a folder that can be written to, got {folder} ({error})") from None


def check_name(path: Path) -> None:
    """Check that a file could have a name.

    Raises:
        OSError: the name is too long.
        ValueError: it contains a NUL character.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        path.lstat()


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
        OSError: the folder's file system has no locks.
    """
    if sys.platform == "win32":
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError as error:  # some network file systems
        os.close(descriptor)
        raise OSError(f"{folder}: cannot be locked: {error.strerror}; use a folder on a local disk") from error
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
