"""Mutate messages so that they stay msgpack, as changes of single bytes seldom do."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import msgpack

from helpers.engines import EPISODE
from helpers.servers import request_of
from helpers.serving_clients import PLAYED
from jat_engine.serving import codec
from jat_engine.serving.requests import FIELDS

TOKEN = "fuzz" * 8
"""Token of sessions that can be resumed."""

GOOD: list[dict[str, Any]] = [
    msgpack.unpackb(codec.pack(request_of(EPISODE[name], 0) | {"episode_start": True})) for name in PLAYED
]
"""Requests for a first step, as maps in which arrays are maps."""


def array(dtype: str = "<f4", shape: tuple[int, ...] = (2,), data: bytes | None = None) -> dict[bytes, Any]:
    """Return an array as a message has it; of zeros without data."""
    size = int(dtype[2:])
    for length in shape:
        size *= length
    return {
        b"__ndarray__": True,
        b"dtype": dtype,
        b"shape": list(shape),
        b"data": bytes(size) if data is None else data,
    }


_NUMBERS: list[Any] = [0, 1, -1, 2, 3, 17, 127, 255, 2**31, 2**32, 2**53, 2**63 - 1, -(2**63), 2**64 - 1]
_FLOATS = [0.0, -0.0, 0.5, 1e-45, 1e38, 1e39, -1e308, float("inf"), float("nan")]
_WORDS = [
    "",
    "\n",
    TOKEN,
    "a",
    "b",
    "infer",
    "reset",
    "close",
    "resume",
    "box",
    "Box",
    "Discrete",
    "png",
    "jpeg",
    "raw",
]
_WORDS += ["hello", "episode_start", "observation", "episode_end", "error"]
_WORDS += ["atari-pong", "babyai-go-to-obj", "mujoco-ant"]
_ARRAYS: list[Any] = [
    array(dtype, shape) for dtype in ("<f4", "<f8", "<f2", "|b1", "|u1", "<i8", ">i4", "<u8") for shape in ((2,), ())
]
_ARRAYS += [array(shape=(0,)), array(shape=(1, 1)), array("<i8", (3, 2)), array("|u1", (84, 84, 4)), array("<f4", (1,))]
_ARRAYS += [
    array("<f4", (1,), b"\0\0\xc0\x7f"),
    array("<f8", (1,), b"\xff" * 8),
    array("|O8"),
    array("<f4", (-1,), b""),
]
_SPACES: list[Any] = [{"type": "Discrete", "n": n} for n in (0, 1, 5, 18, 64, 65)]
_SPACES += [{"type": "Box", "shape": [n]} for n in (1, 3, 24)]
_SPACES += [{"type": "Box", "shape": [2], "low": low, "high": 1} for low in (-1, [0, 0], array(), "a", [[0]], 2.0)]
_LISTS: list[Any] = [[], [1.0], [[1]], [1, 2, 3], [0.0, 0.5], ["a"], [b"a" * 50] * 3, [[[[[[1]]]]]], [None]]
_MAPS: list[Any] = [{}, {"a": {}}]
_SCALARS = [
    {b"__npgeneric__": True, b"data": data, b"dtype": dtype} for data, dtype in ((1, "<i8"), (0.5, "<f4"), (1, "|b1"))
]
_SINGLE: list[Any] = [None, True, False, b"", b"\xff", *_NUMBERS, *_FLOATS, *_WORDS, *_SCALARS]
VALUES: list[Any] = [*_SINGLE, *_ARRAYS, *_SPACES, *_LISTS, *_MAPS]
"""Values that a message may have anywhere."""

_KEYS: list[Any] = [*FIELDS, "token", "name", "type", "payload", "timestamp", "unknown"]
_KEYS += ["shape", "low", "high", "n", "start", "format", "data"]
_KEYS += ["__image__", "__ndarray__", b"__ndarray__", b"data", b"dtype", b"shape", b"__npgeneric__", b"reward"]

_FITTING: dict[str, list[Any]] = {
    "endpoint": ["infer", "reset", "close", "resume", None],
    "session_id": ["a", "b", None, "c" * 128],
    "token": [TOKEN, TOKEN[::-1]],
    "seq": [*range(6), 2**63],
    "seed": [0, 1, 2**63],
    "context_window": [1, 2, 8, 9, 300],
    "action_space": _SPACES,
    "task": ["atari-pong", "mujoco-ant", "babyai-go-to-obj", {"name": "atari-pong", "seed": 0}],
    "action_clip": ["box"],
    "top_k": [1, 2, 100],
    "temperature": [0, 0.5, 1e30],
    "reward": [1.0, 0, -1e38, [1.0], array("<f4", (1,))],
    "force_action": [0, 1, 17, [0.0, 0.0, 0.0], array("<f4", (3,))],
    "type": ["hello", "episode_start", "observation", "episode_end", "error"],
}
"""Values that fit a key, apart from those of `VALUES`."""

_NESTED: dict[str, dict[str, Any]] = {
    "action_space": {"type": "Box", "shape": [2], "low": -1.0, "high": 1.0, "n": 5, "start": 0, "dtype": "float32"},
    "task": {"name": "mujoco-ant", "action_space": None, "seed": 0, "context_window": 8, "deterministic": True},
    "image_observation": {"__image__": True, "format": "raw", "data": b"\0" * 3, "shape": [1, 1, 3], "dtype": "|u1"},
    "continuous_observation": {"__ndarray__": True, "data": bytes(8), "dtype": "<f4", "shape": [2]},
}
"""Fields that are maps, with a value for each of their keys."""

_Place = tuple[dict[Any, Any] | list[Any], Any]


def with_each_value() -> Iterator[dict[str, Any]]:
    """Yield a good request with each of `VALUES` in turn as each field, and as each key of a field that is a map."""
    for value in VALUES:
        for name in (*FIELDS, "token"):
            yield GOOD[0] | {name: value}
        for name, nested in _NESTED.items():
            for key in nested:
                yield GOOD[0] | {name: nested | {key: value}}


def change(data: bytes, numbers: random.Random) -> bytes | None:
    """Return a message with one to three changes; None if it is not msgpack to begin with.

    Args:
        data: of the message.
        numbers: to draw from.
    """
    try:
        root = [msgpack.unpackb(data, max_ext_len=0)]
    except Exception:
        return None
    for _ in range(numbers.randint(1, 3)):
        _change_once(root, numbers)
    try:
        packed: bytes = msgpack.packb(root[0])
    except Exception:  # too deep
        return None
    return packed


def _change_once(root: list[Any], numbers: random.Random) -> None:
    holder, key = numbers.choice(list(_places(root)))
    value = holder[key]
    match numbers.randrange(6):
        case 0 if isinstance(holder, dict):
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[numbers.choice(_KEYS)] = holder.pop(key)
        case 2 | 3 if isinstance(value, dict):
            name = numbers.choice(_KEYS)
            fitting = numbers.random() < 0.7
            value[name] = _draw(_FITTING.get(name, VALUES) if fitting else VALUES, numbers)
        case 2 if isinstance(value, list):
            value.insert(numbers.randint(0, len(value)), _draw(VALUES, numbers))
        case 4 if numbers.random() < 0.2:
            holder[key] = [value] if numbers.random() < 0.5 else {numbers.choice(_KEYS): value}
        case 5 if isinstance(value, dict):
            value.update(_draw(GOOD, numbers))
        case _:
            holder[key] = _draw(VALUES, numbers)


def _draw(values: list[Any], numbers: random.Random) -> Any:
    """Return a copy of one of some values, since further changes may change it."""
    return copy.deepcopy(numbers.choice(values))


def _places(node: dict[Any, Any] | list[Any], depth: int = 12) -> Iterator[_Place]:
    """Yield every map or list within one, so deep, with each of its keys or indices."""
    items = node.items() if isinstance(node, dict) else enumerate(node[:8])
    for key, value in items:
        yield node, key
        if depth and isinstance(value, dict | list):
            yield from _places(value, depth - 1)
