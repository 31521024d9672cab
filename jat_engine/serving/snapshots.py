"""Snapshots of sessions in a folder, from which a server goes on with the sessions of one that has ended.

A file holds one session, and has the SHA-256 of its token for a name: a list of the folder does not show the tokens.

    magic    8 bytes, "JATSESS1"
    length   4 bytes, little-endian: of the header
    header   msgpack: the number of the last request, its reply, settings and counters
    digest   32 bytes: SHA-256 of all before
    blob     `AgentSession.snapshot()`, which has a digest of its own
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar

import numpy as np

from ..atomic_io import check_writable, remove_temporaries, write_bytes
from ..engine.snapshot import Captured
from ..errors import InputError
from . import codec
from .requests import Reply, Settings
from .sessions import ServedSession
from .spaces import describe_space, parse_space

logger = logging.getLogger(__name__)
T = TypeVar("T")

SUFFIX = ".session"

_MAGIC = b"JATSESS1"
_BEGIN = len(_MAGIC) + 4
"""Bytes before the header."""

_DIGEST_BYTES = 32
_MOST_HEADER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class StoredSession:
    """A session as a file has it.

    Attributes:
        fields: of `describe_session`.
        blob: snapshot of the engine's session.
    """

    fields: dict[str, Any]
    blob: bytes


class SnapshotStore:
    """Snapshots in a folder, which several servers may share. Files are read and written in a thread of their own.

    Attributes:
        folder: of the files.
        max_age_s: seconds after which a file that is not written any more is removed.
        max_bytes: of all files; the oldest ones are removed to make room. Servers that share a folder may exceed it
            between two calls of `remove_old`.
    """

    def __init__(self, folder: Path, max_age_s: float, max_bytes: int) -> None:
        """Make the folder if it is not there.

        Raises:
            ValueError: it cannot be written to.
        """
        self.folder, self.max_age_s, self.max_bytes = folder, max_age_s, max_bytes
        self._num_bytes: int | None = None
        """Bytes of the files when they were last looked at, and of all that were written since; None before."""
        check_writable("--state_dir", folder)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="jat-engine snapshots")  # one: in their order

    async def write(self, token: str, fields: dict[str, Any], captured: Captured) -> int:
        """Write a session's file, unless one is there whose last request has the same number or a later one.

        Args:
            token: of the session.
            fields: of `describe_session`.
            captured: state of the engine's session.

        Returns:
            Bytes of the file; 0 if it was not written.

        Raises:
            OSError: it cannot be written.
        """
        return await self._run(lambda: self._write(self._path(token), fields, captured))

    async def read(self, token: str) -> StoredSession | None:
        """Return the session of a token; None if there is none, or a damaged file."""
        return await self._run(lambda: _read_file(self._path(token)))

    async def remove(self, token: str, seq: int) -> None:
        """Remove the session of a token, unless a server that has gone on with it has written it. Raises `OSError`.

        Args:
            token: of the session.
            seq: number of the last request that the caller has carried out.
        """
        await self._run(lambda: _remove_file(self._path(token), seq))

    async def remove_old(self) -> None:
        """Remove files that were not written for `max_age_s` or are too many, and unfinished ones of killed servers."""
        await self._run(self._remove_old)

    def close(self) -> None:
        """Finish what has been begun, and end the thread."""
        self._thread.shutdown()

    async def _run(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def _path(self, token: str) -> Path:
        return self.folder / f"{hashlib.sha256(token.encode()).hexdigest()}{SUFFIX}"

    def _write(self, path: Path, fields: dict[str, Any], captured: Captured) -> int:
        written = _write_file(path, fields, captured)
        if self._num_bytes is not None:
            self._num_bytes += written  # a file that was replaced counts until they are looked at again
        if self._num_bytes is None or self._num_bytes > self.max_bytes:
            self._remove_old()
        return written

    def _remove_old(self) -> None:
        found: list[tuple[float, int, Path]] = []
        for path in [*self.folder.glob(f"*{SUFFIX}"), *self.folder.glob(f".*{SUFFIX}.*.tmp")]:
            with contextlib.suppress(OSError):  # another server was quicker
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        found.sort()
        num_bytes, before, num_evicted = sum(size for _, size, _ in found), time.time() - self.max_age_s, 0
        for modified, size, path in found:
            is_newest = path == found[-1][2]
            if modified >= before and (num_bytes <= self.max_bytes or is_newest):
                break
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                logger.warning("%s: cannot be removed: %s", path, error)
                continue
            num_bytes -= size
            num_evicted += modified >= before
        if num_evicted:
            logger.warning(
                "%s: %d snapshots were removed, since all take more than %d bytes (--state_max_gb)",
                self.folder,
                num_evicted,
                self.max_bytes,
            )
        self._num_bytes = num_bytes


def describe_session(session: ServedSession) -> dict[str, Any]:
    """Return what a file has of a session besides the engine's snapshot, as values that `codec.pack` takes."""
    settings, reply = session.settings, session.last_reply
    return {
        "seq": session.last_seq,
        "action": None if reply is None else reply.action,
        "prediction": None if reply is None else reply.prediction,
        "task": settings.task,
        "space": None if settings.space is None else describe_space(settings.space, with_bounds=True),
        "window": settings.window,
        "given_seed": settings.seed,
        "deterministic": settings.deterministic,
        "seed": session.seed,
        "opened_window": session.opened_window,
        "steps": session.steps,
        "episodes": session.episodes,
        "return": session.return_,
    }


