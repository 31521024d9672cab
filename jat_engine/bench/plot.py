"""Plots of results, by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .results import Results, Row

HEADLINE_WINDOW = 256

_COLORS = {"JatEngine": "tab:blue", "JatModel": "tab:gray", "published package": "black"}


def write(results: Results, path: Path) -> list[Path]:
    """Plots beside `path`, one a suite that has one; none, with a `ValueError`, without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise ValueError("matplotlib is not installed; pip install 'jat-engine[bench]'") from None
    matplotlib.use("Agg")
    written = []
    for suite, draw in (("latency", draw_latency), ("throughput", draw_throughput)):
        rows = [row for row in results.of_suite(suite) if row.agrees]
        if rows:
            figure = draw(rows)
            target = path.with_name(f"{path.stem}_{suite}.png")
            figure.savefig(target, dpi=110)
            written.append(target)
    return written


def draw_latency(rows: Sequence[Row]) -> Any:
    """Bars: the median of every agent, an axis for each modality of the first model."""
    import matplotlib.pyplot as plt

    model = rows[0].case["model"]
    windows = [row.case["window"] for row in rows if row.case["model"] == model]
    window = HEADLINE_WINDOW if HEADLINE_WINDOW in windows else windows[0]
    shown = [row for row in rows if row.case["model"] == model and row.case["window"] == window]
    kinds = list(dict.fromkeys(str(row.case["observation"]) for row in shown))
    names = list(dict.fromkeys(row.name for row in shown))
    figure, axes = plt.subplots(1, len(kinds), figsize=(4 * len(kinds), 1.5 + 0.25 * len(names)), squeeze=False)
    for axis, kind in zip(axes[0], kinds, strict=True):
        of_kind = {row.name: row for row in shown if row.case["observation"] == kind}
        present = [name for name in reversed(names) if name in of_kind]
        times = [of_kind[name].p50 * 1e3 for name in present]
        colors = [_COLORS.get(of_kind[name].agent, "tab:orange") for name in present]
        bars = axis.barh(present, times, color=colors)
        axis.bar_label(bars, fmt="%.3g", padding=2, fontsize=8)
        axis.set(
            title=f"{kind}, window {window}", xlabel="ms a step", xscale="log", xlim=(min(times) / 2, max(times) * 3)
        )
        axis.tick_params(labelsize=8, labelleft=kind == kinds[0])
    figure.tight_layout()
    return figure


def draw_throughput(rows: Sequence[Row]) -> Any:
    """Lines: agent-steps a second over the number of agents."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4))
    for name in dict.fromkeys(row.name for row in rows):
        of_name = [row for row in rows if row.name == name]
        agents = [float(row.case["agents"]) for row in of_name]
        axis.plot(agents, [row.facts["agent-steps/s"] for row in of_name], marker="o", label=name)
    axis.set(xscale="log", yscale="log", xlabel="agents in a step", ylabel="agent-steps / s")
    axis.legend(fontsize=8)
    figure.tight_layout()
    return figure
