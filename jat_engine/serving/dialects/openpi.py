"""Dialect `/`: openpi's websocket protocol, with msgpack in both directions.

The server sends its metadata first. Then each binary message is a map of fields (`requests.FIELDS`), and is answered by
a map; an error is a line of text, for which openpi's client raises RuntimeError. `endpoint` is "infer", by default, or
"reset", as RoboArena's clients send it; a reset without `session_id` is of the session of the request before.

A client that has sent "resume" (see `requests.Resume`) is not openpi's: its errors are maps with the kind of the error.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...config import FRAME_SHAPE
from ...errors import InputError
from .. import codec
from ..codec import WireError
from ..requests import (
    DEFAULT_SESSION,
    Act,
    Answer,
    Close,
    Request,
    Reset,
    Resumed,
    parse_act,
    parse_close,
    parse_reset,
    parse_resume,
)
from .base import Frame

RESET_REPLIES = ("text", "msgpack")
"""Ways to answer a reset: the text that RoboArena's clients expect, or a map that vllm-omni's do."""

_RESET_TEXT = "reset successful"
_NO_CAMERAS: dict[str, Any] = {
    "image_resolution": list(FRAME_SHAPE[:2]),
    "n_external_cameras": 0,
    "needs_wrist_camera": False,
    "needs_stereo_camera": False,
    "needs_session_id": False,
}
"""Fields by which RoboArena's and vllm-omni's clients choose what to send: none of a robot's pictures are wanted."""

_ENDPOINTS = ("infer", "reset", "close", "resume")

RETRY_SECONDS = 0.05
"""Time after which a client may repeat a request that there was no room for."""


class OpenPi:
    """openpi's protocol on one connection."""

    name = "openpi"

    def __init__(self, description: dict[str, Any], reset_reply: str = "text") -> None:
        self._description = description
        self._replies_by_text = reset_reply == "text"
        self._last_session = DEFAULT_SESSION
        self._previous: float | None = None
        self._describes_errors = False

    def greeting(self) -> Frame | None:
        """Return the metadata."""
        return codec.pack({**_NO_CAMERAS, **self._description})

    def parse(self, frame: Frame) -> Request | Frame | None:
        """Return the request that a message is. Raises `InputError`."""
        fields = read_fields(frame)
        endpoint = read_endpoint(fields, _ENDPOINTS)
        if endpoint == "infer":
            act = parse_act(fields)
            self._last_session = act.session_id
            return act
        if endpoint == "reset":
            reset = parse_reset(fields)
            return reset if reset.session_id else replace(reset, session_id=self._last_session)
        if endpoint == "close":
            return parse_close(fields)
        self._describes_errors = True
        return parse_resume(fields)

    def reply(self, request: Request, reply: Answer, elapsed_s: float) -> Frame | None:
        """Return the actions with openpi's times; to a reset that it was successful."""
        if reply is None:
            return codec.pack({"status": "closed"}) if isinstance(request, Close) else self._reset_reply()
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

    def _reset_reply(self) -> Frame:
        return _RESET_TEXT if self._replies_by_text else codec.pack({"status": _RESET_TEXT})

    def error(self, message: str, request: Request | None, kind: str) -> Frame:
        """Return the line, as text, or in a map for a client that resumes sessions."""
        if not self._describes_errors:
            return message
        described: dict[str, Any] = {"error": message, "kind": kind}
        if isinstance(request, Act | Reset) and request.seq is not None:
            described["seq"] = request.seq
        if kind == "overload":
            described["retry_after_s"] = RETRY_SECONDS
        return codec.pack(described)


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


def read_endpoint(fields: dict[str, Any], endpoints: tuple[str, ...]) -> str:
    """Return the endpoint of a message, and remove it from its fields; "infer" if it is missing, None or empty.

    Args:
        fields: of the message.
        endpoints: that the dialect has.

    Raises:
        InputError: it is none of them.
    """
    value = fields.pop("endpoint", None)
    if value is None:
        return "infer"
    if isinstance(value, str) and (not value or value in endpoints):  # an array has neither truth nor equality
        return value or "infer"
    raise InputError(f"endpoint: expected one of {', '.join(endpoints)}, got {value!r:.80}")
