"""Checks of what a caller gives to an environment: seeds and actions."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

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


def continuous_action(action: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return a continuous action as an array of its action space's shape, in the dtype that it has. It is not clipped.

    Args:
        action: as many numbers as the shape has, in a list, array or tensor; a single one may be a plain number.
        shape: of the action space.

    Raises:
        InputError: it is none of these, or has a NaN.
    """
    if hasattr(action, "detach"):  # a tensor
        action = action.detach().cpu()
    try:
        values = np.asarray(action)
    except (TypeError, ValueError):  # ragged
        values = np.asarray(None)
    if values.dtype.kind not in "fiu" or values.size != math.prod(shape):
        given = f"{values.dtype} {values.shape}" if values.dtype.kind in "fiu" else f"{action!r:.80}"
        raise InputError(f"action: expected numbers of shape {shape}, got {given}")
    if np.isnan(values).any():
        raise InputError(
            f"action: expected numbers, got NaN at {np.argwhere(np.isnan(values.ravel())).ravel().tolist()}"
        )
    return values.reshape(shape)
