"""Read and write the registers, predicates and constants that an instruction names.

Registers hold 32 lanes of uint32, predicates 32 lanes of bool; None is a value that is not followed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from .memory import Lanes

Value = Lanes | None
Reader = Callable[[Any], Value]
Step = Callable[[Any, Lanes], None]
"""Executes an instruction: the warp's state, and the lanes that take part."""
MASK32 = 0xFFFFFFFF


def lanes(value: int) -> Lanes:
    """Return the value in all 32 lanes."""
    return np.full(32, value & MASK32, np.uint32)


ZERO = lanes(0)
TRUE = np.ones(32, bool)
FALSE = np.zeros(32, bool)
_REGISTER = re.compile(r"U?R(\d+|Z)")


def next_register(name: str, step: int = 1) -> str:
    """Return the register after this one; RZ stays RZ."""
    kind, number = ("UR", name[2:]) if name.startswith("U") else ("R", name[1:])
    return name if number == "Z" else f"{kind}{int(number) + step}"


def is_register(text: str) -> bool:
    return _REGISTER.fullmatch(text) is not None


def is_predicate(text: str) -> bool:
    return re.fullmatch(r"!?U?P(\d|T)", text) is not None


def strip(text: str) -> str:
    """Return a register's name without its sign and suffixes."""
    return text.lstrip("-~|").rstrip("|").split(".", 1)[0]


def read_predicate(text: str) -> Reader:
    name, inverted = text.lstrip("!"), text.startswith("!")

    def read(state: Any) -> Value:
        value = TRUE if name.endswith("PT") else state.predicates.get(name)
        return None if value is None else ~value if inverted else value

    return read


def read_unsigned(text: str) -> Callable[[Any], Any]:
    """Return a reader of an operand as int64 lanes of 0 .. 2^32 (2^32 only for -0, which carries)."""
    if text.startswith("-0x") or re.fullmatch(r"-\d+", text):
        return read_unsigned_constant(int(text, 0))
    if re.fullmatch(r"0x[0-9a-f]+|\d+", text):
        return read_unsigned_constant(int(text, 0))
    if bank := re.match(r"[-~]?c\[0x([0-9a-f]+)\]\[(?:0x([0-9a-f]+))\]", text):
        where = int(bank[1], 16), int(bank[2], 16)
        return _signed_reader(text, lambda state: state.constant(*where))
    name = strip(text)
    if not is_register(name):
        return lambda state: None
    return _signed_reader(text, lambda state: ZERO if name.endswith("Z") else state.registers.get(name, ZERO))


def read_unsigned_constant(value: int) -> Callable[[Any], Any]:
    constant = lanes(value).astype(np.int64)
    return lambda state: constant


def _signed_reader(text: str, get: Reader) -> Callable[[Any], Any]:
    def read(state: Any) -> Any:
        value = get(state)
        if value is None:
            return None
        wide = value.astype(np.int64)
        if text.startswith("-"):
            return (1 << 32) - wide
        if text.startswith("~"):
            return MASK32 - wide
        return wide

    return read


def low(value: Any) -> Value:
    return None if value is None else (value & MASK32).astype(np.uint32)


def signed(value: Any) -> Any:
    """Return unsigned 32-bit lanes (int64) as signed."""
    wrapped = value & MASK32
    return np.where(wrapped >= 1 << 31, wrapped - (1 << 32), wrapped)


def write(state: Any, name: str, value: Value, mask: Lanes) -> None:
    """Write a register where the mask is set."""
    if name.endswith("Z"):
        return
    old = state.registers.get(name, ZERO)
    if value is None or mask.all():
        state.registers[name] = value
    elif old is None:
        state.registers[name] = np.where(mask, value, 0).astype(np.uint32)
    else:
        state.registers[name] = np.where(mask, value, old)


def write_predicate(state: Any, name: str, value: Value, mask: Lanes) -> None:
    """Write a predicate where the mask is set."""
    if name.endswith("PT"):
        return
    old = state.predicates.get(name)
    state.predicates[name] = value if value is None or mask.all() or old is None else np.where(mask, value, old)


def write_wide(state: Any, name: str, value: Any, mask: Lanes) -> None:
    """Write 64-bit lanes (Python-style uint64 array) to a pair of registers."""
    if value is None:
        write(state, name, None, mask)
        write(state, next_register(name), None, mask)
        return
    write(state, name, (value & np.uint64(MASK32)).astype(np.uint32), mask)
    write(state, next_register(name), (value >> np.uint64(32)).astype(np.uint32), mask)
