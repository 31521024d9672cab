"""Check which web pages a server takes browsers' requests from.

Any web page may open a websocket to any address that its viewer's browser reaches, such as 127.0.0.1, and could open
sessions there. The browser sends the page's origin in the header `Origin`, which other clients leave out. By DNS
rebinding, a page's name comes to stand for 127.0.0.1; requests then have that name in `Host`.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from websockets.http11 import Request

from ..errors import InputError
from .addresses import is_loopback
from .http_requests import header

ANY = "*"
"""Stands for all origins."""

_DEFAULT_PORTS = {"http": 80, "https": 443}


def parse_origins(values: Sequence[str]) -> tuple[str, ...]:
    """Return origins in the form in which they are compared: scheme, host and port.

    Args:
        values: such as "https://robots.example:8443"; "*" for all.

    Raises:
        InputError: one is not an origin.
    """
    found = tuple(ANY if value == ANY else _normalise(value) for value in values)
    for value, origin in zip(values, found, strict=True):
        if not origin:
            raise InputError(
                f"--allowed_origins: expected origins such as https://robots.example:8443, or {ANY}, got {value!r:.80}"
            )
    return tuple(origin for origin in found if origin is not None)


def is_allowed_origin(request: Request, allowed: Sequence[str]) -> bool:
    """Return True unless a request's `Origin` is a page of another server that is not allowed.

    Args:
        request: of HTTP.
        allowed: further origins, of `parse_origins`.
    """
    origin = header(request, "Origin")
    if origin is None or ANY in allowed:
        return True
    normal = _normalise(origin)
    if normal is None:
        return False
    return normal in allowed or normal == _normalise(f"{urlsplit(normal).scheme}://{header(request, 'Host') or ''}")


def is_local_name(request: Request, host: str, allowed: Sequence[str]) -> bool:
    """Return True if the `Host` of a request to a loopback address names this machine, or is missing.

    Args:
        request: of HTTP.
        host: that the server listens on.
        allowed: origins, of `parse_origins`, whose names may stand for this machine.
    """
    given = header(request, "Host")
    if given is None or ANY in allowed:
        return True
    name = _host_of(f"//{given}")
    return name is not None and (
        name == host.lower() or is_loopback(name) or name in [_host_of(origin) for origin in allowed]
    )


def _normalise(origin: str) -> str | None:
    """Return scheme, host and port in one form; None for what is not an origin, such as "null"."""
    try:
        parts = urlsplit(origin.strip().lower())
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or parts.path not in ("", "/"):
        return None
    if parts.query or parts.fragment or parts.username is not None:
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{port or _DEFAULT_PORTS[parts.scheme]}"


def _host_of(url: str) -> str | None:
    try:
        return urlsplit(url.lower()).hostname
    except ValueError:
        return None
