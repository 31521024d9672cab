"""Dialect `/vla-eval`: the protocol of vla-evaluation-harness, whose client speaks first.

Each message is a map of `type`, `payload`, `seq` and `timestamp`. HELLO is answered by HELLO, OBSERVATION by ACTION or
ERROR of the same `seq`; EPISODE_START and EPISODE_END get no answer unless they are refused. Settings of an episode
come with its start, in the payload or in its `task`, or with any observation.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ...errors import InputError
from .. import codec
from ..codec import WireError
from ..requests import Answer, Reply, Request, Reset, parse_act, parse_settings
from .base import Frame
from .openpi import read_fields

PROTOCOL_VERSION = 1

_SETTINGS = ("action_space", "context_window", "seed", "deterministic")
_TASK = ("name", *_SETTINGS)
_TYPES = ("hello", "episode_start", "observation", "episode_end", "error")


class VlaEval:
    """vla-eval's protocol on one connection.

    `seq` numbers all messages of a client, and is echoed; a repeated one is another request.
    """

    name = "vla-eval"

    def __init__(self, description: dict[str, Any]) -> None:
        self._description = description
        self._seq = 0

    def greeting(self) -> Frame | None:
        """Return None: the client begins."""
        return None

    def parse(self, frame: Frame) -> Request | Frame | None:
        """Return the request that a message is, or the answer to HELLO. Raises `InputError`."""
        message = read_fields(frame)
        self._seq = 0
        seq, kind, payload = message.get("seq"), message.get("type"), message.get("payload")
        if isinstance(seq, int) and not isinstance(seq, bool):
            self._seq = seq
        else:
            raise WireError(f"seq: expected an integer, got {seq!r:.80}")
        if not isinstance(payload, Mapping):
            raise WireError(f"payload: expected a map, got {type(payload).__name__}")

        if not isinstance(kind, str) or kind not in _TYPES:
            raise InputError(f"type: expected one of {', '.join(_TYPES)}, got {kind!r:.80}")
        if kind == "observation":
            if "session_id" in payload:  # answers are told apart by `seq` alone, one after the other
                raise InputError("session_id: expected none with this protocol, got one; connect once for each session")
            return parse_act({str(key): value for key, value in payload.items()})
        if kind == "hello":
            return self._message("hello", self._hello())
        if kind == "episode_start":
            return Reset(parse_settings(_settings_of(payload)))
        return None

    def reply(self, request: Request, reply: Answer, elapsed_s: float) -> Frame | None:
        """Return the action, float32 [A] or int64 []; None for the start of an episode."""
        if not isinstance(reply, Reply):
            return None
        payload: dict[str, Any] = {"actions": reply.array[0]}
        if reply.prediction is not None:
            payload["predictions"] = reply.prediction
        return self._message("action", payload)

    def error(self, message: str, request: Request | None, kind: str) -> Frame:
        """Return the line in an ERROR."""
        return self._message("error", {"error": message})

    def _hello(self) -> dict[str, Any]:
        return {
            "harness_version": self._description["version"],
            "protocol_version": PROTOCOL_VERSION,
            "model_server": "jat-engine",
            "capabilities": {},
            "server": self._description,
        }

    def _message(self, kind: str, payload: dict[str, Any]) -> bytes:
        message = {"type": kind, "payload": payload, "seq": self._seq, "timestamp": time.time()}
        return codec.pack_with_text_keys(message)


def _settings_of(payload: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the settings in the payload of an episode's start; a benchmark's own fields are left out."""
    task = payload.get("task")
    if not isinstance(task, Mapping):
        return {key: payload[key] for key in ("task", *_SETTINGS) if key in payload}
    found = {key: value for key in _TASK if (value := task.get(key, payload.get(key))) is not None}
    name = found.pop("name", None)
    if name is not None and "action_space" not in found:  # a name that is not published may come with a space
        found["task"] = name
    return found
