"""Options of a call that restrict the choice of an action: masks, temperature, top-k, and clipping."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .errors import InputError
from .observation import ActionSpace, describe, to_array

_LEAST_TEMPERATURE, _GREATEST_TEMPERATURE = 1e-30, 1e30
"""Temperatures beyond these count as these: float32 noise times a temperature, and logits over one, stay numbers. At
these already, sampling takes the most likely choice, or is uniform."""


class ActionOptions(NamedTuple):
    """Options of a call, as `parse_options` returns them. What depends on the action space is checked by `bind`.

    Attributes:
        action_mask: as it was given.
        temperature: None, 0, or in [1e-30, 1e30].
        top_k: None, or at least 1.
        action_clip: None or "box".
        is_shared: the options except `action_mask` are given for several agents whose action spaces differ, and apply
            to those that they fit.
    """

    action_mask: Any = None
    temperature: float | None = None
    top_k: int | None = None
    action_clip: str | None = None
    is_shared: bool = False

    def bind(self, space: ActionSpace, action_space: Any, num_agents: int | None = None) -> ActionRule:
        """Return the options as they apply to an action space.

        Args:
            space: the checked action space.
            action_space: the same as it was given, with the bounds of a Box.
            num_agents: N, whose masks are the rows of one array; None for a single agent.

        Raises:
            InputError: an option does not fit the action space, or a mask is not [N, n] bools that allow something.
        """
        given = {"action_mask" if num_agents is None else "action_masks": self.action_mask}
        if not self.is_shared:
            given |= {"temperature": self.temperature, "top_k": self.top_k, "action_clip": self.action_clip}
        for name, value in given.items():
            expected = "Box" if name == "action_clip" else "Discrete"
            if value is not None and (expected == "Box") != (space.kind == "continuous"):
                raise InputError(
                    f"{name}: expected a {expected} for action_space with it, got {action_space!r:.80}; leave it out "
                    f"for {space.kind} actions"
                )

        if space.kind == "continuous":
            return ActionRule(bounds=None if self.action_clip is None else _read_bounds(action_space, space.size))
        allowed = None if self.action_mask is None else _parse_mask(self.action_mask, space.size, num_agents)
        top_k = None if self.top_k is None or self.top_k >= space.size else self.top_k
        return ActionRule(allowed, 1.0 if self.temperature is None else self.temperature, top_k)


@dataclass(frozen=True, slots=True)
class ActionRule:
    """Options of a call for its action space.

    Attributes:
        allowed: bool [N, n], the choices that may be taken; None for all.
        temperature: 0 for the most likely choices; else logits are divided by it.
        top_k: sample from this many most likely allowed choices; None for all.
        bounds: lower and upper bounds of continuous actions, float32 [A] each; None to leave actions as predicted.
    """

    allowed: np.ndarray | None = None
    temperature: float = 1.0
    top_k: int | None = None
    bounds: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def is_greedy(self) -> bool:
        """True if the most likely choices are to be taken."""
        return self.temperature == 0

    def clip(self, values: Sequence[np.ndarray] | np.ndarray) -> Sequence[np.ndarray] | np.ndarray:
        """Return continuous actions within the bounds.

        Args:
            values: float32 [N, A], finite; an array, or a list of rows.
        """
        if self.bounds is None:
            return values
        if isinstance(values, np.ndarray):
            return values.clip(*self.bounds)
        return [row.clip(*self.bounds) for row in values]


def parse_options(
    action_mask: Any, temperature: Any, top_k: Any, action_clip: Any, is_shared: bool = False
) -> ActionOptions | None:
    """Check options of a call as far as that is possible without the action space.

    Args:
        action_mask: choices that are allowed, or None.
        temperature: divisor of the logits, or None.
        top_k: number of most likely choices to sample from, or None.
        action_clip: "box" or None.
        is_shared: see `ActionOptions`.

    Returns:
        The options; None if none was given, the usual case.

    Raises:
        InputError: names the option, what was expected and what came.
    """
    if action_mask is None and temperature is None and top_k is None and action_clip is None:
        return None
    if temperature is not None:
        temperature = _parse_temperature(temperature)
    if top_k is not None:
        if isinstance(top_k, bool) or not isinstance(top_k, int | np.integer) or top_k < 1:
            raise InputError(f"top_k: expected None or an integer >= 1, got {top_k!r:.80}")
        top_k = int(top_k)
    if action_clip is not None and not (isinstance(action_clip, str) and action_clip == "box"):
        raise InputError(f"action_clip: expected None or 'box', got {action_clip!r:.80}")
    return ActionOptions(action_mask, temperature, top_k, action_clip, is_shared)


def _parse_temperature(value: Any) -> float:
    is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not is_number or not 0 <= value < math.inf:
        raise InputError(f"temperature: expected None or a finite number >= 0, got {value!r:.80}")
    return float(min(max(value, _LEAST_TEMPERATURE), _GREATEST_TEMPERATURE)) if value else 0.0


def _parse_mask(value: Any, size: int, num_agents: int | None) -> np.ndarray:
    """Return a mask as bool [N, n]. Gymnasium's environments give masks of zeros and ones, int8."""
    field, shape = ("action_mask", (size,)) if num_agents is None else ("action_masks", (num_agents, size))
    expected = f"bools of shape {shape}, True for allowed actions"
    array = to_array(field, value, expected)
    if array.shape != shape or array.dtype.kind == "f":
        raise InputError(f"{field}: expected {expected}, got {describe(value)}")
    if array.dtype.kind != "b" and not ((array == 0) | (array == 1)).all():
        raise InputError(f"{field}: expected {expected}, got integers from {array.min()} to {array.max()}")

    allowed = array.astype(bool).reshape(-1, size)
    allows_some = allowed.any(axis=1)
    if not allows_some.all():
        whose = "" if num_agents is None else f" for agents {np.flatnonzero(~allows_some)[:8].tolist()}"
        raise InputError(f"{field}: expected at least one allowed action, got none of {size}{whose}")
    return allowed


def _read_bounds(action_space: Any, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds of a Box, float32 [A] each, rounded inwards so that a clipped action is in the Box."""
    expected = f"an action_space with low <= high of shape ({size},)"
    try:
        given = [np.broadcast_to(np.asarray(bound), (size,)) for bound in (action_space.low, action_space.high)]
        low, high = given if given[0].dtype == given[1].dtype == np.float32 else (b.astype(np.float64) for b in given)
    except (AttributeError, TypeError, ValueError):
        raise InputError(f"action_clip: expected {expected}, got {action_space!r:.80}") from None
    if not (low <= high).all():  # also false for NaN
        raise InputError(f"action_clip: expected {expected}, got low={low.tolist()!r:.80}, high={high.tolist()!r:.80}")

    if low.dtype == np.float32:  # the usual case
        return low, high
    with np.errstate(all="ignore"):  # a caller may have set numpy to raise at overflow and underflow
        lower, upper = low.astype(np.float32), high.astype(np.float32)
        lower = np.where(lower < low, np.nextafter(lower, np.float32(np.inf)), lower)
        upper = np.where(upper > high, np.nextafter(upper, np.float32(-np.inf)), upper)
    return lower, upper
