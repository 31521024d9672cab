"""The policy service: sessions of clients on one engine, without any wire.

A caller (the websocket server, or a demonstration on the page) names the owner of a request, such as a connection, and
awaits the reply; `drop` ends everything of an owner, except sessions with a token, which another owner may go on with:
at once, or from a stored snapshot. All methods belong to one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ..engine.engine import JatEngine
from ..engine.kv_cache import CacheStats
from ..engine.snapshot import Captured
from ..errors import CacheFullError, InputError, SessionError
from .batcher import Batcher, Start, Step
from .errors import OverloadError, ServerError
from .metrics import Metrics
from .requests import NO_SETTINGS, Act, Answer, Close, Reply, Request, Reset, Resume, Resumed, Settings
from .sessions import Detached, ServedSession, SessionRegistry
from .snapshots import SnapshotStore, StoredSession, describe_session, parse_session

logger = logging.getLogger(__name__)

_SWEEP_SECONDS = 60.0
"""Seconds between two looks for snapshots that are too old."""

_WARNING_SECONDS = 60.0
"""Seconds between two warnings of snapshots that cannot be written."""


@dataclass(frozen=True, kw_only=True)
class ServiceOptions:
    """Limits of a service.

    Attributes:
        max_sessions: most open sessions.
        max_queue: most requests that wait; None for as many as sessions.
        max_wait_ms: milliseconds that a request waits for others if no step is running.
        idle_timeout_s: seconds without a request after which a session is closed.
        defaults: settings of episodes as far as clients give none.
        snapshot_every: steps of a session with a token after which its snapshot is stored.
        resume_grace_s: seconds for which a session with a token waits for another connection when its own has gone.
    """

    max_sessions: int = 64
    max_queue: int | None = None
    max_wait_ms: float = 0.0
    idle_timeout_s: float = 300.0
    defaults: Settings = NO_SETTINGS
    snapshot_every: int = 64
    resume_grace_s: float = 30.0


class Observer(Protocol):
    """Follows what sessions do, such as a recorder or a page. Its methods must be quick: they run in the event loop."""

    def on_start(self, session: ServedSession) -> None:
        """Follow the beginning of an episode; `session.settings` and `.seed` are those of it."""

    def on_restore(self, session: ServedSession, snapshot: bytes) -> None:
        """Follow a new session that goes on in an episode of another server, from the engine's snapshot."""

    def on_step(self, session: ServedSession, request: Act, reply: Reply) -> None:
        """Follow a step that was taken."""

    def on_close(self, session: ServedSession) -> None:
        """Follow the end of a session."""


