"""Hold freshly clocked kernels to the committed table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SLACK = 0.10
"""Part by which a kernel may be slower than in the table: compilers differ in how they order instructions."""

PHASE_SLACK = 0.20
"""The same for a phase, which a check plays in fewer layers: the first has less to hide behind."""

Row = dict[str, Any]


def kernel_violations(fresh: Sequence[Row], committed: Sequence[Row]) -> list[str]:
    """Return, in words, the kernels of a step that take more cycles than the table allows.

    Args:
        fresh: rows of `table.kernel_row`, of a step.
        committed: those of the table for the same step.
    """
    limits: dict[tuple[str, int], float] = {}
    for row in committed:
        name = row["name"], row["launches"]
        limits[name] = max(limits.get(name, 0.0), row["chain_cycles"] * (1 + SLACK))
    wrong = []
    for row in fresh:
        limit = limits.get((row["name"], row["launches"]))
        if limit is None:
            wrong.append(f"{row['name']}, {row['launches']} launches: not in the table; write it again")
        elif row["chain_cycles"] > limit:
            wrong.append(f"{row['name']}: expected at most {limit:.0f} cycles, got {row['chain_cycles']}")
    return wrong


def phase_violations(fresh: Sequence[Row], committed: Sequence[Row]) -> list[str]:
    """Return, in words, the phases of the persistent kernel that take more cycles each time than the table allows."""
    each = {row["name"]: row["cycles"] / row["times"] for row in committed}
    wrong = []
    for row in fresh:
        cycles, limit = row["cycles"] / row["times"], each.get(row["name"], 0.0) * (1 + PHASE_SLACK)
        if cycles > limit:
            wrong.append(f"{row['name']}: expected at most {limit:.0f} cycles each time, got {cycles:.0f}")
    return wrong
