"""The policy service: sessions of clients on one engine, without any wire.

A transport (the websocket server, a page, a Ray deployment) names the owner of a request, such as a connection, and
awaits the reply; `drop` ends everything of an owner. All methods belong to one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Protocol

from ..engine.engine import JatEngine
from ..engine.kv_cache import CacheStats
from ..errors import InputError
from .batcher import Batcher, Start, Step
from .errors import OverloadError, ServerError
from .metrics import Metrics
from .requests import NO_SETTINGS, Act, Close, Reply, Request, Reset, Settings
from .sessions import ServedSession, SessionRegistry


@dataclass(frozen=True, kw_only=True)
class ServiceOptions:
    """Limits of a service.

    Attributes:
        max_sessions: most open sessions.
        max_queue: most requests that wait; None for as many as sessions.
        max_wait_ms: milliseconds that a request waits for others if no step is running.
        idle_timeout_s: seconds without a request after which a session is closed.
        defaults: settings of episodes as far as clients give none.
    """

    max_sessions: int = 64
    max_queue: int | None = None
    max_wait_ms: float = 0.0
    idle_timeout_s: float = 300.0
    defaults: Settings = NO_SETTINGS


class Observer(Protocol):
    """Follows what sessions do, such as a recorder or a page. Its methods must be quick: they run in the event loop."""

    def on_start(self, session: ServedSession) -> None:
        """Follow the beginning of an episode; `session.settings` and `.seed` are those of it."""

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

    def __init__(self, load: Callable[[], JatEngine], options: ServiceOptions, metrics: Metrics | None = None) -> None:
        """Describe the service; `start` loads the engine.

        Args:
            load: returns the engine; called in the engine's thread.
            options: limits.
            metrics: to count in; None for new ones.
        """
        self.options = options
        self.metrics = metrics or Metrics()
        self.metrics.max_sessions.set(options.max_sessions)
        self.sessions = SessionRegistry(options.max_sessions)
        self.batcher = Batcher(load, options.max_queue or options.max_sessions, options.max_wait_ms / 1000)
        self.batcher.on_step = self.metrics.count_step
        self.observers: list[Observer] = []
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
        """Close all sessions and the engine."""
        self.drain()
        if self._reaper is not None:
            self._reaper.cancel()
        for session in self.sessions:
            self._remove(session)
        await self.batcher.stop()

    # ---- requests --------------------------------------------------------------------------------------------------

    async def answer(self, owner: Hashable, request: Request) -> Reply | None:
        """Carry out a request, and return the reply to an `Act`.

        Args:
            owner: of the session, whose first request opens it.
            request: what to do. Requests of a session are carried out one after the other.

        Raises:
            InputError, SessionError: the request is refused; its session is as before, except that an episode that it
                starts has begun.
            OverloadError: there is no room for it now; its session is as before.
            ServerError: the engine failed.
        """
        if isinstance(request, Close):
            session = self.sessions.find(owner, request.session_id)
            if session is not None:
                async with session.lock:
                    self._remove(session)
            return None

        session = self.sessions.find(owner, request.session_id)
        if session is None:
            is_start = isinstance(request, Reset) or request.begins
            session = self.sessions.open(owner, request.session_id, self.options.defaults, is_start)
            self.metrics.sessions.set(len(self.sessions))
        async with session.lock:
            if session.closed:
                raise OverloadError("session: expected an open one, got one that was closed while the request waited")
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
                session.last_seq, session.last_reply = request.seq, reply
            return reply

    async def drop(self, owner: Hashable) -> None:
        """Close all sessions of an owner that has gone."""
        for session in self.sessions.of(owner):
            self._remove(session)
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
        )
        try:
            reply = await self.batcher.submit(step)
        except ServerError:
            session.lose()
            raise
        self._count(session, request, reply)
        return reply

    def _count(self, session: ServedSession, request: Act, reply: Reply) -> None:
        """Count a step that was taken, and tell the observers."""
        if session.begins:
            session.has_begun()
            self.metrics.episodes.inc()
            for observer in self.observers:
                observer.on_start(session)
        elif request.reward is not None:
            session.return_ += float(request.reward)
        session.steps += 1
        self.metrics.count_reply(reply)
        for observer in self.observers:
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
        timeout = self.options.idle_timeout_s
        while True:
            await asyncio.sleep(min(timeout / 4, 5.0))
            for session in self.sessions.idle(timeout):
                self._remove(session, is_expired=True)
