"""Answer plain HTTP requests: health, readiness, metrics and configuration."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, NamedTuple

from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from .auth import describe_refusal, is_allowed
from .errors import OverloadError
from .http_requests import header, path_of
from .metrics import CONTENT_TYPE
from .service import PolicyService

OPEN_PATHS = ("/healthz", "/health", "/ready")
"""Paths that need no key."""

RETRY_AFTER = "1"
"""Value of the header: seconds after which a client may connect again to a server that loads its model or is full."""


class Page(NamedTuple):
    """Answer to a request.

    Attributes:
        status: of the answer.
        body: content.
        type: value of the header Content-Type.
        headers: further ones, by name.
    """

    status: HTTPStatus
    body: bytes
    type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = MappingProxyType({})


Route = Callable[[], Awaitable[Page]]


def respond(page: Page) -> Response:
    """Return an answer as websockets sends it."""
    headers = Headers()
    headers["Content-Type"] = page.type
    headers["Content-Length"] = str(len(page.body))
    headers["Connection"] = "close"
    headers["X-Content-Type-Options"] = "nosniff"
    headers.update(page.headers)
    return Response(page.status.value, page.status.phrase, headers, page.body)


def refuse(status: HTTPStatus, line: str) -> Response:
    """Return the answer that refuses a request, with a line that says why."""
    response = respond(Page(status, f"{line}\n".encode()))
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        response.headers["Retry-After"] = RETRY_AFTER
    return response


class HttpPages:
    """Pages of a server. Further ones are added to `routes`.

    Attributes:
        routes: path -> function that returns its page.
        open_paths: paths that need no key.
    """

    def __init__(self, service: PolicyService, describe: Callable[[], dict[str, Any]], keys: tuple[str, ...]) -> None:
        """Take what the pages show.

        Args:
            service: of the server.
            describe: returns the server's description, as JSON values.
            keys: that open the pages other than `OPEN_PATHS`.
        """
        self._service, self._describe, self._keys = service, describe, keys
        self.open_paths = set(OPEN_PATHS)
        self.routes: dict[str, Route] = {
            "/healthz": self._healthz,
            "/health": self._health,
            "/ready": self._ready,
            "/metrics": self._metrics,
            "/config": self._config,
        }

    async def answer(self, request: Request) -> Response:
        """Return the answer to a request."""
        path = path_of(request)
        route = self.routes.get(path)
        if route is None:
            return refuse(HTTPStatus.NOT_FOUND, f"expected a path of {', '.join(self.routes)}, got {path:.80}")
        if path not in self.open_paths and not is_allowed(header(request, "Authorization"), self._keys):
            return refuse(HTTPStatus.UNAUTHORIZED, describe_refusal(header(request, "Authorization")))
        return respond(await route())

    async def _healthz(self) -> Page:
        return Page(HTTPStatus.OK, b"OK\n")

    async def _health(self) -> Page:
        return json_page({"status": "ok"})

    async def _ready(self) -> Page:
        if self._service.is_ready:
            return Page(HTTPStatus.OK, b"ready\n")
        return Page(HTTPStatus.SERVICE_UNAVAILABLE, f"{self._service.why_not_ready}\n".encode())

    async def _metrics(self) -> Page:
        metrics = self._service.metrics
        metrics.queue.set(self._service.batcher.queue_length)
        with contextlib.suppress(OverloadError):  # still loading, or at the end: the other metrics are there
            metrics.set_cache(await self._service.cache_stats())
        return Page(HTTPStatus.OK, metrics.to_text(), CONTENT_TYPE)

    async def _config(self) -> Page:
        return json_page(self._describe())


def json_page(value: Any) -> Page:
    """Return the answer with a value as JSON."""
    return Page(HTTPStatus.OK, json.dumps(value).encode(), "application/json")
