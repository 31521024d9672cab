"""Tables for people."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from ..envs import Score
    from ..evaluation import Interval

_PIPE_WIDTH = 160
"""Characters a line may have where there is no terminal to ask."""


def console() -> Console:
    """Standard output as it is now; wide enough for every table if it is a file or a pipe."""
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)


def table(title: str, left: list[str], right: list[str]) -> Table:
    """A table with left-aligned columns, then right-aligned ones."""
    result = Table(title=title, title_justify="left", title_style="bold")
    for name in left:
        result.add_column(name, overflow="fold")
    for name in right:
        result.add_column(name, justify="right", no_wrap=True)
    return result


def number(value: float | None) -> str:
    """Short: `-20.7`, `16912`, `0.032`; `-` for None."""
    if value is None:
        return "-"
    digits = 0 if abs(value) >= 10_000 else 1 if abs(value) >= 10 else 2
    return f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: no -0.00


def score(value: Score | None) -> str:
    return "-" if value is None else number(value.mean)


def mean_std(values: Any) -> str:
    array = np.asarray(values, np.float64)
    return f"{number(float(array.mean()))} ± {number(float(array.std()))}"


def milliseconds(latency_us: float) -> str:
    return f"{latency_us / 1e3:.1f} ms" if latency_us >= 1e3 else f"{latency_us:.0f} us"


def interval(value: Interval | None) -> str:
    return "-" if value is None else f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"
