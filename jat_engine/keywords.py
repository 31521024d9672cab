"""Refusal of keyword arguments that a function does not know, with the name that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from .errors import InputError


def refuse_unknown(given: Iterable[str], known: Iterable[str], what: str) -> None:
    """Check that keyword arguments are known.

    Args:
        given: names of the keyword arguments.
        known: names that are accepted.
        what: what each of them is, for the message, such as "an engine option".

    Raises:
        InputError: one is not known; the message names it, and the known name that is close to it, or else all.
    """
    names = list(dict.fromkeys(known))
    unknown = sorted(set(given) - set(names))
    if unknown:
        near = difflib.get_close_matches(unknown[0], names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(names)}"
        raise InputError(f"{unknown[0]}: expected {what}, got an unknown one; {hint}")
