"""Execute the SASS instructions by which lanes of a warp see each other's values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .memory import Lanes
from .operands import (
    FALSE,
    TRUE,
    Step,
    Value,
    is_predicate,
    lanes,
    low,
    read_predicate,
    read_unsigned,
    signed,
    write,
    write_predicate,
)
from .sass import Instruction


def _vote(i: Instruction) -> Step:
    source = read_predicate(i.operands[-1])
    outputs = i.operands[:-1]
    kind = "ALL" if ".ALL" in i.op else "ANY"

    def step(state: Any, mask: Lanes) -> None:
        p = source(state)
        for name in outputs:
            if is_predicate(name):
                whole = None if p is None else bool(p[mask].all() if kind == "ALL" else p[mask].any())
                write_predicate(state, name, None if whole is None else TRUE if whole else FALSE, mask)
            else:
                ballot = None if p is None else sum(1 << int(k) for k in np.flatnonzero(p & mask))
                write(state, name, None if ballot is None else lanes(ballot), mask)

    return step


def _redux(i: Instruction) -> Step:
    target, a = i.operands[0], read_unsigned(i.operands[1])
    kind = i.op.split(".")[1]

    def step(state: Any, mask: Lanes) -> None:
        x = a(state)
        out: Value = None
        if x is not None and mask.any():
            values = signed(x)[mask]
            whole: Any = {"SUM": values.sum(), "MIN": values.min(), "MAX": values.max()}.get(
                kind, np.bitwise_or.reduce(values) if kind != "AND" else np.bitwise_and.reduce(values)
            )
            out = lanes(int(whole))
        write(state, target, out, mask)

    return step


def _shfl(i: Instruction) -> Step:
    """SHFL.IDX / BFLY / DOWN / UP P, R, Ra, b, c with a lane-independent clamp of a whole warp."""
    predicate, target, a, b = i.operands[0], i.operands[1], read_unsigned(i.operands[2]), read_unsigned(i.operands[3])
    kind = i.op.split(".")[1]
    own = np.arange(32)

    def step(state: Any, mask: Lanes) -> None:
        x, n = a(state), b(state)
        out: Value = None
        if x is not None and n is not None:
            source = {"IDX": n, "BFLY": own ^ n, "DOWN": own + n, "UP": own - n}[kind]
            inside = (source >= 0) & (source < 32)
            out = low(np.where(inside, x[np.clip(source, 0, 31)], x))
        write(state, target, out, mask)
        write_predicate(state, predicate, None, mask)

    return step


def _elect(i: Instruction) -> Step:
    def step(state: Any, mask: Lanes) -> None:
        first = np.zeros(32, bool)
        first[int(np.argmax(mask))] = True
        for name in i.operands:
            if is_predicate(name):
                write_predicate(state, name, first, mask)

    return step


MAKERS: dict[str, Callable[[Instruction], Step]] = {
    "VOTE": _vote, "VOTEU": _vote, "REDUX": _redux, "SHFL": _shfl, "ELECT": _elect,
}  # fmt: skip
