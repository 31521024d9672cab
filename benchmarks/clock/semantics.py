"""Execute the integer part of SASS: what decides addresses and branches. A value that is not followed is None.

Each instruction becomes a function of the warp's state (`registers`, `predicates`, `constant`, `special`) and of the
lanes that take part, which writes its results. Floating-point results are None but for reciprocals, which integer
divisions begin with; None spreads to all that is computed from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from . import cross_lanes
from .memory import Lanes
from .operands import (
    FALSE,
    MASK32,
    TRUE,
    ZERO,
    Step,
    Value,
    is_predicate,
    is_register,
    lanes,
    low,
    next_register,
    read_predicate,
    read_unsigned,
    signed,
    strip,
    write,
    write_predicate,
    write_wide,
)
from .sass import Instruction


def _split(operands: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Return the predicates written first (LEA R, P, ...; IADD3 R, P, P, ...) and the other operands."""
    outputs, rest = [], list(operands[1:])
    while rest and is_predicate(rest[0]):
        outputs.append(rest.pop(0))
    return outputs, rest


def decode(i: Instruction) -> Step:
    """Return the function that executes an instruction which is neither a branch nor a memory access."""
    base = i.base.removeprefix("U") if i.base.startswith("U") and i.base != "UNKNOWN" else i.base
    maker = _MAKERS.get(base)
    return maker(i) if maker is not None else _forget(i)


def _forget(i: Instruction) -> Step:
    """All results of an instruction that is not followed become unknown."""
    outputs = [text for text in i.operands[:1] if is_register(text)]
    predicates = [text for text in i.operands[:2] if is_predicate(text) and not text.startswith("!")]
    width = 4 if "128" in i.op or i.base in ("HMMA", "HGMMA") else 2 if ".64" in i.op or "WIDE" in i.op else 1
    names = [next_register(name, k) for name in outputs for k in range(width)]

    def step(state: Any, mask: Lanes) -> None:
        for name in names:
            if not name.endswith("Z"):
                state.registers[name] = None
        for name in predicates:
            write_predicate(state, name, None, mask)

    return step


def _mov(i: Instruction) -> Step:
    target, source = i.operands[0], read_unsigned(i.operands[1])
    return lambda state, mask: write(state, target, low(source(state)), mask)


def _iadd3(i: Instruction) -> Step:
    carries, rest = _split(i.operands)
    inputs = [read_predicate(text) for text in rest if is_predicate(text)] if ".X" in i.op else []
    terms = [read_unsigned(text) for text in rest if not is_predicate(text)]
    target = i.operands[0]

    def step(state: Any, mask: Lanes) -> None:
        parts = [term(state) for term in terms] + [read(state) for read in inputs]
        total = None if any(part is None for part in parts) else sum(part.astype(np.int64) for part in parts)
        write(state, target, low(total), mask)
        for k, name in enumerate(carries):
            write_predicate(state, name, None if total is None else (total >> 32) > k, mask)

    return step


def _imad(i: Instruction) -> Step:
    carries, rest = _split(i.operands)
    carry_in = [read_predicate(text) for text in rest if is_predicate(text)] if ".X" in i.op else []
    names = [text for text in rest if not is_predicate(text)]
    a, b, c = (read_unsigned(text) for text in names[:3])
    target, is_wide, is_high, unsigned = i.operands[0], ".WIDE" in i.op, ".HI" in i.op, ".U32" in i.op
    c_name = strip(names[2])
    c_high = read_unsigned(next_register(c_name)) if is_register(c_name) else read_unsigned("0x0")

    def step(state: Any, mask: Lanes) -> None:
        x, y, z = a(state), b(state), c(state)
        if z is not None and (_is_zero(x) or _is_zero(y)):
            x = y = ZERO.astype(np.int64)
        if x is None or y is None or z is None:
            write(state, target, None, mask)
            if is_wide:
                write(state, next_register(target), None, mask)
            for name in carries:
                write_predicate(state, name, None, mask)
            return

        if not unsigned or not (is_wide or is_high):
            x, y = signed(x), signed(y)
        else:
            x, y = x & MASK32, y & MASK32
        product = (x.astype(object) * y.astype(object)) if (is_wide or is_high) else None
        if product is not None:
            high = c_high(state)
            if high is None:
                write_wide(state, target, None, mask) if is_wide else write(state, target, None, mask)
                return
            total = product + (z & MASK32).astype(object) + (high & MASK32).astype(object) * (1 << 32)
            wrapped = np.array([int(value) & 0xFFFFFFFFFFFFFFFF for value in total], np.uint64)
            if is_wide:
                write_wide(state, target, wrapped, mask)
            else:
                write(state, target, (wrapped >> np.uint64(32)).astype(np.uint32), mask)
            for name in carries:
                write_predicate(state, name, np.array([int(value) >> 64 > 0 for value in total]), mask)
            return

        total = x * y + z
        for read in carry_in:
            carry = read(state)
            total = None if carry is None or total is None else total + carry
        write(state, target, low(total), mask)

    return step


