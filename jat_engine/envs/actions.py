"""Checks of what a caller gives to an environment: seeds and discrete actions."""

from __future__ import annotations

import operator
from typing import Any

from ..errors import InputError


def checked_seed(seed: Any) -> int | None:
    """Return a seed as a Python integer.

    Raises:
        InputError: the seed is not None or an integer of at least 0.
    """
    if seed is None:
        return None
    try:
        value = operator.index(seed)
    except TypeError:
        value = -1
    if value < 0:
        raise InputError(f"seed: expected None or an integer of at least 0, got {seed!r:.80}")
    return value


def discrete_action(action: Any, num_actions: int) -> int:
    """Return a discrete action as a Python integer.

    Args:
        action: an integer, or an array or tensor with one integer.
        num_actions: n; actions are in [0, n).

    Raises:
        InputError: it is neither, or outside [0, n).
    """
    try:
        single = action.item() if hasattr(action, "item") else action  # numpy and torch; fails for several values
        value = operator.index(single)
    except (TypeError, ValueError, RuntimeError):
        value = -1
    if not 0 <= value < num_actions:
        raise InputError(f"action: expected an integer in [0, {num_actions}), got {action!r:.80}")
    return value
