"""Dialect `/v1/realtime/robot/openpi`: vllm-omni's variant of openpi's protocol.

It differs in its answers: a reset and an error are msgpack. Each `session_id` of a connection is a session of its own,
whose first inference begins an episode.
"""

from __future__ import annotations

from .. import codec
from ..requests import Close, Reply, Request
from .base import Frame
from .openpi import OpenPi


class VllmOmni(OpenPi):
    """vllm-omni's protocol on one connection."""

    name = "vllm-omni"

    def reply(self, request: Request, reply: Reply | None, elapsed_s: float) -> Frame | None:
        """Return the actions with openpi's times, or that a reset was successful."""
        if reply is None and not isinstance(request, Close):
            return codec.pack({"status": "reset successful"})
        return super().reply(request, reply, elapsed_s)

    def error(self, message: str, request: Request | None) -> Frame:
        """Return the line in a map."""
        return codec.pack({"type": "error", "message": message})