def _is_zero(value: Any) -> bool:
    return value is not None and not (value & MASK32).any()


def _lea(i: Instruction) -> Step:
    carries, rest = _split(i.operands)
    carry_in = read_predicate(rest.pop()) if ".X" in i.op and is_predicate(rest[-1]) else None
    target, high, sign = i.operands[0], ".HI" in i.op, ".SX32" in i.op
    shift = int(rest[-1], 0)
    a, b = read_unsigned(rest[0]), read_unsigned(rest[1])
    c = read_unsigned(rest[2]) if high and not sign and len(rest) == 4 else None

    def step(state: Any, mask: Lanes) -> None:
        x, y = a(state), b(state)
        top = (signed(x) >> 31 if x is not None else None) if sign else c(state) if c else ZERO.astype(np.int64)
        carry = carry_in(state) if carry_in else FALSE
        total = None
        if x is not None and y is not None and top is not None and carry is not None:
            x, top = x & MASK32, top & MASK32
            if high:
                shifted = ((x >> (32 - shift)) if shift else 0) | (top << shift)
                total = (shifted & MASK32) + y + carry
            else:
                total = ((x << shift) & MASK32) + y + carry
        write(state, target, low(total), mask)
        for k, name in enumerate(carries):
            write_predicate(state, name, None if total is None else (total >> 32) > k, mask)

    return step


def _lop3(i: Instruction) -> Step:
    operands = list(i.operands)
    predicate = operands.pop(0) if is_predicate(operands[0]) else ""
    target, a, b, c = operands[0], *(read_unsigned(text) for text in operands[1:4])
    table = int(operands[4], 16)

    def step(state: Any, mask: Lanes) -> None:
        x, y, z = a(state), b(state), c(state)
        known = [value for value in (x, y, z) if value is None]
        if known:
            # A bit that the unknown operand cannot reach is known: only the all-zero case is worth following.
            out = ZERO if table == 0xC0 and any(v is not None and not v.any() for v in (x, y)) else None
        else:
            out64 = np.zeros(32, np.int64)
            for k in range(8):
                if table >> k & 1:
                    out64 |= (x if k & 4 else ~x) & (y if k & 2 else ~y) & (z if k & 1 else ~z)
            out = low(out64)
        write(state, target, out, mask)
        if predicate:
            write_predicate(state, predicate, None if out is None else out != 0, mask)

    return step


def _plop3(i: Instruction) -> Step:
    first, second, *rest = i.operands
    reads = [read_predicate(text) for text in rest[:3]]
    tables = [int(text, 16) for text in rest[3:5]]

    def step(state: Any, mask: Lanes) -> None:
        values = [read(state) for read in reads]
        for name, table in zip((first, second), tables, strict=False):
            out: Value = None
            if all(value is not None for value in values):
                index: Any = sum(
                    value.astype(np.int64) << (2 - k) for k, value in enumerate(values) if value is not None
                )
                out = (table >> index) & 1 == 1
            write_predicate(state, name, out, mask)

    return step


def _shf(i: Instruction) -> Step:
    target, lo, amount, hi = i.operands[0], *(read_unsigned(text) for text in i.operands[1:4])
    left, high, wide = ".L" in i.op, ".HI" in i.op, "64" in i.op
    arithmetic, wraps = ".S32" in i.op or ".S64" in i.op, ".W" in i.op

    def step(state: Any, mask: Lanes) -> None:
        x, n, z = lo(state), amount(state), hi(state)
        if x is None or n is None or z is None:
            write(state, target, None, mask)
            return
        limit = 64 if wide else 32
        n = n % limit if wraps else np.minimum(n, limit)
        pairs = []
        for a, s, b in zip(x.tolist(), n.tolist(), z.tolist(), strict=True):
            pair = (b & MASK32) << 32 | (a & MASK32)
            if arithmetic and pair >> 63:
                pair -= 1 << 64
            pair = pair << s if left else pair >> s
            # A left shift of 32 bits gives its low word, of 64 the high one if asked for; a right shift the other way.
            pairs.append((pair >> 32 if high else pair) & MASK32)
        write(state, target, np.array(pairs, np.uint32), mask)

    return step


