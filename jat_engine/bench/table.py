"""Results as columns, for terminals and documents alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .results import Row

UNITS = {
    "latency": "ms",
    "loop": "ms",
    "host": "us",
    "throughput": "ms",
    "load": "s",
    "generate": "ms",
    "train": "ms",
    "eval": "ms",
}
"""Suite -> unit of its times."""

TAILS = {"loop": {"99": "p99", "99.9": "p99.9", "max": "max"}}
"""Suite -> further percentiles its table shows, and their headers."""

_SCALES = {"us": 1e6, "ms": 1e3, "s": 1.0}

_WITHHELD = "outputs differ"
"""In place of every figure of an agent whose outputs are not the reference's."""


def title(suite: str, settings: Mapping[str, Any]) -> str:
    """Return a table's title, which says so if the engine was measured without its native module."""
    return f"{suite}: JatEngine in PLAIN TORCH, its native module is missing" if settings.get("plain_torch") else suite


def columns(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Header -> cells, of one suite's rows. Times are medians with 5th and 95th percentiles."""
    unit = UNITS[rows[0].suite]
    scale = _SCALES[unit]
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for row in rows for name in row.case):
        found[name] = [str(row.case.get(name, "")) for row in rows]
    found["agent"] = [row.agent for row in rows]
    found["dtype"] = [row.dtype for row in rows]
    found[f"p50 {unit}"] = [number(row.p50 * scale) if row.agrees else _WITHHELD for row in rows]
    found["p5 to p95"] = [
        f"{number(row.seconds['5'] * scale)} to {number(row.seconds['95'] * scale)}" if row.agrees else ""
        for row in rows
    ]
    for percentile, header in TAILS.get(rows[0].suite, {}).items():
        found[f"{header} {unit}"] = [number(row.seconds[percentile] * scale) if row.agrees else "" for row in rows]
    if any(row.faster for row in rows):
        found["times faster"] = [times_faster(row) for row in rows]
    for name in dict.fromkeys(name for row in rows for name in row.facts):
        found[name] = [number(row.facts[name]) if name in row.facts and row.agrees else "" for row in rows]
    if any(row.error is not None for row in rows):
        found["error"] = ["" if row.error is None else f"{row.error:.1g}" for row in rows]
    return found


def times_faster(row: Row) -> str:
    """`9.3 [9.1, 9.6]`: the ratio and its 95 % interval."""
    if row.faster is None:
        return ""
    return f"{number(row.faster.value)} [{number(row.faster.low)}, {number(row.faster.high)}]"


def number(value: float) -> str:
    """Three significant digits."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def markdown(found: dict[str, list[str]]) -> str:
    lines = [list(found), ["---"] * len(found), *map(list, zip(*found.values(), strict=True))]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
