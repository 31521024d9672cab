"""Dialect `/`: openpi's websocket protocol, with msgpack in both directions.

The server sends its metadata first. Then each binary message is a map of fields (`requests.FIELDS`), and is answered by
a map; an error is a line of text, for which openpi's client raises RuntimeError. `endpoint` is "infer", by default, or
"reset", as RoboArena's clients send it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ...errors import InputError
from .. import codec
from ..codec import WireError
from ..requests import DEFAULT_SESSION, Act, Close, Reply, Request, parse_act, parse_reset, parse_session_id
from .base import Frame

_RESET_TEXT = "reset successful"
_ENDPOINTS = ("infer", "reset", "close")


class OpenPi:
    """openpi's protocol on one connection."""

    name = "openpi"

    def __init__(self, description: dict[str, Any]) -> None:
        self._description = description
        self._previous: float | None = None

    def greeting(self) -> Frame | None:
        """Return the metadata."""
        return codec.pack(self._description)

    def parse(self, frame: Frame) -> Request | Frame | None:
        """Return the request that a message is. Raises `InputError`."""
        fields = read_fields(frame)
        endpoint = fields.pop("endpoint", None) or "infer"
        if endpoint == "infer":
            return parse_act(fields)
        if endpoint == "reset":
            return parse_reset(fields)
        if endpoint == "close":
            return Close(parse_session_id(fields.get("session_id")))
        raise InputError(f"endpoint: expected one of {', '.join(_ENDPOINTS)}, got {endpoint!r:.80}")

    def reply(self, request: Request, reply: Reply | None, elapsed_s: float) -> Frame | None:
        """Return the actions with openpi's times; to a reset the text that RoboArena's clients expect."""
        if reply is None:
            return _RESET_TEXT if not isinstance(request, Close) else codec.pack({"status": "closed"})
        timing: dict[str, Any] = {
            "infer_ms": elapsed_s * 1000,
            "queue_ms": reply.queue_s * 1000,
            "batch": reply.batch,
        }
        now = time.perf_counter()
        if self._previous is not None:
            timing["prev_total_ms"] = (now - self._previous) * 1000
        self._previous = now
        message: dict[str, Any] = {
            "actions": reply.array,
            "server_timing": timing,
            "policy_timing": {"infer_ms": reply.step_s * 1000},
        }
        assert isinstance(request, Act), "only a request for a step has a reply"
        if request.session_id != DEFAULT_SESSION:
            message["session_id"] = request.session_id
        if request.seq is not None:
            message["seq"] = request.seq
        return codec.pack(message)

    def error(self, message: str, request: Request | None) -> Frame:
        """Return the line, as text."""
        return message


def read_fields(frame: Frame) -> dict[str, Any]:
    """Return the fields of a message, with keys of bytes as strings.

    Raises:
        WireError: it is text, or not a map of fields.
    """
    if isinstance(frame, str):
        raise WireError("message: expected a binary one with msgpack, got text")
    fields = codec.unpack(frame)
    if not isinstance(fields, Mapping):
        raise WireError(f"message: expected a map of fields, got {type(fields).__name__}")
    if all(type(key) is str for key in fields):
        return dict(fields)
    try:
        return {key.decode() if isinstance(key, bytes) else key: value for key, value in fields.items()}
    except UnicodeDecodeError:
        raise WireError("message: expected fields with names of text, got other bytes") from None
