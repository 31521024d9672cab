"""Arithmetic, logic, comparisons and conversions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .machine import Machine, Step, UnknownInstructionError, destination, instruction, predicate, source
from .parser import Instruction, register_names
from .values import BITS, SIGNED, UNSIGNED, Array, from_float, to_float

Operation = Callable[..., Array]

_HALVES = ("bf16", "f16", "bf16x2", "f16x2")


def _elementwise(each: Instruction, operation: Operation, kind: str | None = None) -> Step:
    """Return a step: operands 1, 2, ... of one type, the result in operand 0."""
    kind = kind or each.type
    sources = [source(text, kind) for text in each.operands[1:]]
    write = destination(each.operands[0], BITS[kind])

    def step(machine: Machine, active: Array | None) -> None:
        write(machine, operation(*(read(machine) for read in sources)), active)

    return step


def _halves(each: Instruction, operation: Operation, kind: str) -> Step:
    """Return a step on one or two bfloat16 or float16 numbers, computed in float32 and rounded."""
    single = kind.removesuffix("x2")

    def packed(*operands: Array) -> Array:
        if kind == single:
            return from_float(operation(*(to_float(x, single) for x in operands)), single).astype(np.uint16)
        result: Any = np.uint32(0)
        for shift in (np.uint32(0), np.uint32(16)):
            parts = [to_float((x >> shift) & np.uint32(0xFFFF), single) for x in operands]
            result = result | from_float(operation(*parts), single).astype(np.uint32) << shift
        return result

    sources = [source(text, f"b{BITS[kind]}") for text in each.operands[1:]]
    write = destination(each.operands[0], BITS[kind])

    def step(machine: Machine, active: Array | None) -> None:
        write(machine, packed(*(read(machine) for read in sources)), active)

    return step


def _short_pairs(each: Instruction, operation: Operation) -> Step:
    """Return a step on two integers of 16 bits."""
    dtype = np.int16 if each.type[0] == "s" else np.uint16

    def packed(*operands: Array) -> Array:
        low, high = (
            operation(*((x >> np.uint32(shift)).astype(np.uint16).view(dtype) for x in operands)) for shift in (0, 16)
        )
        return low.view(np.uint16).astype(np.uint32) | high.view(np.uint16).astype(np.uint32) << np.uint32(16)

    return _elementwise(each, packed, "b32")


def _fused(x: Array, y: Array, z: Array) -> Array:
    return (x.astype(np.float64) * y + z).astype(np.float32)


def _smaller(x: Array, y: Array) -> Array:
    return np.fmin(x, y) if x.dtype == np.float32 else np.minimum(x, y)


def _larger(x: Array, y: Array) -> Array:
    return np.fmax(x, y) if x.dtype == np.float32 else np.maximum(x, y)


_OPERATIONS: dict[str, Operation] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "fma": _fused,
    "min": _smaller,
    "max": _larger,
    "and": lambda x, y: x & y,
    "or": lambda x, y: x | y,
    "xor": lambda x, y: x ^ y,
    "not": lambda x: ~x,
    "neg": lambda x: -x,
    "abs": np.abs,
    "ex2": np.exp2,
    "lg2": np.log2,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: (1 / np.sqrt(x)).astype(np.float32),
    "rcp": lambda x: np.float32(1) / x,
    "tanh": np.tanh,
    "sin": np.sin,
    "cos": np.cos,
}


@instruction(*_OPERATIONS)
def _arithmetic(each: Instruction) -> Step:
    name, kind = each.name, each.type
    if kind == "pred":
        return _logic(each, _OPERATIONS[name] if name != "neg" else _OPERATIONS["not"])
    if kind in _HALVES:
        return _halves(each, _OPERATIONS[name], kind)
    if kind in ("s16x2", "u16x2"):
        return _short_pairs(each, _OPERATIONS[name])
    if name == "mul" and "wide" in each.parts:
        return _wide(each)
    if name == "mul" and "hi" in each.parts:
        return _high(each)
    if name in ("div",) and kind != "f32":
        return _elementwise(each, lambda x, y: np.where(y == 0, -1, np.fix(x.astype(np.float64) / y)).astype(x.dtype))
    if "sat" in each.parts:
        raise UnknownInstructionError(each.text)
    return _elementwise(each, _OPERATIONS[name])


def _logic(each: Instruction, operation: Operation) -> Step:
    sources = [predicate(text) for text in each.operands[1:]]

    def step(machine: Machine, active: Array | None) -> None:
        machine.write(each.operands[0], operation(*(read(machine) for read in sources)), active)

    return step


def _wide(each: Instruction) -> Step:
    """mul.wide and mad.wide: the result has twice the bits."""
    kind = each.type
    bits = 2 * BITS[kind]
    wide = SIGNED[bits] if kind[0] == "s" else UNSIGNED[bits]
    x, y = (source(text, kind) for text in each.operands[1:3])
    z = source(each.operands[3], f"{kind[0]}{bits}") if each.name == "mad" else None
    write = destination(each.operands[0], bits)

    def step(machine: Machine, active: Array | None) -> None:
        product = x(machine).astype(wide) * y(machine).astype(wide)
        write(machine, product if z is None else product + z(machine), active)

    return step


def _high(each: Instruction) -> Step:
    """mul.hi: the upper half of the product."""
    kind, bits = each.type, BITS[each.type]

    def high(x: Array, y: Array) -> Array:
        if bits < 64:
            wide = SIGNED[2 * bits] if kind[0] == "s" else UNSIGNED[2 * bits]
            return ((x.astype(wide) * y.astype(wide)) >> wide(bits)).astype(x.dtype)
        product = (x.astype(object) * y.astype(object)) >> 64
        return (product & ((1 << 64) - 1)).astype(np.uint64)

    return _elementwise(each, high)


@instruction("mad")
def _multiply_add(each: Instruction) -> Step:
    if "wide" in each.parts:
        return _wide(each)
    if "hi" in each.parts or "sat" in each.parts:
        raise UnknownInstructionError(each.text)
    return _elementwise(each, lambda x, y, z: x * y + z)


@instruction("shl", "shr")
def _shift(each: Instruction) -> Step:
    kind, bits = each.type, BITS[each.type]
    x, n = source(each.operands[1], kind), source(each.operands[2], "u32")
    write = destination(each.operands[0], bits)

    def step(machine: Machine, active: Array | None) -> None:
        value, count = x(machine), n(machine)
        clamped = np.minimum(count, bits - 1).astype(value.dtype)
        result = value << clamped if each.name == "shl" else value >> clamped
        if each.name == "shl" or kind[0] != "s":  # a signed shift right stops at the sign
            result = np.where(count >= bits, value.dtype.type(0), result)
        write(machine, result, active)

    return step


@instruction("shf")
def _funnel_shift(each: Instruction) -> Step:
    low, high, n = (source(text, "u32") for text in each.operands[1:4])
    write = destination(each.operands[0], 32)

    def step(machine: Machine, active: Array | None) -> None:
        both = low(machine).astype(np.uint64) | high(machine).astype(np.uint64) << np.uint64(32)
        count = n(machine).astype(np.uint64)
        count = count & np.uint64(31) if "wrap" in each.parts else np.minimum(count, 32).astype(np.uint64)
        shifted = both >> count if each.parts[1] == "r" else (both << count) >> np.uint64(32)
        write(machine, shifted.astype(np.uint32), active)

    return step


@instruction("bfe")
def _extract(each: Instruction) -> Step:
    def extract(x: Array, first: Array, count: Array) -> Array:
        bits = x.dtype.itemsize * 8
        # The field is moved to the top, then back to the bottom, with its sign if the type has one.
        length = np.minimum(count.astype(np.int64), bits - np.minimum(first.astype(np.int64), bits))
        up = np.clip(bits - first.astype(np.int64) - length, 0, bits - 1).astype(x.dtype)
        down = np.clip(bits - length, 0, bits - 1).astype(x.dtype)
        return np.where(length == 0, x.dtype.type(0), (x << up) >> down)

    return _elementwise(each, extract)


@instruction("bfi")
def _insert(each: Instruction) -> Step:
    kind = each.type
    a, b = (source(text, kind) for text in each.operands[1:3])
    first, length = (source(text, "u32") for text in each.operands[3:5])
    write = destination(each.operands[0], BITS[kind])

    def step(machine: Machine, active: Array | None) -> None:
        new, old = a(machine).astype(np.uint64), b(machine)
        shift, count = first(machine).astype(np.uint64), length(machine).astype(np.uint64)
        mask = ((np.uint64(1) << count) - np.uint64(1)) << shift
        write(machine, ((old.astype(np.uint64) & ~mask) | ((new << shift) & mask)).astype(old.dtype), active)

    return step


@instruction("popc", "clz", "brev")
def _count_bits(each: Instruction) -> Step:
    bits = BITS[each.type]
    functions: dict[str, Callable[[int], int]] = {
        "popc": lambda x: x.bit_count(),
        "clz": lambda x: bits - x.bit_length(),
        "brev": lambda x: int(f"{x:0{bits}b}"[::-1], 2),
    }
    count = np.vectorize(functions[each.name], otypes=[np.int64])
    x = source(each.operands[1], f"u{bits}")
    result_bits = bits if each.name == "brev" else 32
    write = destination(each.operands[0], result_bits)

    def step(machine: Machine, active: Array | None) -> None:
        write(machine, count(x(machine)).astype(UNSIGNED[result_bits]), active)

    return step


@instruction("prmt")
def _permute_bytes(each: Instruction) -> Step:
    def permute(x: Array, y: Array, selector: Array) -> Array:
        both = x.astype(np.uint64) | y.astype(np.uint64) << np.uint64(32)
        result: Any = np.uint32(0)
        for place in range(4):
            code = (selector >> np.uint32(4 * place)) & np.uint32(15)
            byte = (both >> (np.uint64(8) * (code & np.uint32(7)).astype(np.uint64))) & np.uint64(255)
            sign = np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0))
            byte = np.where(code & np.uint32(8), sign, byte).astype(np.uint32)
            result = result | byte << np.uint32(8 * place)
        return result

    return _elementwise(each, permute, "b32")


@instruction("lop3")
def _three_inputs(each: Instruction) -> Step:
    table = int(each.operands[4], 0)
    read = [source(text, "b32") for text in each.operands[1:4]]
    write = destination(each.operands[0], 32)

    def step(machine: Machine, active: Array | None) -> None:
        a, b, c = (x(machine) for x in read)
        result: Any = np.uint32(0)
        for row in range(8):
            if table >> row & 1:
                result = result | (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
        write(machine, np.asarray(result), active)

    return step


@instruction("selp")
def _choose(each: Instruction) -> Step:
    kind = f"b{BITS[each.type]}"
    x, y, condition = source(each.operands[1], kind), source(each.operands[2], kind), predicate(each.operands[3])
    write = destination(each.operands[0], BITS[kind])

    def step(machine: Machine, active: Array | None) -> None:
        write(machine, np.where(condition(machine), x(machine), y(machine)), active)

    return step


def _is_unordered(x: Array, y: Array) -> Array:
    return np.isnan(x) | np.isnan(y)


_COMPARISONS: dict[str, Operation] = {
    "eq": lambda x, y: x == y,
    "ne": lambda x, y: (x != y) & ~_is_unordered(x, y) if x.dtype.kind == "f" else x != y,
    "lt": lambda x, y: x < y,
    "le": lambda x, y: x <= y,
    "gt": lambda x, y: x > y,
    "ge": lambda x, y: x >= y,
    "lo": lambda x, y: x < y,
    "ls": lambda x, y: x <= y,
    "hi": lambda x, y: x > y,
    "hs": lambda x, y: x >= y,
    "equ": lambda x, y: (x == y) | _is_unordered(x, y),
    "neu": lambda x, y: x != y,
    "ltu": lambda x, y: ~(x >= y),
    "leu": lambda x, y: ~(x > y),
    "gtu": lambda x, y: ~(x <= y),
    "geu": lambda x, y: ~(x < y),
    "num": lambda x, y: ~_is_unordered(x, y),
    "nan": _is_unordered,
}


@instruction("setp")
def _compare(each: Instruction) -> Step:
    kind = each.type
    compare = _COMPARISONS[each.parts[1]]
    x, y = (source(text, f"b{BITS[kind]}" if kind in _HALVES else kind) for text in each.operands[1:3])
    joined = predicate(each.operands[3]) if len(each.operands) > 3 else None
    join = _OPERATIONS.get(each.parts[2])

    def step(machine: Machine, active: Array | None) -> None:
        left, right = x(machine), y(machine)
        if kind in _HALVES:
            left, right = to_float(left, kind), to_float(right, kind)
        result = compare(left, right)
        if joined is not None and join is not None:
            result = join(result, joined(machine))
        machine.write(each.operands[0], result, active)

    return step


@instruction("mov")
def _move(each: Instruction) -> Step:
    target, origin = each.operands
    if each.type == "pred":
        read_predicate = predicate(origin)
        return lambda machine, active: machine.write(target, read_predicate(machine), active)

    bits = BITS[each.type]
    if target.startswith("{"):
        return _unpack(register_names(target), origin, bits)
    if origin.startswith("{"):
        return _pack(target, register_names(origin), bits)
    read, write = source(origin, f"b{bits}"), destination(target, bits)
    return lambda machine, active: write(machine, read(machine), active)


def _unpack(targets: list[str], origin: str, bits: int) -> Step:
    width = bits // len(targets)
    read = source(origin, f"b{bits}")

    def step(machine: Machine, active: Array | None) -> None:
        value = read(machine)
        for place, target in enumerate(targets):
            if target != "_":
                machine.write(target, (value >> UNSIGNED[bits](width * place)).astype(UNSIGNED[width]), active)

    return step


def _pack(target: str, origins: list[str], bits: int) -> Step:
    width = bits // len(origins)
    sources = [source(origin, f"b{width}") for origin in origins]

    def step(machine: Machine, active: Array | None) -> None:
        value: Any = UNSIGNED[bits](0)
        for place, read in enumerate(sources):
            value = value | read(machine).astype(UNSIGNED[bits]) << UNSIGNED[bits](width * place)
        machine.write(target, value, active)

    return step


# ---- conversions ---------------------------------------------------------------------------------------------------

_FLOATS = ("f32", "bf16", "f16", "e4m3", "e5m2", "tf32")
_PAIRS = {"bf16x2": "bf16", "f16x2": "f16", "e4m3x2": "e4m3", "e5m2x2": "e5m2"}


@instruction("cvt")
def _convert(each: Instruction) -> Step:
    kinds = [part for part in each.parts[1:] if part in BITS]
    target, origin = kinds[0], kinds[1]
    if "sat" in each.parts or "relu" in each.parts:
        raise UnknownInstructionError(each.text)
    if target in _PAIRS:
        return _convert_pair(each, target, origin)

    read = source(each.operands[1], f"b{BITS[origin]}" if origin in _FLOATS else origin)
    # An 8-bit integer is held in a wider register, with its sign.
    bits = 16 if target in ("s8", "u8") else BITS[target]
    write = destination(each.operands[0], bits)
    to_nearest = "rni" in each.parts

    def convert(value: Array) -> Array:
        if origin in _FLOATS:
            real = to_float(value, origin)
            if target in _FLOATS:
                return _truncate(real, target) if "rz" in each.parts else from_float(real, target)
            whole = np.rint(real) if to_nearest else np.floor(real) if "rmi" in each.parts else np.trunc(real)
            limits = np.iinfo(f"int{BITS[target]}" if target[0] == "s" else f"uint{BITS[target]}")
            clamped = np.clip(np.nan_to_num(whole.astype(np.float64), nan=0.0), limits.min, limits.max)
            return clamped.astype(SIGNED[bits] if target[0] == "s" else UNSIGNED[bits])
        if target in _FLOATS:
            return from_float(value.astype(np.float32), target)
        if target == "s8":
            return value.astype(np.int8).astype(np.int16)
        return value.astype(SIGNED[bits] if target[0] == "s" else UNSIGNED[bits])

    return lambda machine, active: write(machine, convert(read(machine)), active)


def _truncate(real: Array, target: str) -> Array:
    if target != "bf16":
        raise UnknownInstructionError(f"rounding to {target} towards zero")
    return (np.ascontiguousarray(real, np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def _convert_pair(each: Instruction, target: str, origin: str) -> Step:
    """Convert two numbers at once: from two float32 registers, the first for the upper half, or from a pair."""
    single, bits = _PAIRS[target], BITS[target]
    half = bits // 2
    write = destination(each.operands[0], bits)
    sources = [source(text, f"b{BITS[origin]}") for text in each.operands[1:]]

    def step(machine: Machine, active: Array | None) -> None:
        values = [read(machine) for read in sources]
        if origin in _PAIRS:
            shift = UNSIGNED[BITS[origin]](BITS[origin] // 2)
            mask = UNSIGNED[BITS[origin]]((1 << (BITS[origin] // 2)) - 1)
            parts = [to_float(values[0] >> shift, _PAIRS[origin]), to_float(values[0] & mask, _PAIRS[origin])]
        else:
            parts = [to_float(value, origin) for value in values]
        upper, lower = (from_float(part, single).astype(UNSIGNED[bits]) for part in parts)
        write(machine, upper << UNSIGNED[bits](half) | lower, active)

    return step
