"""Run the policy server as an ASGI application, behind another server's port such as that of Ray Serve's proxies.

The application's lifespan is the server's: its start loads the engine, and its end stores the sessions with tokens.
See https://asgi.readthedocs.io/en/latest/specs for the messages.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any

from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosedOK
from websockets.http11 import Request, Response

from ..errors import one_line
from .close_codes import POLICY_VIOLATION, TRY_AGAIN_LATER
from .dialects import Frame
from .server import PolicyServer

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_REPLY_EXTENSION = "websocket.http.response"


class AsgiApp:
    """A policy server behind another server's port.

    Attributes:
        server: that answers; it listens on no port of its own.
    """

    def __init__(self, server: PolicyServer) -> None:
        self.server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a connection, a request of plain HTTP, or the lifespan.

        Raises:
            ValueError: the scope is of another kind.
        """
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "websocket":
            await self._serve(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, send)
        else:
            raise ValueError(f"scope: expected lifespan, websocket or http, got {scope['type']!r:.80}")

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()  # lifespan.startup
        try:
            await self.server.start(listens=False)
        except Exception as error:
            await send({"type": "lifespan.startup.failed", "message": one_line(error)})
            raise
        await send({"type": "lifespan.startup.complete"})
        await receive()  # lifespan.shutdown
        await self.server.stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, scope: Scope, send: Send) -> None:
        request = read_request(scope)
        if scope["method"] in ("GET", "HEAD"):
            response = await self.server.admit(request)
            assert response is not None, "only a websocket is let in"
        else:
            response = Response(405, "Method Not Allowed", Headers(Allow="GET, HEAD"), b"expected GET\n")
        await _respond(response, "http", send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        request = read_request(scope)
        refusal = await self.server.admit(request)
        if refusal is None:
            await send({"type": "websocket.accept"})
            websocket = AsgiWebsocket(request, receive, send)
            try:
                await self.server.serve(websocket)
            finally:
                await websocket.close()
        elif _REPLY_EXTENSION in (scope.get("extensions") or {}):
            await _respond(refusal, _REPLY_EXTENSION, send)
        elif refusal.status_code == HTTPStatus.SERVICE_UNAVAILABLE:
            # Accepted first: servers turn a close before the acceptance into 403, which says that the key is wrong.
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.close", "code": TRY_AGAIN_LATER, "reason": _line(refusal)})
        else:
            await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": _line(refusal)})


class AsgiWebsocket:
    """A websocket of another server; see `websocket.Websocket`.

    Attributes:
        request: that has opened it.
    """

    def __init__(self, request: Request, receive: Receive, send: Send) -> None:
        """Take an accepted connection.

        Args:
            request: that has opened it.
            receive: returns the connection's next message.
            send: sends one.
        """
        self.request = request
        self._receive, self._send = receive, send
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def __aiter__(self) -> AsyncIterator[Frame]:
        while (message := await self._next()) is not None:
            text = message.get("text")
            yield message["bytes"] if text is None else text

    async def send(self, message: Frame, /) -> None:
        """Send a message. Raises `ConnectionClosed` after the end."""
        if self._end.done():
            raise ConnectionClosedOK(None, None)
        content = {"text": message} if isinstance(message, str) else {"bytes": message}
        try:
            await self._send({"type": "websocket.send", **content})
        except OSError:  # ASGI servers raise it when the client has gone
            self._note_end()
            raise ConnectionClosedOK(None, None) from None

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection. Closing twice does nothing."""
        if not self._end.done():
            self._note_end()
            with contextlib.suppress(OSError):
                await self._send({"type": "websocket.close", "code": code, "reason": reason})

    async def _next(self) -> Message | None:
        """Return the client's next message; None after the end, whichever side has closed."""
        receiving = asyncio.ensure_future(self._receive())
        ends: list[asyncio.Future[Any]] = [receiving, self._end]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            message = receiving.result() if receiving.done() else None
        finally:
            receiving.cancel()
        if message is not None and message["type"] == "websocket.receive":
            return message
        self._note_end()
        return None

    def _note_end(self) -> None:
        if not self._end.done():
            self._end.set_result(None)


def read_request(scope: Scope) -> Request:
    """Return the request of a connection, with its path below the application's root."""
    root, path = scope.get("root_path", ""), scope["path"]
    if root and (path == root or path.startswith(f"{root}/")):
        path = path[len(root) :] or "/"
    query = scope.get("query_string", b"").decode("latin-1")
    headers = Headers((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"])
    if scope["type"] == "websocket":
        headers.setdefault("Upgrade", "websocket")
    elif "Upgrade" in headers:  # a server without websockets passes it on as plain HTTP
        del headers["Upgrade"]
    return Request(f"{path}?{query}" if query else path, headers)


async def _respond(response: Response, kind: str, send: Send) -> None:
    """Send an answer of plain HTTP.

    Args:
        response: as websockets sends it.
        kind: beginning of the messages' types.
        send: sends one.
    """
    kind = "http.response" if kind == "http" else kind
    hops = ("connection", "content-length")
    headers = [
        (name.lower().encode("latin-1"), value.encode("latin-1"))
        for name, value in response.headers.raw_items()
        if name.lower() not in hops
    ]
    headers.append((b"content-length", str(len(response.body or b"")).encode()))
    await send({"type": f"{kind}.start", "status": response.status_code, "headers": headers})
    await send({"type": f"{kind}.body", "body": response.body or b"", "more_body": False})


def _line(refusal: Response) -> str:
    """Return why a request was refused, cut to fit the reason of a close frame (123 bytes)."""
    return (refusal.body or b"").decode().strip()[:120]
