"""Dialect `/v1/realtime/robot/openpi`: vllm-omni's variant of openpi's protocol.

An observation is answered with the array of actions alone; resets and errors are answered with msgpack. A request
without `session_id` belongs to the session of the one before. A reset without it is of all sessions of the connection:
they are then given to the names that come next, since evaluators use a new name for each episode and end no session.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...errors import InputError
from .. import codec
from ..requests import DEFAULT_SESSION, Answer, Close, Reply, Request, parse_act, parse_reset
from .base import Frame
from .openpi import OpenPi, read_endpoint, read_fields

_ENDPOINTS = ("infer", "reset", "close")
_MOST_NAMES = 1024
"""Names of sessions that a connection may use between two resets."""


class VllmOmni(OpenPi):
    """vllm-omni's protocol on one connection."""

    name = "vllm-omni"

    def __init__(self, description: dict[str, Any], reset_reply: str = "msgpack") -> None:
        super().__init__(description, reset_reply)
        self._sessions: dict[str, str] = {}
        self._free: list[str] = []
        self._current = DEFAULT_SESSION

    def parse(self, frame: Frame) -> Request | Frame | None:
        """Return the request that a message is. Raises `InputError`."""
        fields = read_fields(frame)
        endpoint = read_endpoint(fields, _ENDPOINTS)
        is_named = fields.get("session_id") is not None
        if not is_named:
            fields.pop("session_id", None)
        elif isinstance(fields["session_id"], int):
            fields["session_id"] = str(fields["session_id"])

        if endpoint == "infer":
            act = parse_act(fields)
            name = act.session_id if is_named else self._current
            session, is_new = self._session(name)
            self._current = name
            return replace(act, session_id=session, begins=act.begins or is_new)
        reset = parse_reset(fields)
        name = reset.session_id if is_named else self._current
        if endpoint == "close":
            closed = self._sessions.pop(name, None)
            return Close(closed) if closed is not None else codec.pack({"status": "closed"})
        known = self._sessions.get(name)
        if not is_named:
            self._free += self._sessions.values()
            self._sessions.clear()
            self._current = DEFAULT_SESSION
        if known is None and reset.settings.is_empty:  # there is nothing to reset
            return self._reset_reply()
        return replace(reset, session_id=self._session(name)[0] if known is None else known)

    def reply(self, request: Request, reply: Answer, elapsed_s: float) -> Frame | None:
        """Return the action, float32 [1, A] or int64 [1]; or that a reset was successful."""
        return codec.pack(reply.array) if isinstance(reply, Reply) else super().reply(request, reply, elapsed_s)

    def error(self, message: str, request: Request | None, kind: str) -> Frame:
        """Return the line in a map."""
        return codec.pack({"type": "error", "message": message})

    def _session(self, name: str) -> tuple[str, bool]:
        """Return the session of a name, and True if the name has got it now: its next request begins an episode."""
        found = self._sessions.get(name)
        if found is not None:
            return found, False
        if len(self._sessions) >= _MOST_NAMES:
            raise InputError(f"session_id: expected at most {_MOST_NAMES} names in a connection, got one more; reset")
        if name in self._free:
            self._free.remove(name)
            session = name
        elif self._free:
            session = self._free.pop(0)
        else:
            session, taken = name, set(self._sessions.values())
            while session in taken:
                session += "'"
        self._sessions[name] = session
        return session, True
