"""Action spaces without gymnasium, which engines recognise by class name and fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Box:
    """A vector of numbers, as `gymnasium.spaces.Box`.

    Attributes:
        low, high: bounds; engines do not read them.
        shape: (A,).
    """

    low: Any
    high: Any
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Discrete:
    """One of `n` choices, as `gymnasium.spaces.Discrete`."""

    n: int
    start: int = 0
