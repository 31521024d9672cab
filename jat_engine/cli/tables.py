"""Tables and numbers formatted for people."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .streams import encodable, say

if TYPE_CHECKING:
    from ..envs import Score
    from ..evaluation import Interval

_ANY_WIDTH = 1000
"""Width in characters if the output is not a terminal."""


def console() -> Console:
    """Return a console that writes to standard output, as wide as needed if that is a file or a pipe."""
    return Console(width=None if sys.stdout.isatty() else _ANY_WIDTH, highlight=False, markup=False, emoji=False)


def print_table(
    title: str, columns: dict[str, list[str]], *, left: Sequence[str] = (), optional: Sequence[str] = ()
) -> None:
    """Print a table. Cells are never cut or wrapped.

    Args:
        title: line above the table.
        columns: header -> cells.
        left: headers of left-aligned columns; the others are right-aligned.
        optional: headers of columns to leave out, in this order, while the terminal is too narrow.
    """
    width = console().width
    for dropped in range(len(optional) + 1):
        kept = {name: cells for name, cells in columns.items() if name not in optional[:dropped]}
        table = _table(kept, left)
        needed = Console(width=_ANY_WIDTH, height=1).measure(table).maximum
        if needed <= width:
            break
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    shown = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace")
    # Not to standard output: rich ends the process where the reader of a pipe has gone away. With a height too: of a
    # width alone, rich takes no notice on a terminal that is "dumb".
    wide = Console(
        file=shown,
        force_terminal=sys.stdout.isatty(),
        width=needed,
        height=len(table.rows) + 4,
        highlight=False,
        markup=False,
        emoji=False,
    )
    wide.print(f"{title}\n", style="bold", soft_wrap=True)
    wide.print(table)
    shown.seek(0)
    say(shown.read().rstrip("\n"))


def _table(columns: dict[str, list[str]], left: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name in left else "right", no_wrap=True)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*map(Text, row))
    return table


def number(value: float | None) -> str:
    """Return a number as short text, or "-" for None and for what is not finite.

    Example:
        >>> [number(x) for x in (-20.71, 16912.5, 0.031, None, float("nan"))]
        ['-20.7', '16912', '0.03', '-', '-']
    """
    if value is None or not math.isfinite(value):
        return "-"
    digits = 0 if abs(value) >= 10_000 else 1 if abs(value) >= 10 else 2
    return f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: no -0.00


def score(value: Score | None) -> str:
    """Return the mean of a published return as text, or "-" for None."""
    return "-" if value is None else number(value.mean)


def mean_std(values: Any) -> str:
    """Return "mean ± standard deviation", or "-" if it is undefined, as of no values."""
    array = np.asarray(values, np.float64)
    if not array.size or not np.isfinite(array).all():
        return "-"
    return f"{number(float(array.mean()))} {encodable('±', '+/-')} {number(float(array.std()))}"


def milliseconds(latency_us: float) -> str:
    """Return a duration as text, in milliseconds, or in microseconds below 1 ms."""
    return f"{latency_us / 1e3:.1f} ms" if latency_us >= 1e3 else f"{latency_us:.0f} us"


def three_digits(value: float) -> str:
    """Return a number with three digits after the point, without -0.000."""
    return f"{round(value, 3) + 0.0:.3f}"


def interval(value: Interval | None, shown: Callable[[float], str] = three_digits) -> str:
    """Return "value [low, high]", or "-" for None.

    Args:
        value: the estimate.
        shown: returns a number as text.
    """
    if value is None or not math.isfinite(value.value):
        return "-"
    return f"{shown(value.value)} [{shown(value.low)}, {shown(value.high)}]"
