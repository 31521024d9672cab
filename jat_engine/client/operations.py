"""Operations of a conversation on its connection and their outcomes, for blocking calls and for event loops."""

from __future__ import annotations

import socket
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from websockets.exceptions import ConnectionClosed, InvalidStatus, InvalidURI, WebSocketException

from ..errors import InputError, one_line
from ..serving.addresses import is_loopback
from ..serving.close_codes import TRY_AGAIN_LATER
from .errors import AccessError, Busy, Lost


class Open(NamedTuple):
    """Connect; raises `AccessError`, `InputError` or `Lost`.

    Attributes:
        url: of the server.
        headers: of the request.
        seconds: after which the server counts as lost.
    """

    url: str
    headers: dict[str, str]
    seconds: float

    @property
    def proxy(self) -> Literal[True] | None:
        """Return True to take the proxy that the environment names, if any; None for an address of this machine."""
        return None if is_loopback(urlsplit(self.url).hostname or "") else True


class Exchange(NamedTuple):
    """Send a message, if there is one, and return the next one that comes; raises `Lost`.

    Attributes:
        frame: to send; None to wait for the server's.
        seconds: to wait for the answer.
    """

    frame: bytes | None
    seconds: float


class Pause(NamedTuple):
    """Wait.

    Attributes:
        seconds: to wait.
    """

    seconds: float


class HangUp(NamedTuple):
    """Close the connection, if there is one, without waiting for the server."""


Operation = Open | Exchange | Pause | HangUp


def translate(error: Exception) -> Exception:
    """Return the exception of an operation for one of websockets or the network."""
    if isinstance(error, InvalidStatus):
        return _refusal(error)
    if isinstance(error, ConnectionClosed):
        close = error.rcvd
        if close is not None and close.code == TRY_AGAIN_LATER:
            return Busy(one_line(close.reason), None)
        return Lost(one_line(f"the connection was closed ({error})"))
    if isinstance(error, InvalidURI):
        return InputError(f"url: expected one such as ws://127.0.0.1:8000, got {error.uri!r:.200}")
    if isinstance(error, TimeoutError):
        return Lost("there was no answer in time")
    if isinstance(error, OSError):
        return Lost(one_line(error), is_absent=isinstance(error, ConnectionRefusedError | socket.gaierror))
    if isinstance(error, EOFError | WebSocketException):
        return Lost(one_line(error))
    return error


def _refusal(error: InvalidStatus) -> Exception:
    response = error.response
    line = one_line((response.body or b"").decode(errors="replace"))[:200]
    if response.status_code == 401:
        return AccessError(f"api_key: expected one of the server's keys; it says: {line}")
    if response.status_code == 403:
        return AccessError(f"url: expected a server that lets this client in; it says: {line}")
    if response.status_code == 404:
        return InputError(f"url: expected a path that the server has; it says: {line}")
    if response.status_code in (429, 503):
        after = response.headers.get("Retry-After", "")
        return Busy(line, float(after) if after.isdigit() else None)
    return Lost(f"the server answered with status {response.status_code}: {line}")
