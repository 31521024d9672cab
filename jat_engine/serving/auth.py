"""API keys, and the addresses that a server may listen on without one."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from .addresses import is_loopback

_SCHEMES = ("api-key", "bearer")


def read_keys(path: str | Path) -> tuple[str, ...]:
    """Return the keys of a file: one in each line that is neither empty nor begins with `#`.

    Raises:
        InputError: the file cannot be read, has no key, or has one that clients cannot send, see `is_key`.
    """
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--api_key_file: expected a file with a key in each line, got {path}: {error}") from None
    for number, line in enumerate(lines, 1):
        if line and not line.startswith("#") and not is_key(line):
            raise InputError(f"--api_key_file: expected keys of visible ASCII characters, got others in line {number}")
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise InputError(f"--api_key_file: expected a file with a key in each line, got none in {path}")
    return keys


def is_key(text: str) -> bool:
    """Return True for what a header can carry as a key: 1 to 4096 visible ASCII characters, with spaces within."""
    return 1 <= len(text) <= 4096 and text == text.strip() and all(" " <= character <= "~" for character in text)


def is_allowed(authorization: str | None, keys: Sequence[str]) -> bool:
    """Return True if a request may pass. The time that this takes does not depend on the keys' characters.

    Args:
        authorization: the header `Authorization`: "Api-Key <key>" or "Bearer <key>"; None without one.
        keys: that pass; without any, every request does.
    """
    if not keys:
        return True
    scheme, _, given = (authorization or "").partition(" ")
    found = False
    for key in keys:
        found |= hmac.compare_digest(given.strip().encode(errors="surrogatepass"), key.encode())
    return found and scheme.lower() in _SCHEMES


def describe_refusal(authorization: str | None) -> str:
    """Return the line for a request that may not pass."""
    got = "none" if authorization is None else "another"
    return f"expected a key of the server's as Authorization: Api-Key <key>, got {got}"


def check_address(host: str, keys: Sequence[str], allow_public: bool) -> None:
    """Check that a server may listen on an address.

    Raises:
        InputError: others can reach the address, and there is neither a key nor leave to do without.
    """
    if not keys and not allow_public and not is_loopback(host):
        raise InputError(
            f"--host: expected an address of this machine alone without --api_key_file, got {host!r}; give a file with "
            "keys, or --allow_public to let everyone in"
        )
