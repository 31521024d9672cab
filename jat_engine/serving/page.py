"""The page for a browser, at `/`: one file without anything from elsewhere, fed by `/status`."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from http import HTTPStatus
from importlib import resources
from typing import Any

from .demo import Demo
from .http import Page
from .server import PolicyServer
from .watch import Watch


def add_page(server: PolicyServer, describe: Callable[[], dict[str, Any]], demo: Demo | None = None) -> Watch:
    """Add the page, which needs no key, and `/status` and `/play`, which do where there are keys.

    Args:
        server: to add them to.
        describe: returns the server's description, as JSON values.
        demo: environments that viewers can watch; None for none.

    Returns:
        The observer whose status the page shows.
    """
    watch, index = Watch(server.service, describe), _index()

    async def show_index() -> Page:
        return index

    async def show_status() -> Page:
        return Page(HTTPStatus.OK, await watch.status(), "application/json", {"Cache-Control": "no-store"})

    server.pages.routes |= {"/": show_index, "/status": show_status}
    server.pages.open_paths.add("/")
    if demo is not None:
        watch.extra = demo.describe
        server.channels["/play"] = demo.serve
    return watch


def _index() -> Page:
    """Return the page. Browsers run its own script and style alone, and let no text become markup."""
    html = resources.files(__package__).joinpath("static/index.html").read_text(encoding="utf-8")
    policy = [
        "default-src 'none'",
        f"script-src {_hash(html, 'script')}",
        f"style-src {_hash(html, 'style')}",
        "img-src data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
    headers = {
        "Content-Security-Policy": "; ".join(policy),
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cache-Control": "no-cache",
    }
    return Page(HTTPStatus.OK, html.encode(), "text/html; charset=utf-8", headers)


def _hash(html: str, tag: str) -> str:
    """Return the source expression of the page's only element of a kind: the hash of its text."""
    (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
