"""Compare two runs: find what became slower or faster by more than noise.

The machine may have changed between the runs as well. So times are taken in relation to their case's reference, round
by round; what has none is shown and not judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .results import Interval, Results, Row, ratio

SLOWER, FASTER, SAME = "slower", "faster", "within noise"
DIFFERS, REPAIRED, ALONE = "outputs differ", "outputs differed before", "no reference"


@dataclass(frozen=True)
class Change:
    """One measurement, twice.

    Attributes:
        row: of the second run.
        time: second run's time over the first's.
        relative: the same, each in relation to its run's reference; None where there is none.
        verdict: `SLOWER`, `FASTER`, `SAME`; `DIFFERS` where outputs are not right, `REPAIRED` where they were not;
            `ALONE` where there is nothing to tell the engine from the machine by.
    """

    row: Row
    time: Interval | None
    relative: Interval | None
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """Two runs.

    Attributes:
        changes: of what both runs measured.
        only_first, only_second: names of what one alone did.
        remarks: machines or versions that differ.
    """

    changes: list[Change]
    only_first: list[str]
    only_second: list[str]
    remarks: list[str]

    @property
    def is_worse(self) -> bool:
        """Tell if anything became slower, or has outputs that are not right."""
        return any(change.verdict in (SLOWER, DIFFERS) for change in self.changes)


def compare(first: Results, second: Results, threshold: float) -> Comparison:
    """Compare what both runs measured.

    Args:
        first, second: of the same suites.
        threshold: share of the time that does not count as a difference, besides what the samples' spread explains.
    """
    before = {row.key: row for row in first.rows}
    after = {row.key: row for row in second.rows}
    changes = [
        _change(before[key], row, first.rows, second.rows, threshold) for key, row in after.items() if key in before
    ]
    return Comparison(
        changes,
        [label(row) for key, row in before.items() if key not in after],
        [label(row) for key, row in after.items() if key not in before],
        [*_remarks(first, second), *_missed_deadlines(before, after)],
    )


MISSED = 5.0
"""Percentage points by which missed deadlines differ before it is told."""


def _missed_deadlines(before: dict[Any, Row], after: dict[Any, Row]) -> list[str]:
    """Return remarks on shares of missed deadlines, which medians do not show. They are told and not judged."""
    remarks = []
    for key, row in after.items():
        if key not in before or not row.agrees or not before[key].agrees:
            continue
        was, now = before[key].facts.get("missed %"), row.facts.get("missed %")
        if was is not None and now is not None and abs(now - was) >= MISSED:
            remarks.append(f"missed deadlines: {label(row)}: {was:.3g} %, then {now:.3g} %")
    return remarks


def label(row: Row) -> str:
    """Return suite, case and agent of a row in words."""
    case = ", ".join(f"{name} {value}" for name, value in row.case.items())
    return f"{row.suite}: {case}: {row.name}"


def _change(before: Row, after: Row, first: Sequence[Row], second: Sequence[Row], threshold: float) -> Change:
    if not after.agrees or not before.agrees:
        return Change(after, None, None, REPAIRED if after.agrees else DIFFERS)
    time = ratio(after.round_medians, before.round_medians)
    own, other = _relative(before, first), _relative(after, second)
    relative = ratio(other, own) if own is not None and other is not None else None
    verdict = ALONE if relative is None else SAME
    if relative is not None and relative.low > 1 + threshold:
        verdict = SLOWER
    elif relative is not None and relative.high < 1 / (1 + threshold):
        verdict = FASTER
    return Change(after, time, relative, verdict)


def _relative(row: Row, rows: Sequence[Row]) -> list[float] | None:
    """Return, round by round, the row's time over its reference's."""
    if row.faster is None:
        return None
    reference = next(
        (r for r in rows if r.suite == row.suite and r.case == row.case and r.error is None and r.faster is None), None
    )
    if reference is None or len(reference.round_medians) != len(row.round_medians):
        return None
    return list(np.divide(row.round_medians, reference.round_medians))


def _remarks(first: Results, second: Results) -> list[str]:
    remarks = []
    for name in ("name", "cores"):
        a, b = (r.machine.get("cpu", {}).get(name) for r in (first, second))
        if a != b:
            remarks.append(f"the machines differ: cpu {name} {a}, then {b}")
    for name in ("torch", "transformers", "python", "onnxruntime", "openvino"):
        a, b = (r.machine.get("versions", {}).get(name) for r in (first, second))
        if a != b:
            remarks.append(f"versions differ: {name} {a}, then {b}")
    a, b = ("plain torch" if r.settings.get("plain_torch") else "native kernels" for r in (first, second))
    if a != b:
        remarks.append(f"the engines differ: {a}, then {b}")
    a, b = (r.machine.get("bandwidth GB/s", {}).get("median") for r in (first, second))
    if a and b:
        remarks.append(f"memory gave {a:.1f} GB/s, then {b:.1f}")
    return remarks
