"""Where the engine stands: beside the fastest other agent of the same dtype, in each case."""

from __future__ import annotations

from collections.abc import Iterable

from .peers import ENGINE
from .results import Row
from .statistics import paired_ratio
from .table import number

_FEWEST = 3


def columns(rows: Iterable[Row]) -> dict[str, list[str]]:
    """Header -> cells: a line for each case and dtype of the engine that another agent has been measured in."""
    cases: dict[tuple[tuple[str, str | int], ...], list[Row]] = {}
    for row in rows:
        if row.agrees:
            cases.setdefault(tuple(row.case.items()), []).append(row)
    found: dict[str, list[str]] = {}
    for case, measured in cases.items():
        for engine in (row for row in measured if row.agent == ENGINE):
            others = [row for row in measured if not row.agent.startswith(ENGINE) and row.dtype == engine.dtype]
            if not others:
                continue
            best = min(others, key=lambda row: row.p50)
            ratio = paired_ratio(best.round_medians, engine.round_medians)
            line = {name: str(value) for name, value in case}
            line |= {"dtype": engine.dtype, "JatEngine ms": number(engine.p50 * 1e3)}
            line |= {"fastest other": best.agent, "its ms": number(best.p50 * 1e3)}
            line["times faster"] = f"{number(ratio.value)} [{number(ratio.low)}, {number(ratio.high)}]"
            line["ahead"] = "yes" if ratio.low > 1 else "no" if ratio.high < 1 else "within noise"
            if len(engine.round_medians) < _FEWEST:
                line["ahead"] = "too few rounds"
            for name, cell in line.items():
                found.setdefault(name, []).append(cell)
    return found
