"""Action spaces of requests, which name them as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

from ..envs import TASKS, Task
from ..errors import InputError
from ..keywords import did_you_mean


@dataclass(frozen=True, slots=True)
class Box:
    """Vector of numbers; an engine takes it as `gymnasium.spaces.Box`.

    Attributes:
        low: lower bounds, a number or [A].
        high: upper bounds.
        shape: (A,).
    """

    low: Any
    high: Any
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Discrete:
    """One of `n` choices; an engine takes it as `gymnasium.spaces.Discrete`."""

    n: int


Space = Box | Discrete


def parse_space(value: Any) -> Space:
    """Return the action space of a request.

    Args:
        value: `{"type": "Box", "shape": [A]}`, with `low` and `high` (numbers, or [A]) where actions shall be clipped,
            or `{"type": "Discrete", "n": n}`.

    Raises:
        InputError: it is neither.
    """
    if isinstance(value, Mapping):
        kind = value.get("type")
        if kind == "Discrete" and set(value) <= {"type", "n", "start"}:
            n, start = value.get("n"), value.get("start", 0)
            if _is_integer(n) and n >= 1 and _is_integer(start) and start == 0:
                return Discrete(int(n))
        if kind == "Box" and set(value) <= {"type", "shape", "low", "high", "dtype"}:
            shape = value.get("shape")
            shape = shape.tolist() if isinstance(shape, np.ndarray) else shape
            if isinstance(shape, list | tuple) and len(shape) == 1 and _is_integer(shape[0]) and shape[0] >= 1:
                return Box(value.get("low", -np.inf), value.get("high", np.inf), (int(shape[0]),))
    raise InputError(
        'action_space: expected {"type": "Box", "shape": [A]} or {"type": "Discrete", "n": n}, got ' + f"{value!r:.80}"
    )


def describe_space(space: Any) -> dict[str, Any]:
    """Return a Box, without its bounds, or Discrete, of this module or Gymnasium's, as `parse_space` reads it."""
    if hasattr(space, "n"):
        return {"type": "Discrete", "n": int(space.n)}
    return {"type": "Box", "shape": [int(size) for size in space.shape]}


def find_task(name: Any) -> Task:
    """Return a published task by its name.

    Raises:
        InputError: there is none of this name.
    """
    if isinstance(name, str) and name in TASKS:
        return TASKS[name]
    hint = did_you_mean(name, TASKS) if isinstance(name, str) else ""
    raise InputError(f"task: expected the name of a published task, got {name!r:.80}; {hint or 'give action_space'}")


def space_of(task: Task) -> Space:
    """Return the action space of a published task, without bounds."""
    assert task.action_size is not None, "a published task"
    if task.action == "discrete":
        return Discrete(task.action_size)
    return Box(-np.inf, np.inf, (task.action_size,))


def _is_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
