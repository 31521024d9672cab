"""Read HTTP requests of any client, in which headers may be repeated and paths may be no valid URLs."""

from __future__ import annotations

from urllib.parse import urlsplit

from websockets.http11 import Request


def path_of(request: Request) -> str:
    """Return the path of a request, without its query."""
    try:
        return urlsplit(request.path).path or "/"
    except ValueError:  # such as "//["
        return request.path


def header(request: Request, name: str) -> str | None:
    """Return a header of a request, several of one name with commas between them; None without one."""
    values = request.headers.get_all(name)
    return ", ".join(values) if values else None


def is_websocket(request: Request) -> bool:
    """Return True if a request asks for a websocket."""
    return "websocket" in (header(request, "Upgrade") or "").lower()
