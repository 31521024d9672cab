"""Agents that are on a server: `RemoteAgent`, and `AsyncRemoteAgent` for asyncio.

Needs the extra `serve`, but neither torch nor a model.

Example:
    >>> from jat_engine.client import RemoteAgent
"""

from __future__ import annotations

try:
    import msgpack as _msgpack  # noqa: F401
    import websockets as _websockets  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"jat_engine.client needs {error.name}, not installed here; pip install 'jat-engine[serve]'"
    ) from error

from ..serving.errors import OverloadError, ServerError
from .agent import RemoteAgent
from .async_agent import AsyncRemoteAgent
from .conversation import Recovery
from .errors import AccessError, ServerLostError

__all__ = [
    "AccessError",
    "AsyncRemoteAgent",
    "OverloadError",
    "Recovery",
    "RemoteAgent",
    "ServerError",
    "ServerLostError",
]
