"""Interface of a client's websocket, on the server's own port or behind another server's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

from websockets.http11 import Request

from .dialects import Frame


class Websocket(Protocol):
    """An open websocket; `websockets.asyncio.server.ServerConnection` is one.

    Iterating over it yields the client's messages until it closes the connection.
    """

    @property
    def request(self) -> Request | None:
        """Request that has opened it."""

    def __aiter__(self) -> AsyncIterator[Any]:
        """Yield messages: text or bytes. Raises `websockets.exceptions.ConnectionClosed` after an error."""

    async def send(self, message: Frame, /) -> None:
        """Send a message. Raises `websockets.exceptions.ConnectionClosed`."""

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection. Closing twice does nothing."""
