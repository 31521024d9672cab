"""Read and write action spaces as the data of requests, snapshots and records, without Gymnasium."""

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
        low: lower bounds, a number or [A]; -inf for none.
        high: upper bounds, a number or [A]; inf for none.
        shape: (A,), the numbers of an action.
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
            or `{"type": "Discrete", "n": n}`. Gymnasium's further fields, `dtype` and `start` (0), are accepted.

    Raises:
        InputError: it is neither, or bounds are given as a list with something else than numbers.
    """
    if isinstance(value, Mapping):
        kind = value.get("type")
        kind = kind if isinstance(kind, str) else None
        if kind == "Discrete" and set(value) <= {"type", "n", "start"}:
            n, start = value.get("n"), value.get("start", 0)
            if is_integer(n) and n >= 1 and is_integer(start) and start == 0:
                return Discrete(int(n))
        if kind == "Box" and set(value) <= {"type", "shape", "low", "high", "dtype"}:
            shape = value.get("shape")
            shape = shape.tolist() if isinstance(shape, np.ndarray) else shape
            if isinstance(shape, list | tuple) and len(shape) == 1 and is_integer(shape[0]) and shape[0] >= 1:
                low, high = (to_numbers(name, value.get(name)) for name in ("low", "high"))
                return Box(-np.inf if low is None else low, np.inf if high is None else high, (int(shape[0]),))
    raise InputError(
        'action_space: expected {"type": "Box", "shape": [A]} or {"type": "Discrete", "n": n}, got ' + f"{value!r:.80}"
    )


def to_numbers(field: str, value: Any) -> Any:
    """Return a list of a message as an array, and any other value as it is, for an engine to check.

    Texts and bytes are refused before NumPy makes an array of them: each would take as much memory as the longest.

    Args:
        field: name of the value, for the error.
        value: of a request.

    Raises:
        InputError: a list holds something else than numbers, or lists of different lengths.
    """
    if not isinstance(value, list):
        return value
    _check_numbers(field, value)
    try:
        return np.asarray(value)
    except ValueError:
        raise InputError(f"{field}: expected numbers, got lists of different lengths") from None


def _check_numbers(field: str, values: list[Any]) -> None:
    for value in values:
        if isinstance(value, list):
            _check_numbers(field, value)
        elif not isinstance(value, bool | int | float | np.generic | np.ndarray):
            raise InputError(f"{field}: expected numbers, got a list with {type(value).__name__}")


def describe_space(space: Any, with_bounds: bool = False) -> dict[str, Any]:
    """Return an action space as data that `parse_space` reads.

    Args:
        space: Box or Discrete of this module, or of Gymnasium.
        with_bounds: give `low` and `high` of a Box, as the space has them: numbers, or arrays of [A].
    """
    if hasattr(space, "n"):
        return {"type": "Discrete", "n": int(space.n)}
    described: dict[str, Any] = {"type": "Box", "shape": [int(size) for size in space.shape]}
    return described | {"low": space.low, "high": space.high} if with_bounds else described


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


def is_integer(value: Any) -> TypeGuard[int]:
    """Return True for an integer of Python or NumPy, which a bool is not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
