"""The page for a browser, at `/`: one file without anything from elsewhere, fed by `/status`."""

from __future__ import annotations

import base64
import hashlib
import re
from http import HTTPStatus
from importlib import resources

from .http import HttpPages, Page
from .watch import Watch

_STATUS = "/status"


def add_page(pages: HttpPages, watch: Watch) -> None:
    """Add the page, which needs no key, and `/status`, which does where there are keys.

    Args:
        pages: of the server.
        watch: whose status the page shows.
    """
    index = _index()

    async def show_index() -> Page:
        return index

    async def show_status() -> Page:
        headers = {"Cache-Control": "no-store"}
        return Page(HTTPStatus.OK, await watch.status(), "application/json", headers)

    pages.routes |= {"/": show_index, _STATUS: show_status}
    pages.open_paths.add("/")


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