_KINDS: dict[str, tuple[type, ...]] = {
    "seq": (int,),
    "action": (int, list, NoneType),
    "prediction": (np.ndarray, NoneType),
    "task": (str, NoneType),
    "space": (dict, NoneType),
    "window": (int, NoneType),
    "given_seed": (int, NoneType),
    "deterministic": (bool, NoneType),
    "seed": (int,),
    "opened_window": (int, NoneType),
    "steps": (int,),
    "episodes": (int,),
    "return": (float,),
}
"""Types of the fields of `describe_session`."""


@dataclass(frozen=True, slots=True)
class SessionState:
    """State of a session that `describe_session` has described. Attributes: see `ServedSession`."""

    settings: Settings
    seed: int
    opened_window: int | None
    steps: int
    episodes: int
    return_: float
    last_seq: int
    last_reply: Reply | None

    def apply(self, session: ServedSession) -> None:
        """Let a new session go on from this state."""
        session.settings, session.seed, session.opened_window = self.settings, self.seed, self.opened_window
        session.steps, session.episodes, session.return_ = self.steps, self.episodes, self.return_
        session.last_seq = session.saved_seq = session.told_seq = self.last_seq
        session.last_reply, session.begins = self.last_reply, False


def parse_session(fields: dict[str, Any]) -> SessionState:
    """Return the state that `describe_session` has described.

    Raises:
        InputError: a field is missing, of another type, or out of range.
    """
    for name, kinds in _KINDS.items():
        if name not in fields or type(fields[name]) not in kinds:
            got = type(fields[name]).__name__ if name in fields else "none"
            raise InputError(f"snapshot: expected {name} as this version writes it, got {got}")
    space, action, prediction = fields["space"], fields["action"], fields["prediction"]
    if isinstance(action, list) and not all(type(number) is float for number in action):
        raise InputError("snapshot: expected an action of numbers, got something else")
    settings = Settings(
        task=fields["task"],
        space=None if space is None else parse_space(space),
        window=fields["window"],
        seed=fields["given_seed"],
        deterministic=fields["deterministic"],
    )
    reply = None
    if action is not None:
        reply = Reply(action, 0.0, 0.0, 1, prediction=None if prediction is None else prediction.copy())
    return SessionState(
        settings,
        fields["seed"],
        fields["opened_window"],
        fields["steps"],
        fields["episodes"],
        fields["return"],
        fields["seq"],
        reply,
    )


def _write_file(path: Path, fields: dict[str, Any], captured: Captured) -> int:
    there = _read_header(path)
    if there is not None and there["seq"] >= fields["seq"]:  # of a server that has gone on with the session
        return 0
    header = codec.pack(fields)
    begin = _MAGIC + struct.pack("<I", len(header)) + header
    data = b"".join([begin, hashlib.sha256(begin).digest(), captured.to_bytes()])
    write_bytes(path, data)
    return len(data)


def _remove_file(path: Path, seq: int) -> None:
    there = _read_header(path)
    if there is None or there["seq"] <= seq:
        path.unlink(missing_ok=True)
        remove_temporaries(path)  # of servers that were killed


def _read_file(path: Path) -> StoredSession | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.warning("%s: cannot be read: %s", path, error)
        return None
    fields = _parse_header(data)
    if fields is None:
        logger.warning("%s: expected a session of this version, got a damaged or another file", path)
        return None
    (length,) = struct.unpack("<I", data[len(_MAGIC) : _BEGIN])
    return StoredSession(fields, data[_BEGIN + length + _DIGEST_BYTES :])


def _read_header(path: Path) -> dict[str, Any] | None:
    """Return the header of a file without reading the rest; None if there is no file, or as `_parse_header`."""
    try:
        with path.open("rb") as file:
            begin = file.read(_BEGIN)
            length = struct.unpack("<I", begin[len(_MAGIC) :])[0] if len(begin) == _BEGIN else 0
            return _parse_header(begin + file.read(min(length, _MOST_HEADER_BYTES) + _DIGEST_BYTES))
    except OSError:
        return None


def _parse_header(data: bytes) -> dict[str, Any] | None:
    """Return the header of a file; None if it is damaged or of another version."""
    if len(data) < _BEGIN or not data.startswith(_MAGIC):
        return None
    (length,) = struct.unpack("<I", data[len(_MAGIC) : _BEGIN])
    begin, digest = data[: _BEGIN + length], data[_BEGIN + length : _BEGIN + length + _DIGEST_BYTES]
    if length > _MOST_HEADER_BYTES or hashlib.sha256(begin).digest() != digest:
        return None
    try:
        fields = codec.unpack(begin[_BEGIN:])
    except InputError:
        return None
    return fields if isinstance(fields, dict) and type(fields.get("seq")) is int else None
