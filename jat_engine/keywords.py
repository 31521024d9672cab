"""Refusal of names that are not known, with the ones that were probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from .errors import InputError

_MOST_CHARACTERS = 200
"""Most characters of a name that similar ones are looked for."""


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
        hint = did_you_mean(unknown[0], names, f"expected one of {', '.join(names)}")
        raise InputError(f"{unknown[0]}: expected {what}, got an unknown one; {hint}")


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "", *, most: int = 1, cutoff: float = 0.6) -> str:
    """Return a question for the known names that are close to an unknown one, such as "did you mean seed?".

    Args:
        name: the unknown name.
        known: names that are accepted.
        otherwise: returned if none of them is close.
        most: how many of them are named at most.
        cutoff: least similarity, from 0 to 1.
    """
    if len(name) > _MOST_CHARACTERS:  # of a stranger: the search would take long
        return otherwise
    near = difflib.get_close_matches(name, list(known), n=most, cutoff=cutoff)
    return f"did you mean {', '.join(near)}?" if near else otherwise
