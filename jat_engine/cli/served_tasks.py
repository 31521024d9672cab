"""Ask a policy server for the tasks that its model was trained on."""

from __future__ import annotations

import json
import urllib.request
from http.client import HTTPException
from urllib.parse import urlsplit, urlunsplit

from ..checkpoint.trained_tasks import TrainedTask, from_json
from ..serving.addresses import is_loopback
from .arguments import note

TASKS_PATH = "/tasks"
"""Path at which a server tells them, after that of its websockets."""

_SECONDS, _MOST_BYTES = 20.0, 1 << 24


def fetch_trained_tasks(url: str, api_key: str | None) -> list[TrainedTask]:
    """Return the tasks that a server's model was trained on; an empty list, with a note, if it does not say.

    Args:
        url: of the server, as `RemoteAgent` takes it.
        api_key: for it; None for none.
    """
    parts = urlsplit(url)
    scheme = "https" if parts.scheme == "wss" else "http"
    address = urlunsplit((scheme, parts.netloc, parts.path.rstrip("/") + TASKS_PATH, parts.query, ""))
    headers = {} if api_key is None else {"Authorization": f"Api-Key {api_key}"}
    proxies = urllib.request.ProxyHandler({}) if is_loopback(parts.hostname or "") else urllib.request.ProxyHandler()
    try:
        request = urllib.request.Request(address, headers=headers)
        with urllib.request.build_opener(proxies).open(request, timeout=_SECONDS) as answer:
            return from_json(json.loads(answer.read(_MOST_BYTES)))
    except (OSError, HTTPException, ValueError, KeyError, TypeError, AttributeError) as error:
        note(f"{address} does not say what the model was trained on, so seeds of its training may be played: {error}")
        return []
