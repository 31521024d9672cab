"""Hold freshly clocked kernels to the committed table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SLACK = 0.10
"""Part by which a kernel may be slower than in the table: compilers differ in how they order instructions."""

PHASE_SLACK = 0.20
"""The same for a phase, which a check plays in fewer layers: the first has less to hide behind."""

_LEAST = 20.0
"""Cycles that every phase may have: rounding makes more than a part of a wait that is nearly free."""

Row = dict[str, Any]


def kernel_violations(fresh: Sequence[Row], committed: Sequence[Row]) -> list[str]:
    """Return, in words, the kernels of a step that take more cycles than the table allows.

    Args:
        fresh: rows of `table.kernel_row`, of a step.
        committed: those of the table for the same step.
    """
    limits = _by_name(committed)
    wrong = []
    for (name, launches), rows in _by_name(fresh).items():
        there = limits.get((name, launches), [])
        if len(there) != len(rows):
            wrong.append(
                f"{name}, {launches} launches: expected {len(there)} rows as in the table, got {len(rows)}; write it "
                "again"
            )
            continue
        for cycles, most in zip(rows, there, strict=True):
            limit = most * (1 + SLACK)
            if cycles > limit:
                wrong.append(f"{name}: expected at most {limit:.0f} cycles, got {cycles}")
    return wrong


def _by_name(rows: Sequence[Row]) -> dict[tuple[str, int], list[int]]:
    """Return the cycles of kernels by name and launches, in the order of the step."""
    found: dict[tuple[str, int], list[int]] = {}
    for row in rows:
        found.setdefault((row["name"], row["launches"]), []).append(row["chain_cycles"])
    return found


def phase_violations(fresh: Sequence[Row], committed: Sequence[Row]) -> list[str]:
    """Return, in words, the phases of the persistent kernel that take more cycles each time than the table allows."""
    each = {row["name"]: row["cycles"] / row["times"] for row in committed}
    wrong = []
    for row in fresh:
        cycles, limit = row["cycles"] / row["times"], max(_LEAST, each.get(row["name"], 0.0) * (1 + PHASE_SLACK))
        if cycles > limit:
            wrong.append(f"{row['name']}: expected at most {limit:.0f} cycles each time, got {cycles:.0f}")
    return wrong
