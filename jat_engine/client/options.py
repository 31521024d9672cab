"""Options of a client's conversation, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import TIMEOUT_MAX
from urllib.parse import urlsplit

from ..errors import InputError
from ..serving.auth import is_key

_EXAMPLE = "ws://127.0.0.1:8000"


@dataclass(frozen=True, kw_only=True)
class ConversationOptions:
    """Addresses and limits of a conversation.

    Attributes:
        urls: of servers with the same model; the next one is tried when one is lost.
        api_key: for all of them; None for none.
        timeout_s: seconds after which an answer is given up and asked for again.
        patience_s: seconds of attempts after which a step fails.
        max_log_bytes: most bytes of steps that are kept.
    """

    urls: tuple[str, ...]
    api_key: str | None
    timeout_s: float
    patience_s: float
    max_log_bytes: int

    def __post_init__(self) -> None:
        for name in ("timeout_s", "patience_s"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= TIMEOUT_MAX:
                raise InputError(f"{name}: expected a number of seconds above 0, got {value!r:.80}")
        most = self.max_log_bytes
        if isinstance(most, bool) or not isinstance(most, int) or most < 0:
            raise InputError(f"max_log_bytes: expected an integer >= 0, got {most!r:.80}")
        if not self.urls:
            raise InputError(f"url: expected one or several such as {_EXAMPLE}, got none")
        for url in self.urls:
            _check_url(url)
        _check_key(self.api_key)

    @staticmethod
    def urls_of(url: str | Sequence[str]) -> tuple[str, ...]:
        """Return one URL, or several, as a tuple. Raises `InputError` if it is neither."""
        if isinstance(url, str):
            return (url,)
        if not isinstance(url, list | tuple):
            raise InputError(f"url: expected one or several such as {_EXAMPLE}, got {url!r:.200}")
        return tuple(url)


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        is_valid = parts.scheme in ("ws", "wss") and bool((parts.hostname or "").encode("idna")) and parts.port != 0
    except (AttributeError, TypeError, ValueError):  # no text; a port that is no number, or too large; no name
        is_valid = False
    if not is_valid:
        raise InputError(f"url: expected one such as {_EXAMPLE}, got {url!r:.200}")


def _check_key(key: str | None) -> None:
    """Check that a key can be sent. The error does not show it."""
    if key is None:
        return
    if not isinstance(key, str) or not is_key(key):
        raise InputError(
            "api_key: expected 1 to 4096 visible ASCII characters, got others; leave out the end of a file's line"
        )
