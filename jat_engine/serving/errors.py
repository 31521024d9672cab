"""Errors of a policy server that clients meet, and the kinds by which they are counted."""

from __future__ import annotations

from ..errors import CacheFullError, InputError, SessionError, one_line
from .codec import WireError

MOST_CHARACTERS = 1000
"""Most characters of the line that a client is told; a message repeats parts of what was sent."""


class OverloadError(RuntimeError):
    """Request that a server has no room for now. Sessions are as before; it can be repeated later."""


class ServerError(RuntimeError):
    """Failure within the server. Its log has the traceback; the session begins again with a new episode."""


_KINDS: tuple[tuple[type[Exception], str], ...] = (
    (WireError, "wire"),
    (InputError, "input"),
    (SessionError, "session"),
    (OverloadError, "overload"),
    (CacheFullError, "overload"),
)

KINDS = ("wire", "input", "session", "overload", "fault")
"""Kinds of errors."""


def kind_of(error: Exception) -> str:
    """Return the kind of an error, of `KINDS`."""
    return next((kind for cls, kind in _KINDS if isinstance(error, cls)), "fault")


def message_of(error: Exception) -> str:
    """Return the line that a client is told; that of a failure within the server shows nothing of its code."""
    if isinstance(error, ServerError) or kind_of(error) != "fault":
        return one_line(error)[:MOST_CHARACTERS]
    return "server: internal error; its log has the traceback"
