"""Record what sessions do: every step, in files that `jat-engine replay` plays again.

The event loop only appends to lists. A thread compresses and writes the files, up to a limit of bytes. If it falls
behind, or the disk is full, episodes are missing or end early in the record, and the server goes on.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic_io import check_writable, write_bytes
from ..errors import one_line
from .record_format import SUFFIX, VERSION, Part, RecordedStep, signature, step_settings
from .requests import Act, Reply
from .sessions import ServedSession

logger = logging.getLogger(__name__)

_STEPS_OF_PART, _BYTES_OF_PART = 512, 2 * 1024**2
"""Steps, or bytes of memory, with which a part is full."""

_STEP_BYTES = 200
"""Estimate of the memory that a step takes besides its observation."""

_MOST_WAITING = 64
"""Parts that wait for the disk; further ones are left out."""

_MOST_SNAPSHOTS = 16
"""Most of those parts that are snapshots, which may be large."""

_LEAST_BYTES = 4096
"""Least bytes that a file counts towards the limit: the block that a file system allocates for it."""

_WARNING_SECONDS = 60.0
"""Least time between two warnings for the same reason."""


class _Episode:
    """The episode of a session that is being recorded.

    Attributes:
        about: JSON values of server, session and episode.
        part: that is filled.
        signature: of its steps; None before the first.
        settings: of the last step, with what they are in the record; None before the first.
        is_lost: a part was left out; so is what follows.
    """

    def __init__(self, about: dict[str, Any], first: int = 0, snapshot: bytes | None = None) -> None:
        self.about = about
        self.part = Part(about | {"number": 0, "first": first}, snapshot=snapshot)
        self.signature: tuple[Any, ...] | None = None
        self.settings: tuple[Any, dict[str, Any]] | None = None
        self.is_lost = False

    def next_part(self) -> Part:
        """Return the filled part, and begin another."""
        part = self.part
        number, first = part.about["number"] + 1, part.about["first"] + len(part.steps)
        self.part = Part(self.about | {"number": number, "first": first})
        return part


class Recorder:
    """Observer of a service that writes its sessions' steps. `close` ends it.

    Attributes:
        folder: of the files.
        num_lost: parts of episodes that were left out.
    """

    def __init__(self, folder: Path, max_bytes: int, about: Callable[[], Mapping[str, Any]]) -> None:
        """Begin to record.

        Args:
            folder: of the files; created with its parents.
            max_bytes: of all files of this server; when they have so many, recording ends.
            about: returns JSON values about server and model, for `jat-engine replay`.

        Raises:
            ValueError: the folder cannot be written to.
        """
        check_writable("--record", folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.num_lost = folder, 0
        self._about, self._left = about, max_bytes
        self._run = f"{time.strftime('%Y%m%dT%H%M%S')}-{secrets.token_hex(3)}"
        self._episodes: dict[ServedSession, _Episode] = {}
        self._parts: queue.Queue[tuple[_Episode, Part] | None] = queue.Queue()
        self._snapshots = threading.BoundedSemaphore(_MOST_SNAPSHOTS)
        self._warned: dict[str, float] = {}
        self._thread = threading.Thread(target=self._write_all, name="jat-engine record", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what is left, and end the thread."""
        for session in list(self._episodes):
            self.on_close(session)
        self._parts.put(None)
        self._thread.join()

    # ---- observer --------------------------------------------------------------------------------------------------

    def on_start(self, session: ServedSession) -> None:
        """Begin the record of an episode."""
        self._end(session)
        self._episodes[session] = _Episode(self._describe(session))

    def on_restore(self, session: ServedSession, snapshot: bytes) -> None:
        """Begin the record of an episode in its middle, with the snapshot."""
        episode = self._episodes[session] = _Episode(self._describe(session), session.steps, snapshot)
        if self._snapshots.acquire(blocking=False):
            self._put(episode, episode.next_part())
        else:
            self._lose(episode, "the disk does not keep up")

    def on_step(self, session: ServedSession, request: Act, reply: Reply) -> None:
        """Record a step."""
        episode = self._episodes.get(session)
        if episode is None or episode.is_lost or reply.is_repeat:
            return
        step = RecordedStep(
            {key: value for key, value in request.observation.items() if value is not None},
            None if request.reward is None else float(request.reward),
            _settings(episode, session, request),
            reply.action,
            None if request.forced is None else np.asarray(request.forced).tolist(),
        )
        found = signature(step)
        if episode.signature is not None and episode.signature != found and episode.part.steps:
            self._put(episode, episode.next_part())
        episode.signature = found
        part = episode.part
        part.steps.append(step)
        part.num_bytes += _STEP_BYTES + sum(_num_bytes(value) for value in step.observation.values())
        if len(part.steps) >= _STEPS_OF_PART or part.num_bytes >= _BYTES_OF_PART:
            self._put(episode, episode.next_part())

    def on_close(self, session: ServedSession) -> None:
        """End the record of a session."""
        self._end(session)
        self._episodes.pop(session, None)

    def _describe(self, session: ServedSession) -> dict[str, Any]:
        return {
            "version": VERSION,
            "run": self._run,
            "session": session.number,
            "session_id": session.name,
            "episode": session.episodes,
            "task": session.settings.task,
            "seed": session.episode_seed,
            "window": session.settings.window,
            **self._about(),
        }

    def _end(self, session: ServedSession) -> None:
        episode = self._episodes.get(session)
        if episode is not None and episode.part.steps:
            self._put(episode, episode.part)

    def _put(self, episode: _Episode, part: Part) -> None:
        if self._parts.qsize() < _MOST_WAITING:
            self._parts.put((episode, part))
        else:
            self._lose(episode, "the disk does not keep up")
            self._release(part)

    def _release(self, part: Part) -> None:
        if part.snapshot is not None:
            self._snapshots.release()

    # ---- the writer's thread ---------------------------------------------------------------------------------------

    def _write_all(self) -> None:
        while (item := self._parts.get()) is not None:
            episode, part = item
            try:
                if episode.is_lost:
                    self.num_lost += 1
                elif self._left <= len(part.snapshot or b""):
                    self._lose(episode, "the record is full (--record_max_gb)")
                else:
                    self._write(part)
            except Exception as error:  # of the disk, or of this module: the server goes on
                self._lose(episode, "a file could not be written", one_line(error))
            finally:
                self._release(part)

    def _write(self, part: Part) -> None:
        contents, about = part.to_bytes(), part.about
        name = f"{self._run}-s{about['session']:06d}-e{about['episode']:06d}-p{about['number']:04d}{SUFFIX}"
        write_bytes(self.folder / name, contents)
        self._left -= max(len(contents), _LEAST_BYTES)

    def _lose(self, episode: _Episode, reason: str, details: str = "") -> None:
        """Leave out the rest of an episode, and say so once a minute for each reason."""
        episode.is_lost = True
        self.num_lost += 1
        now = time.monotonic()
        if now - self._warned.get(reason, -math.inf) >= _WARNING_SECONDS:
            self._warned[reason] = now
            with contextlib.suppress(OSError):  # the log may be on the same disk
                logger.warning("some episodes are left out of the record: %s%s", reason, details and f": {details}")


def _settings(episode: _Episode, session: ServedSession, request: Act) -> dict[str, Any]:
    """Return a step's settings; the same object as long as they are the same."""
    settings = session.settings.updated(request.settings)
    key = settings, request.options
    if episode.settings is not None and _same(episode.settings[0], key):
        return episode.settings[1]
    assert settings.space is not None, "the step has been taken"
    found = step_settings(settings.space, bool(settings.deterministic), settings.window, request.options)
    episode.settings = key, found
    return found


def _same(before: tuple[Any, Any], now: tuple[Any, Any]) -> bool:
    """Return True if both pairs have the same objects: they may hold arrays, for which `==` is no bool."""
    return before[0] is now[0] and before[1] is now[1]


def _num_bytes(value: Any) -> int:
    """Return an estimate of the memory that a value of an observation takes."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    return 8 * len(value) if isinstance(value, list | tuple) else len(value) if isinstance(value, str) else 8
