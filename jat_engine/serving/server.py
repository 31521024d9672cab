"""The websocket server: connections, their dialects, and the orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from prometheus_client import Counter
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response

from .addresses import is_loopback
from .auth import check_address, describe_refusal, is_allowed
from .close_codes import GOING_AWAY, TRY_AGAIN_LATER
from .codec import MOST_BYTES
from .dialects import DIALECTS, Dialect, DialectMaker, Frame
from .errors import OverloadError, kind_of, message_of
from .http import HttpPages, refuse
from .http_requests import header, is_websocket, path_of
from .origins import is_allowed_origin, is_local_name
from .requests import DEFAULT_SESSION, Request
from .service import PolicyService
from .websocket import Websocket

logger = logging.getLogger(__name__)
_protocol_logger = logging.getLogger(f"{__name__}.websockets")
_protocol_logger.setLevel(logging.CRITICAL)  # websockets logs a traceback for each malformed handshake

_MOST_CONCURRENT = 64
"""Requests of one connection, for sessions with names, that are answered at the same time."""

_MOST_FRAMES = 4
"""Messages of a connection that are read ahead; a client that sends more waits."""

_CLOSE_SECONDS = 5.0
"""Time that all connections have to close when the server stops."""

_CLOSE_HANDSHAKE_SECONDS = 3.0
"""Time for a client to answer a close; a connection whose client does not read is aborted then."""

_LARGE_BYTES = 1 << 18
"""Size from which on a message is parsed in another thread, since decoding its images may take long."""

_FRAME_SLACK = MOST_BYTES
"""Bytes beyond `MOST_BYTES` up to which a message is refused with an error; a larger one closes the connection."""


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Address and limits of a server.

    Attributes:
        host: address to listen on.
        port: of it; 0 for any that is free.
        keys: of clients; none for everyone.
        allow_public: listen on an address that others reach without keys.
        allowed_origins: of web pages that may connect besides the server's own; see `origins.parse_origins`.
        drain_timeout_s: seconds that open sessions may go on after SIGTERM.
        max_connections: most open connections; None for as many as sessions, and 64 more.
        ping_interval_s: seconds between pings; a connection that does not answer within as many is closed.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    keys: tuple[str, ...] = ()
    allow_public: bool = False
    allowed_origins: tuple[str, ...] = ()
    drain_timeout_s: float = 10.0
    max_connections: int | None = None
    ping_interval_s: float = 20.0


@dataclass(eq=False, slots=True)
class Connection:
    """An open connection; the owner of its sessions.

    Attributes:
        websocket: of the client.
        dialect: that it speaks.
        answered_counter: counts its dialect's requests.
        last_frame: when its last message came, in seconds of `time.monotonic`.
        tail: the last concurrent answer; None if there was none.
        gate: limits concurrent answers.
        is_refused: the server has no room for a session of it: it is closed after the answer that says so.
    """

    websocket: Websocket
    dialect: Dialect
    answered_counter: Counter
    last_frame: float = field(default_factory=time.monotonic)
    tail: asyncio.Task[None] | None = None
    gate: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_MOST_CONCURRENT))
    is_refused: bool = False


class PolicyServer:
    """Websocket server for a policy service.

    Attributes:
        service: that answers.
        options: address and limits.
        pages: of plain HTTP.
        dialects: makers of dialects by path.
        channels: functions that serve websockets of other paths. They check keys themselves, since a browser cannot
            send them as a header.
        connections: that are open.
    """

    def __init__(
        self,
        service: PolicyService,
        options: ServerOptions,
        describe: Callable[[], dict[str, Any]],
        dialects: Mapping[str, DialectMaker] = DIALECTS,
    ) -> None:
        """Describe the server; `start` opens its port.

        Args:
            service: that answers; the server starts and stops it.
            options: address and limits.
            describe: returns what clients are told about the server, as JSON values.
            dialects: by path.

        Raises:
            InputError: the address needs a key.
        """
        check_address(options.host, options.keys, options.allow_public)
        self.service, self.options, self.dialects = service, options, dict(dialects)
        self.pages = HttpPages(service, describe, options.keys)
        self.channels: dict[str, Callable[[ServerConnection], Awaitable[None]]] = {}
        self.connections: set[Connection] = set()
        self._describe = describe
        self._num_answers = 0
        self._closings: set[asyncio.Task[None]] = set()
        self._is_ending = False
        self._server: Server | None = None
        self._reaper: asyncio.Task[None] | None = None

    # ---- life ------------------------------------------------------------------------------------------------------

    @property
    def is_listening(self) -> bool:
        """True from the opening of the port until the end."""
        return self._server is not None and self._server.is_serving()

    @property
    def port(self) -> int:
        """Port that the server listens on."""
        assert self._server is not None, "the server has been started"
        port: int = next(iter(self._server.sockets)).getsockname()[1]
        return port

    async def start(self, listens: bool = True) -> None:
        """Open the port, and load the engine; until that is done `/ready` says no.

        Args:
            listens: False if another server has the port, and gives its connections to `admit` and `serve`.

        Raises:
            OSError: the address cannot be listened on.
            ValueError: see `PolicyService.start`.
        """
        if listens:
            try:
                await self._listen()
            except OSError as error:
                raise _listen_error(error, self.options) from error
        try:
            await self.service.start()
        except BaseException:
            if self._server is not None:
                self._server.close()
            raise
        self._reaper = asyncio.create_task(self._close_idle())

    async def _listen(self) -> None:
        options = self.options
        self._server = await serve(
            self.serve,
            options.host,
            options.port,
            process_request=lambda _, request: self.admit(request),
            compression=None,
            max_size=MOST_BYTES + _FRAME_SLACK,
            max_queue=_MOST_FRAMES,
            ping_interval=options.ping_interval_s,
            ping_timeout=options.ping_interval_s,
            close_timeout=2,
            server_header=None,
            logger=_protocol_logger,
        )

    async def run(
        self, on_ready: Callable[[], None] = lambda: None, on_drain: Callable[[int], None] = lambda _: None
    ) -> None:
        """Serve until SIGTERM or SIGINT, let open sessions go on for a while, and end; a second signal ends at once.

        Args:
            on_ready: called when the engine is loaded.
            on_drain: called with the number of open sessions, if there are any, when they are waited for.
        """
        loop, first, hurry = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

        def note_signal() -> None:
            (hurry if first.is_set() else first).set()

        numbers = (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            loop.add_signal_handler(number, note_signal)
        try:
            starting = asyncio.create_task(self.start())
            stopping = asyncio.create_task(first.wait())
            await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
            await starting  # an engine that is being loaded cannot be interrupted
            if not first.is_set():
                on_ready()
                await stopping
            if len(self.service.sessions):
                on_drain(len(self.service.sessions))
            await self.drain(hurry=hurry)
            await self.stop()
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    async def drain(self, hurry: asyncio.Event | None = None) -> None:
        """Refuse new sessions, close connections without one, and wait for the others' ends.

        Args:
            hurry: ends the wait; also the options' time does.
        """
        self.service.drain()
        end = time.monotonic() + self.options.drain_timeout_s
        while time.monotonic() < end and not (hurry is not None and hurry.is_set()):
            for connection in list(self.connections):
                if not self.service.sessions.of(connection):
                    self._close_soon(connection, "server ends")
            if not self.connections:
                return
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """Answer what has been asked, and close all connections, sessions and the engine."""
        self._is_ending = True
        end = time.monotonic() + self.options.drain_timeout_s
        while self._num_answers and time.monotonic() < end:
            await asyncio.sleep(0.01)
        if self._reaper is not None:
            self._reaper.cancel()
        if self._server is not None:
            self._server.close(code=GOING_AWAY, reason="server ends")
            with contextlib.suppress(TimeoutError):  # a connection whose step does not end, such as of a GPU that hangs
                await asyncio.wait_for(asyncio.shield(self._server.wait_closed()), _CLOSE_SECONDS)
        else:
            for connection in list(self.connections):
                self._close_soon(connection, "server ends")
            if self._closings:
                await asyncio.wait(self._closings)
        await self.service.stop()

    # ---- connections -----------------------------------------------------------------------------------------------

    async def admit(self, request: HttpRequest) -> Response | None:
        """Return the answer to a plain HTTP request, or to one for a websocket that is refused; None lets it in."""
        service = self.service
        refused = self._refuse_foreign(request)
        if refused is not None:
            service.metrics.refusals.inc()
            return refused
        path = path_of(request)
        if not is_websocket(request):
            if path in self.dialects and path not in self.pages.routes:
                return refuse(
                    HTTPStatus.UPGRADE_REQUIRED, f"expected a websocket at {path}, got a request of plain HTTP"
                )
            return await self.pages.answer(request)
        if path in self.channels:
            return None
        if path not in self.dialects:
            refused = refuse(HTTPStatus.NOT_FOUND, f"expected a path of {', '.join(self.dialects)}, got {path:.80}")
        elif not is_allowed(header(request, "Authorization"), self.options.keys):
            refused = refuse(HTTPStatus.UNAUTHORIZED, describe_refusal(header(request, "Authorization")))
        elif not service.is_ready:
            refused = refuse(HTTPStatus.SERVICE_UNAVAILABLE, service.why_not_ready)
        elif len(self.connections) >= self._max_connections:
            refused = refuse(HTTPStatus.SERVICE_UNAVAILABLE, f"expected at most {self._max_connections} connections")
        if refused is not None:
            service.metrics.refusals.inc()
        return refused

    def _refuse_foreign(self, request: HttpRequest) -> Response | None:
        """Return the refusal of a request that a browser sends for a page of another server; None to go on."""
        host, allowed = self.options.host, self.options.allowed_origins
        if not self.options.keys and is_loopback(host) and not is_local_name(request, host, allowed):
            got = header(request, "Host")
            line = f"Host: expected localhost or {host}, got {got:.80}; --allowed_origins lets other names in"
            return refuse(HTTPStatus.FORBIDDEN, line)
        if is_websocket(request) and not is_allowed_origin(request, allowed):
            got = header(request, "Origin")
            line = f"Origin: expected a page of this server, got {got:.80}; --allowed_origins lets others in"
            return refuse(HTTPStatus.FORBIDDEN, line)
        return None

    @property
    def _max_connections(self) -> int:
        most = self.options.max_connections
        return self.service.options.max_sessions + 64 if most is None else most

    async def serve(self, websocket: Websocket) -> None:
        """Serve a connection until it ends, and close its sessions."""
        assert websocket.request is not None, "the connection is open"
        channel = self.channels.get(path_of(websocket.request))
        if channel is not None:
            assert isinstance(websocket, ServerConnection), "channels are for the server's own port"
            await channel(websocket)
            return
        dialect = self.dialects[path_of(websocket.request)](self._describe())
        metrics = self.service.metrics
        connection = Connection(websocket, dialect, metrics.requests.labels(dialect.name))
        self.connections.add(connection)
        metrics.connections.set(len(self.connections))
        try:
            greeting = dialect.greeting()
            if greeting is not None:
                await websocket.send(greeting)
            await self._converse(connection)
        except ConnectionClosed:
            return
        except Exception:
            logger.exception("a connection failed")
        finally:
            self.connections.discard(connection)
            metrics.connections.set(len(self.connections))
            await _after(connection.tail)  # what is still answered may open a session
            await self.service.drop(connection)

    async def _converse(self, connection: Connection) -> None:
        """Answer the messages of a connection, in their order."""
        dialect = connection.dialect
        async for frame in connection.websocket:
            received = time.perf_counter()
            connection.last_frame = time.monotonic()
            try:
                if len(frame) < _LARGE_BYTES:
                    parsed = dialect.parse(frame)
                else:
                    parsed = await asyncio.get_running_loop().run_in_executor(None, dialect.parse, frame)
            except Exception as error:
                await _after(connection.tail)
                await self._send(connection, self._error(connection, error, None))
                continue

            if parsed is None or isinstance(parsed, str | bytes):
                await _after(connection.tail)
                await self._send(connection, parsed)
            elif parsed.session_id == DEFAULT_SESSION:
                answer = await self._answer(connection, parsed, received)
                await _after(connection.tail)
                await self._send(connection, answer)
            else:  # sessions with names may share a step: one's answer does not wait for the other's
                await connection.gate.acquire()
                coroutine = self._answer_after(connection, connection.tail, parsed, received)
                connection.tail = asyncio.create_task(coroutine)

    async def _answer_after(
        self, connection: Connection, before: asyncio.Task[None] | None, request: Request, received: float
    ) -> None:
        """Send the answer to a request after that of the one before it."""
        try:
            answer = await self._answer(connection, request, received)
            await _after(before)
            with contextlib.suppress(ConnectionClosed):
                await self._send(connection, answer)
        finally:
            connection.gate.release()

    async def _answer(self, connection: Connection, request: Request, received: float) -> Frame | None:
        """Carry out a request, and return the message to send."""
        self._num_answers += 1
        try:
            if self._is_ending:
                raise OverloadError("server: expected no request, since it ends; connect to another")
            reply = await self.service.answer(connection, request)
            answer = connection.dialect.reply(request, reply, time.perf_counter() - received)
            connection.answered_counter.inc()
            return answer
        except Exception as error:
            return self._error(connection, error, request)
        finally:
            self._num_answers -= 1

    def _error(self, connection: Connection, error: Exception, request: Request | None) -> Frame:
        """Return the message for an error, and count it. The traceback of one of our own goes to the log."""
        kind = kind_of(error)
        self.service.metrics.errors.labels(kind).inc()
        if kind == "overload" and not self.service.sessions.of(connection):
            connection.is_refused = True
        if kind == "fault":
            logger.error("a request failed", exc_info=error)
        return connection.dialect.error(message_of(error), request, kind)

    async def _send(self, connection: Connection, frame: Frame | None) -> None:
        if frame is not None:
            await connection.websocket.send(frame)
        if connection.is_refused:
            self._close_soon(connection, "no room for a session", TRY_AGAIN_LATER)

    def _close_soon(self, connection: Connection, reason: str, code: int = GOING_AWAY) -> None:
        """Begin to close a connection, without waiting for its client."""
        self.connections.discard(connection)
        task = asyncio.create_task(_close(connection.websocket, code, reason))
        self._closings.add(task)
        task.add_done_callback(self._closings.discard)

    async def _close_idle(self) -> None:
        """Close connections without a message for the service's timeout."""
        timeout = self.service.options.idle_timeout_s
        while True:
            await asyncio.sleep(min(timeout / 4, 5.0))
            before = time.monotonic() - timeout
            for connection in [c for c in self.connections if c.last_frame < before]:
                busy = any(session.lock.locked() for session in self.service.sessions.of(connection))
                if not busy:
                    self._close_soon(connection, f"no request for {timeout:g} s")


async def _close(websocket: Websocket, code: int, reason: str) -> None:
    """Close a connection; abort it if its client does not read, for which websockets would wait without end."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(websocket.close(code, reason), _CLOSE_HANDSHAKE_SECONDS)
        return
    if isinstance(websocket, ServerConnection):
        websocket.transport.abort()


async def _after(task: asyncio.Task[None] | None) -> None:
    """Wait for the end of an answer; its error is its own."""
    if task is not None and not task.done():
        await asyncio.wait([task])


def _listen_error(error: OSError, options: ServerOptions) -> OSError:
    """Return the error for an address that cannot be listened on, with the flags to change."""
    if error.errno == errno.EADDRINUSE:
        remedy = "stop the program that has it, or give another port, 0 for any that is free"
        return OSError(f"--port: expected a free one of {options.host}, got {options.port}, which is in use; {remedy}")
    reason = error.strerror or error
    return OSError(f"--host, --port: expected an address of this machine, got {options.host} {options.port} ({reason})")