_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "LT": np.less, "LE": np.less_equal, "GT": np.greater, "GE": np.greater_equal, "EQ": np.equal, "NE": np.not_equal,
}  # fmt: skip


def _isetp(i: Instruction) -> Step:
    parts = i.op.split(".")
    compare, unsigned, extended = _COMPARE[parts[1]], "U32" in parts, "EX" in parts
    join = next(part for part in parts if part in ("AND", "OR", "XOR"))
    targets = i.operands[:2]
    a, b = read_unsigned(i.operands[2]), read_unsigned(i.operands[3])
    other = read_predicate(i.operands[4])
    below = read_predicate(i.operands[5]) if extended else None
    strict = {"GE": np.greater, "LE": np.less}.get(parts[1], compare)

    def step(state: Any, mask: Lanes) -> None:
        x, y, p = a(state), b(state), other(state)
        q = below(state) if below else TRUE
        result: Value = None
        if x is not None and y is not None and q is not None:
            x, y = (x & MASK32, y & MASK32) if unsigned else (signed(x), signed(y))
            if not extended:
                result = compare(x, y)
            elif parts[1] == "NE":
                result = (x != y) | q
            elif parts[1] == "EQ":
                result = (x == y) & q
            else:
                result = strict(x, y) | ((x == y) & q)
        for k, name in enumerate(targets):
            value = result if k == 0 or result is None else ~result
            write_predicate(state, name, _join(join, value, p), mask)

    return step


def both(a: Value, b: Value) -> Value:
    """Return a and b; what is false in all lanes decides alone."""
    if (a is not None and not a.any()) or (b is not None and not b.any()):
        return FALSE
    return None if a is None or b is None else a & b


def _join(how: str, a: Value, b: Value) -> Value:
    if how == "AND":
        return both(a, b)
    if how == "OR":
        if (a is not None and a.all()) or (b is not None and b.all()):
            return TRUE
        return None if a is None or b is None else a | b
    return None if a is None or b is None else a ^ b


def _sel(i: Instruction) -> Step:
    target, a, b = i.operands[0], read_unsigned(i.operands[1]), read_unsigned(i.operands[2])
    p = read_predicate(i.operands[3])

    def step(state: Any, mask: Lanes) -> None:
        chosen, x, y = p(state), a(state), b(state)
        out = None
        if chosen is not None:
            if chosen.all():
                out = x
            elif not chosen.any():
                out = y
            elif x is not None and y is not None:
                out = np.where(chosen, x, y)
        write(state, target, low(out), mask)

    return step


def _minmax(i: Instruction) -> Step:
    """VIMNMX, VIMNMX3, VIADDMNMX, IMNMX: the smaller if the predicate holds."""
    target, unsigned, adds = i.operands[0], ".U32" in i.op, i.base.endswith("VIADDMNMX")
    reads = [read_unsigned(text) for text in i.operands[1:-1]]
    smaller = read_predicate(i.operands[-1])

    def step(state: Any, mask: Lanes) -> None:
        values, p = [read(state) for read in reads], smaller(state)
        out = None
        if p is not None and all(value is not None for value in values):
            if adds:
                values = [values[0] + values[1], values[2]]
            views = [value & MASK32 if unsigned else signed(value) for value in values]
            out = np.where(p, np.minimum.reduce(views), np.maximum.reduce(views))
        write(state, target, low(out), mask)

    return step


def _sgxt(i: Instruction) -> Step:
    target, a, n = i.operands[0], read_unsigned(i.operands[1]), int(i.operands[2], 0)
    unsigned = ".U32" in i.op

    def step(state: Any, mask: Lanes) -> None:
        x = a(state)
        if x is not None:
            x = x & ((1 << n) - 1)
            if not unsigned:
                x = np.where(x >> (n - 1) & 1, x - (1 << n), x)
        write(state, target, low(x), mask)

    return step


