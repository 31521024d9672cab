"""Dialect `/`: openpi's websocket protocol, with msgpack in both directions.

The server sends its metadata first. Then each binary message is a map of fields (`requests.FIELDS`), and is answered by
a map; an error is a line of text, for which openpi's client raises RuntimeError. `endpoint` is "infer", by default, or
"reset", as RoboArena's clients send it.

A client that has sent "resume" (see `requests.Resume`) is not openpi's: its errors are maps with the kind of the error.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ...errors import InputError
from .. import codec
from ..codec import WireError
from ..requests import (
    DEFAULT_SESSION,
    Act,
    Answer,
    Close,
    Request,
    Resumed,
    parse_act,
    parse_reset,
    parse_resume,
    parse_session_id,
)
from .base import Frame

_RESET_TEXT = "reset successful"
_ENDPOINTS = ("infer", "reset", "close", "resume")

RETRY_SECONDS = 0.05
"""Time after which a client may repeat a request that there was no room for."""


class OpenPi:
    """openpi's protocol on one connection."""

    name = "openpi"

    def __init__(self, description: dict[str, Any]) -> None:
        self._description = description
        self._previous: float | None = None
        self._describes_errors = False

    def greeting(self) -> Frame | None:
        """Return the metadata."""
        return codec.pack(self._description)

    def parse(self, frame: Frame) -> Request | Frame | None:
        """Return the request that a message is. Raises `InputError`."""
        fields = read_fields(frame)
        endpoint = _endpoint_of(fields.pop("endpoint", None))
        if endpoint == "infer":
            return parse_act(fields)
        if endpoint == "reset":
            return parse_reset(fields)
        if endpoint == "close":
            return Close(parse_session_id(fields.get("session_id")))
        self._describes_errors = True
        return parse_resume(fields)

    def reply(self, request: Request, reply: Answer, elapsed_s: float) -> Frame | None:
        """Return the actions with openpi's times; to a reset the text that RoboArena's clients expect."""
        if reply is None:
            return _RESET_TEXT if not isinstance(request, Close) else codec.pack({"status": "closed"})
        if isinstance(reply, Resumed):
            return codec.pack(
                {
                    "status": reply.status,
                    "seq": reply.seq,
                    "has_snapshots": reply.has_snapshots,
                    "reason": reply.reason,
                }
            )
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
        if reply.prediction is not None:
            message["predictions"] = reply.prediction[None]
        if reply.snapshot_seq is not None:
            message["snapshot_seq"] = reply.snapshot_seq
        return codec.pack(message)

    def error(self, message: str, request: Request | None, kind: str) -> Frame:
        """Return the line, as text, or in a map for a client that resumes sessions."""
        if not self._describes_errors:
            return message
        described: dict[str, Any] = {"error": message, "kind": kind}
        if request is not None and request.seq is not None:
            described["seq"] = request.seq
        if kind == "overload":
            described["retry_after_s"] = RETRY_SECONDS
        return codec.pack(described)


def _endpoint_of(value: Any) -> str:
    if value is None:
        return "infer"
    if isinstance(value, str) and (not value or value in _ENDPOINTS):
        return value or "infer"
    raise InputError(f"endpoint: expected one of {', '.join(_ENDPOINTS)}, got {value!r:.80}")


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