class PolicyService:
    """Sessions of clients on one engine.

    Attributes:
        options: limits.
        metrics: of all requests.
        sessions: that are open.
        batcher: that has the engine.
        observers: that follow the sessions.
    """

    def __init__(
        self,
        load: Callable[[], JatEngine],
        options: ServiceOptions,
        metrics: Metrics | None = None,
        store: SnapshotStore | None = None,
    ) -> None:
        """Describe the service; `start` loads the engine.

        Args:
            load: returns the engine; called in the engine's thread.
            options: limits.
            metrics: to count in; None for new ones.
            store: of the snapshots of sessions with tokens; None to store none.
        """
        self.options = options
        self.metrics = metrics or Metrics()
        self.metrics.max_sessions.set(options.max_sessions)
        self.sessions = SessionRegistry(options.max_sessions)
        self.batcher = Batcher(load, options.max_queue or options.max_sessions, options.max_wait_ms / 1000)
        self.batcher.on_step = self.metrics.count_step
        self.observers: list[Observer] = []
        self._store = store
        self._savings: set[asyncio.Task[None]] = set()
        self._warned = -math.inf
        self._reaper: asyncio.Task[None] | None = None

    # ---- life ------------------------------------------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """True if a session can be opened."""
        return self.batcher.engine is not None and self.sessions.has_room

    @property
    def why_not_ready(self) -> str:
        """Reason why no session can be opened, in a line."""
        if self.sessions.refuses_new:
            return "the server ends"
        if self.batcher.engine is None:
            return "the model is being loaded"
        return f"all {self.options.max_sessions} sessions (--max_sessions) are open"

    async def start(self) -> None:
        """Load the engine. Raises what its loading raises."""
        await self.batcher.start()
        self._reaper = asyncio.create_task(self._close_idle())

    def drain(self) -> None:
        """Refuse new sessions; those that are open go on."""
        self.sessions.refuses_new = True

    async def stop(self) -> None:
        """Store sessions that have tokens, and close all sessions and the engine."""
        self.drain()
        if self._reaper is not None:
            self._reaper.cancel()
        for session in self.sessions:
            if session.unsaved and not session.lock.locked():
                self._save(session)
        if self._savings:
            await asyncio.wait(self._savings)
        for session in self.sessions:
            self._remove(session)
        await self.batcher.stop()
        if self._store is not None:
            self._store.close()

    # ---- requests --------------------------------------------------------------------------------------------------

    async def answer(self, owner: Hashable, request: Request) -> Answer:
        """Carry out a request, and return the reply to an `Act` or a `Resume`.

        Args:
            owner: of the session, whose first request opens it.
            request: what to do. Requests of a session are carried out one after the other.

        Raises:
            InputError, SessionError: the request is refused; its session is as before and has none of its settings,
                except that an episode that it starts has begun.
            OverloadError: there is no room for it now; otherwise as if it was refused.
            ServerError: the engine failed.
        """
        if isinstance(request, Close):
            session = self.sessions.find(owner, request.session_id)
            if session is not None:
                async with session.lock:
                    self._remove(session)
                    self._discard(session)
            return None
        if isinstance(request, Resume):
            return await self._resume(owner, request)

        while True:
            session = self.sessions.find(owner, request.session_id)
            if session is None:
                is_start = isinstance(request, Reset) or request.begins
                session = self._open(owner, request.session_id, is_start)
            async with session.lock:
                if not session.closed:  # by a request before this one
                    return await self._answer(session, request)

    async def _answer(self, session: ServedSession, request: Act | Reset) -> Reply | None:
        """Carry out a request of an open session. The caller holds the session's lock."""
        session.last_used = time.monotonic()
        if request.seq is not None and session.last_seq is not None and request.seq <= session.last_seq:
            return self._repeat(session, request)
        reply = None
        if isinstance(request, Reset):
            session.begin(request.settings)
        else:
            reply = await self._act(session, request)
        session.last_used = time.monotonic()
        if request.seq is not None:
            if reply is not None and session.told_seq != session.saved_seq:
                session.told_seq = session.saved_seq
                reply = replace(reply, snapshot_seq=session.saved_seq)
            session.last_seq, session.last_reply = request.seq, reply
            if session.unsaved >= self.options.snapshot_every:
                self._save(session)
        return reply

    async def drop(self, owner: Hashable) -> None:
        """Close all sessions of an owner that has gone. Those with tokens wait for another one."""
        grace, now = self.options.resume_grace_s, time.monotonic()
        for session in self.sessions.of(owner):
            if session.token is None or not grace:
                self._remove(session)
            else:
                self.sessions.move(session, Detached(session.token, now), session.name)
        self.sessions.forget(owner)

    async def cache_stats(self) -> CacheStats:
        """Return the KV cache's counters, after the running step."""
        engine = self.batcher.engine
        if engine is None:
            raise OverloadError("server: expected a loaded engine, got none yet; repeat it later")
        return await self.batcher.call(lambda: engine.cache_stats)

    def _repeat(self, session: ServedSession, request: Act | Reset) -> Reply | None:
        """Return the last reply again, whose request has been carried out."""
        if request.seq != session.last_seq or (session.last_reply is None) != isinstance(request, Reset):
            raise InputError(
                f"seq: expected more than {session.last_seq}, the number of the last request, or that request again, "
                f"got {request.seq}"
            )
        if session.last_reply is None:
            return None
        reply = replace(session.last_reply, is_repeat=True)
        self.metrics.count_reply(reply)
        return reply

    async def _act(self, session: ServedSession, request: Act) -> Reply:
        before = session.terms
        try:
            return await self._take_step(session, request)
        except (InputError, SessionError, OverloadError):
            session.terms = before
            raise

    async def _take_step(self, session: ServedSession, request: Act) -> Reply:
        if request.begins or session.begins:
            session.begin(request.settings)
            settings = session.settings
        else:
            settings = session.settings_of_step(request.settings)
        if settings.space is None:
            raise InputError("task: expected the name of a published task, or an action_space, got neither")

        step = Step(
            agent=session.agent,
            observation=request.observation,
            reward=request.reward,
            space=settings.space,
            deterministic=bool(settings.deterministic),
            window=settings.window,
            options=request.options,
            start=Start(session.next_seed, settings.window) if session.begins else None,
            forced=request.forced,
            wants_prediction=request.wants_prediction,
        )
        try:
            reply = await self.batcher.submit(step)
        except ServerError:
            session.note_failure()
            raise
        self._count(session, request, reply)
        return reply

    def _count(self, session: ServedSession, request: Act, reply: Reply) -> None:
        """Count a step that was taken, and tell the observers, unless they have been told of the session's end."""
        observers = [] if session.closed else self.observers
        if session.begins:
            if session.next_seed is not None and session.saved_seq is not None:  # the episode needs nothing from before
                self._forget_snapshot(session)
            session.note_begin()
            self.metrics.episodes.inc()
            for observer in observers:
                observer.on_start(session)
        elif request.reward is not None:
            session.return_ += float(request.reward)
        session.steps += 1
        if session.token is not None and self._store is not None:
            session.unsaved += 1
        self.metrics.count_reply(reply)
        for observer in observers:
            observer.on_step(session, request, reply)

    def _remove(self, session: ServedSession, is_expired: bool = False) -> None:
        if session.closed:
            return
        self.sessions.remove(session, is_expired)
        self.metrics.sessions.set(len(self.sessions))
        with contextlib.suppress(OverloadError):  # the engine is closed already
            self.batcher.call(session.agent.close)
        for observer in self.observers:
            observer.on_close(session)

    async def _close_idle(self) -> None:
        timeout, grace = self.options.idle_timeout_s, self.options.resume_grace_s
        swept = -math.inf
        while True:
            await asyncio.sleep(min(timeout / 4, grace / 4 or math.inf, 5.0))
            for session in self.sessions.idle(timeout):
                if session.token is None:
                    self._remove(session, is_expired=True)
            for session in self.sessions.idle(2 * timeout):  # those with tokens: their idle connections end first
                self._remove(session, is_expired=True)
            for session in self.sessions.detached:
                assert isinstance(session.owner, Detached), "see `detached`"
                if session.owner.since < time.monotonic() - grace and not session.lock.locked():
                    self._remove(session)
            if self._store is not None and time.monotonic() > swept + _SWEEP_SECONDS:
                swept = time.monotonic()
                await self._store.remove_old()

    # ---- sessions with tokens --------------------------------------------------------------------------------------

    def _open(self, owner: Hashable, name: str, is_start: bool) -> ServedSession:
        """Open a session; if there is no room, in place of the one that has waited longest for a connection."""
        if len(self.sessions) >= self.options.max_sessions:
            for waiting in self.sessions.detached:
                if not waiting.lock.locked():
                    self._remove(waiting)
                    break
        session = self.sessions.open(owner, name, self.options.defaults, is_start)
        self.metrics.sessions.set(len(self.sessions))
        return session

    async def _resume(self, owner: Hashable, request: Resume) -> Resumed:
        """Give an owner the session of a token: the open one, that of a snapshot, or a new one."""
        stored, has_looked = None, False
        while True:
            self._check_name(owner, request)
            session = self.sessions.find_token(request.token)
            if session is not None:
                async with session.lock:
                    if session.closed:
                        continue
                    self._check_name(owner, request)  # a request beside this one may have opened it
                    if request.since is None or (session.last_seq is not None and session.last_seq >= request.since):
                        if session.owner != owner or session.name != request.session_id:
                            self.sessions.move(session, owner, request.session_id)
                        session.last_used = time.monotonic()
                        self.metrics.resumed.labels("resumed").inc()
                        return Resumed("resumed", session.last_seq, self._store is not None)
                    self._remove(session)  # its client has gone on elsewhere
            if has_looked or self._store is None:
                break
            stored, has_looked = await self._store.read(request.token), True

        session = self._open(owner, request.session_id, is_start=True)
        self.sessions.set_token(session, request.token)
        reason = ""
        if stored is not None:
            async with session.lock:
                try:
                    return await self._restore(session, stored)
                except CacheFullError as error:
                    self._remove(session)
                    raise OverloadError(*error.args) from None
                except InputError as error:  # of another engine
                    logger.warning("a snapshot was not used: %s", error)
                    reason = str(error)
        return Resumed("new", None, self._store is not None, reason)

    def _check_name(self, owner: Hashable, request: Resume) -> None:
        """Raise `SessionError` if the owner has another session of the name."""
        there = self.sessions.find(owner, request.session_id)
        if there is not None and there.token != request.token:
            raise SessionError("session_id: expected a name without an open session, got that of one; close it first")

    async def _restore(self, session: ServedSession, stored: StoredSession) -> Resumed:
        engine = self.batcher.engine
        if engine is None:
            raise OverloadError("server: expected a loaded engine, got none yet; repeat it later")
        state = parse_session(stored.fields)
        await self.batcher.call(lambda: session.agent.restore(engine, stored.blob))
        state.apply(session)
        for observer in self.observers:
            observer.on_restore(session, stored.blob)
        self.metrics.resumed.labels("restored").inc()
        return Resumed("restored", session.last_seq, self._store is not None)

    def _save(self, session: ServedSession) -> None:
        """Begin to store a session as it is now; not if it has no token, or one is being stored."""
        if session.token is None or self._store is None or session.is_saving or session.begins or session.closed:
            return
        if session.last_seq is None:  # no client can say where it would go on
            return
        try:
            copy = self.batcher.call(session.agent.capture)  # before the session's next step
        except OverloadError:  # the engine is closed already
            return
        session.is_saving, session.unsaved = True, 0
        task = asyncio.create_task(self._write(self._store, session, describe_session(session), copy))
        self._savings.add(task)
        task.add_done_callback(self._savings.discard)

    async def _write(
        self, store: SnapshotStore, session: ServedSession, fields: dict[str, Any], copy: asyncio.Future[Captured]
    ) -> None:
        assert session.token is not None, "see `_save`"
        try:
            captured = await copy
            begin = time.perf_counter()
            num_bytes = await store.write(session.token, fields, captured)
            self.metrics.count_snapshot(num_bytes, time.perf_counter() - begin)
        except SessionError:  # closed meanwhile
            return
        except OSError as error:  # a full disk: the server goes on without
            self._warn_of_snapshots(error)
        else:
            session.saved_seq = fields["seq"]
        finally:
            session.is_saving = False
        if session.is_discarded:
            await store.remove(session.token, fields["seq"])

    def _warn_of_snapshots(self, error: OSError) -> None:
        """Log that a snapshot could not be written, once a minute."""
        now = time.monotonic()
        if now - self._warned >= _WARNING_SECONDS:
            self._warned = now
            logger.warning("snapshots cannot be written: %s", error)

    def _discard(self, session: ServedSession) -> None:
        """Begin to remove a session's snapshot, which is not needed any more."""
        if session.token is None or self._store is None:
            return
        session.is_discarded = True
        if session.saved_seq is not None and not session.is_saving:  # else it is removed when it has been written
            self._forget_snapshot(session)

    def _forget_snapshot(self, session: ServedSession) -> None:
        assert session.token is not None, "it has a snapshot"
        assert self._store is not None, "it has a snapshot"
        assert session.last_seq is not None, "it has a snapshot"
        session.saved_seq = session.told_seq = None
        task = asyncio.create_task(self._store.remove(session.token, session.last_seq))
        self._savings.add(task)
        task.add_done_callback(self._savings.discard)