def _prmt(i: Instruction) -> Step:
    target = i.operands[0]
    a, selector, b = (read_unsigned(text) for text in i.operands[1:4])

    def step(state: Any, mask: Lanes) -> None:
        x, s, y = a(state), selector(state), b(state)
        if s is None or x is None or y is None or "." in i.op:
            write(state, target, None, mask)
            return
        both = (y & MASK32).astype(np.uint64) << np.uint64(32) | (x & MASK32).astype(np.uint64)
        out = np.zeros(32, np.uint64)
        for k in range(4):
            nibble = (s >> (4 * k)).astype(np.uint64)
            byte = both >> ((nibble & np.uint64(7)) * np.uint64(8)) & np.uint64(0xFF)
            byte = np.where(nibble & np.uint64(8), (byte >> np.uint64(7)) * np.uint64(0xFF), byte)
            out |= byte << np.uint64(8 * k)
        write(state, target, out.astype(np.uint32), mask)

    return step


def _p2r(i: Instruction) -> Step:
    target, a, chosen = i.operands[0], read_unsigned(i.operands[2]), int(i.operands[3], 0)
    shift = {"B1": 8, "B2": 16, "B3": 24}.get(i.op.partition(".")[2], 0)
    prefix = "UP" if i.operands[1].startswith("U") else "P"

    def step(state: Any, mask: Lanes) -> None:
        out = a(state)
        if out is not None:
            out = out & ~np.int64(chosen << shift)
            for k in range(7):
                if chosen >> k & 1:
                    p = state.predicates.get(f"{prefix}{k}")
                    if p is None:
                        out = None
                        break
                    out = out | (p.astype(np.int64) << (k + shift))
        write(state, target, low(out), mask)

    return step


def _r2p(i: Instruction) -> Step:
    a, chosen = read_unsigned(i.operands[1]), int(i.operands[2], 0)
    shift = {"B1": 8, "B2": 16, "B3": 24}.get(i.operands[1].partition(".")[2], 0)

    def step(state: Any, mask: Lanes) -> None:
        x = a(state)
        for k in range(7):
            if chosen >> k & 1:
                write_predicate(state, f"P{k}", None if x is None else x >> (k + shift) & 1 == 1, mask)

    return step


def _r2ur(i: Instruction) -> Step:
    target, a = i.operands[-2], read_unsigned(i.operands[-1])

    def step(state: Any, mask: Lanes) -> None:
        x = a(state)
        first = int(np.argmax(mask)) if mask.any() else 0
        state.registers[target] = None if x is None else lanes(int(x[first]))

    return step


def _special(i: Instruction) -> Step:
    target, name, wide = i.operands[0], i.operands[1], i.base == "CS2R" and ".32" not in i.op

    def step(state: Any, mask: Lanes) -> None:
        value = state.special(name)
        write(state, target, value, mask)
        if wide:
            write(state, next_register(target), value, mask)

    return step


def _ldc(i: Instruction) -> Step:
    target, width = i.operands[0], 2 if ".64" in i.op else 4 if ".128" in i.op else 1
    found = re.match(r"c\[0x([0-9a-f]+)\]\[(?:(U?R\w+)(?:\+)?)?(-?0x[0-9a-f]+)?\]", i.operands[1])
    narrow = re.search(r"\.[US]?(8|16)\b", i.op)

    def step(state: Any, mask: Lanes) -> None:
        offset: Value = ZERO
        if found and found[2]:
            offset = state.registers.get(found[2], ZERO)
        for k in range(width):
            value: Value = None
            if found and offset is not None and mask.any() and (offset[mask] == offset[mask][0]).all():
                address = int(offset[mask][0]) + (int(found[3], 16) if found[3] else 0) + 4 * k
                value = state.constant(int(found[1], 16), address & ~3)
                if narrow and value is not None:
                    value = (value >> np.uint32(8 * (address & 3))) & np.uint32((1 << int(narrow[1])) - 1)
            write(state, next_register(target, k), value, mask)

    return step


def _i2f(i: Instruction) -> Step:
    target, a, up, unsigned = i.operands[0], read_unsigned(i.operands[1]), ".RP" in i.op, ".U32" in i.op
    follow = ".F64" not in i.op and ".F16" not in i.op and "64" not in i.op

    def step(state: Any, mask: Lanes) -> None:
        x = a(state)
        if x is None or not follow:
            write(state, target, None, mask)
            return
        exact = (x & MASK32 if unsigned else signed(x)).astype(np.float64)
        out = exact.astype(np.float32)
        if up:
            out = np.where(out.astype(np.float64) < exact, np.nextafter(out, np.float32(np.inf)), out)
        write(state, target, out.astype(np.float32).view(np.uint32), mask)

    return step


