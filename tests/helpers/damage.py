"""Damaged files: bytes that differ, and JSON with other values in every place."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

JSON_VALUES: list[Any] = [None, True, False, 0, 1, 3, 16, 64, -1, 2**31, 2**63, 10**400]
JSON_VALUES += [0.0, 0.5, 1e308, math.nan, math.inf]
JSON_VALUES += ["", "a", "\ud800", "continuous", "discrete+text", "image", "<f4", "|u1", "|O8"]
JSON_VALUES += [[], [1], [[]], [-1], [2**62, 4], ["a"], ["discrete", 2], {}, {"a": 1}, {"n": 3}]
"""Values that a place of a JSON document may have."""


def damaged(data: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """Yield so many copies of some bytes that are cut off, or differ in one to three places."""
    numbers = random.Random(seed)
    for _ in range(count):
        changed = bytearray(data)
        if numbers.random() < 0.1:
            del changed[numbers.randrange(len(data)) :]
        else:
            for place in numbers.choices(range(len(data)), k=numbers.randint(1, 3)):
                changed[place] ^= numbers.randint(1, 255)
        yield bytes(changed)


def with_other_values(document: Any, values: Sequence[Any] = JSON_VALUES) -> Iterator[Any]:
    """Yield copies of a JSON document in which one place is missing, or has one of some values."""
    for *owners, last in _places(document):
        for value in values:
            changed = copy.deepcopy(document)
            _at(changed, owners)[last] = value
            yield changed
        changed = copy.deepcopy(document)
        del _at(changed, owners)[last]
        yield changed


def _at(document: Any, keys: Sequence[Any]) -> Any:
    for key in keys:
        document = document[key]
    return document


def _places(node: Any, keys: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*keys, key)
        yield from _places(value, (*keys, key))