def _f2i(i: Instruction) -> Step:
    target, a = i.operands[0], read_unsigned(i.operands[1])

    def step(state: Any, mask: Lanes) -> None:
        x = a(state)
        if x is None or "TRUNC" not in i.op or "64" in i.op:
            write(state, target, None, mask)
            return
        value = np.nan_to_num(low_float(x).astype(np.float64), nan=0.0, posinf=2.0**32, neginf=0.0)
        write(state, target, low(np.clip(value, -(2.0**31), 2.0**32 - 1).astype(np.int64)), mask)

    return step


def low_float(value: Any) -> Any:
    """Return the float32 with these bits."""
    return (value & MASK32).astype(np.uint32).view(np.float32)


def _mufu(i: Instruction) -> Step:
    """MUFU.RCP, which integer divisions begin with and then correct; other functions are not followed."""
    if i.op != "MUFU.RCP":
        return _forget(i)
    target, a = i.operands[0], read_unsigned(i.operands[1])

    def step(state: Any, mask: Lanes) -> None:
        x = a(state)
        if x is None:
            write(state, target, None, mask)
            return
        with np.errstate(divide="ignore", over="ignore", under="ignore"):
            write(state, target, (np.float32(1) / low_float(x)).astype(np.float32).view(np.uint32), mask)

    return step


def _flo(i: Instruction) -> Step:
    target, a = i.operands[0], read_unsigned(i.operands[1])

    def step(state: Any, mask: Lanes) -> None:
        x = a(state)
        found = None if x is None else low(np.array([int(v).bit_length() - 1 for v in x & MASK32]))
        write(state, target, found, mask)

    return step


def _half_constant(i: Instruction) -> Step:
    """HFMA2.MMA R, -RZ, RZ, a, b: how the compiler moves a constant through the other pipe."""
    if len(i.operands) != 5 or strip(i.operands[1]) != "RZ" or strip(i.operands[2]) != "RZ":
        return _forget(i)
    try:
        halves = np.array([float(i.operands[4]), float(i.operands[3])], np.float16).view(np.uint16)
    except ValueError:
        return _forget(i)
    value, target = lanes(int(halves[1]) << 16 | int(halves[0])), i.operands[0]
    return lambda state, mask: write(state, target, value, mask)


def _popc(i: Instruction) -> Step:
    target, a = i.operands[0], read_unsigned(i.operands[1])

    def step(state: Any, mask: Lanes) -> None:
        x = a(state)
        counts = None if x is None else np.array([int(v).bit_count() for v in x & MASK32], np.uint32)
        write(state, target, counts, mask)

    return step


def _iabs(i: Instruction) -> Step:
    target, a = i.operands[0], read_unsigned(i.operands[1])

    def step(state: Any, mask: Lanes) -> None:
        x = a(state)
        write(state, target, None if x is None else low(np.abs(signed(x))), mask)

    return step


def _true(i: Instruction) -> Step:
    """SYNCS: a wait that succeeds at once; the time it takes is the machine's affair."""
    outputs = [text for text in i.operands[:1] if is_predicate(text)]

    def step(state: Any, mask: Lanes) -> None:
        for name in outputs:
            write_predicate(state, name, TRUE, mask)

    return step


_MAKERS: dict[str, Callable[[Instruction], Step]] = {
    "MOV": _mov, "IADD3": _iadd3, "VIADD": _iadd3, "IADD": _iadd3, "IMAD": _imad, "LEA": _lea, "LOP3": _lop3,
    "PLOP3": _plop3, "SHF": _shf, "ISETP": _isetp, "SEL": _sel, "VIMNMX": _minmax, "VIMNMX3": _minmax,
    "VIADDMNMX": _minmax, "IMNMX": _minmax, "SGXT": _sgxt, "PRMT": _prmt, "P2R": _p2r, "R2P": _r2p, "R2UR": _r2ur,
    "S2R": _special, "S2UR": _special, "CS2R": _special, "LDC": _ldc, "HFMA2": _half_constant, "POPC": _popc,
    "IABS": _iabs, "SYNCS": _true, "I2F": _i2f, "F2I": _f2i, "MUFU": _mufu, "FLO": _flo, **cross_lanes.MAKERS,
}  # fmt: skip
