"""Plots of results, by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .results import Results, Row

HEADLINE_WINDOW = 256

_COLORS = {"JatEngine": "tab:blue", "JatModel": "tab:gray", "published package": "black"}

_LINE_COLORS = {
    **_COLORS,
    "JatEngine one pinned thread": "tab:green",
    "JatEngine never sleeping": "tab:olive",
    "torch.compile": "tab:purple",
    "onnxruntime": "tab:red",
    "openvino": "tab:orange",
}


def write(results: Results, path: Path) -> list[Path]:
    """Plots beside `path`, one a suite that has one; none, with a `ValueError`, without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise ValueError("matplotlib is not installed; pip install 'jat-engine[bench]'") from None
    matplotlib.use("Agg")
    written = []
    for suite, draw in (("latency", draw_latency), ("loop", draw_loop), ("throughput", draw_throughput)):
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


_TAIL = ("50", "75", "90", "95", "99", "99.9", "max")
"""Percentiles from left to right."""


def draw_loop(rows: Sequence[Row]) -> Any:
    """Lines: latency over percentiles, which shows jitter as slope; an axis for each rate and neighbour.

    Of the first model and its first pace with a rate. Each agent in the dtype that is fastest there.
    """
    import matplotlib.pyplot as plt

    paced = [row for row in rows if row.case["hz"] != "none"] or list(rows)
    first = paced[0].case
    shown = [row for row in paced if all(row.case[name] == first[name] for name in ("model", "pace"))]
    rates = list(dict.fromkeys(row.case["hz"] for row in shown))
    neighbours = list(dict.fromkeys(row.case["neighbour"] for row in shown))
    fastest: dict[str, str] = {}
    for row in sorted(shown, key=lambda row: row.p50):
        fastest.setdefault(row.agent, row.dtype)
    size = 3.2 * len(rates) + 2.6, 2.8 * len(neighbours) + 0.4
    figure = plt.figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(neighbours), len(rates), squeeze=False, sharey=True)
    for (neighbour, hz), axis in zip(((n, hz) for n in neighbours for hz in rates), axes.flat, strict=True):
        for agent, dtype in fastest.items():
            case = {"neighbour": neighbour, "hz": hz}
            found = [row for row in shown if row.name == f"{agent} {dtype}" and case.items() <= row.case.items()]
            for row in found:
                times = [row.seconds[percentile] * 1e3 for percentile in _TAIL]
                style = {"color": _LINE_COLORS.get(agent), "linestyle": "--" if agent.startswith("JatEngine ") else "-"}
                axis.plot(range(len(_TAIL)), times, marker=".", label=row.name, **style)
        if isinstance(hz, int):
            axis.axhline(1e3 / hz, color="tab:red", linewidth=0.8)
        title = f"{hz} Hz" + (", busy neighbour" if neighbour == "busy" else "")
        axis.set(title=title, yscale="log", xticks=range(len(_TAIL)), xlabel="percentile of calls")
        axis.set_xticklabels(_TAIL, fontsize=8)
        axis.grid(alpha=0.3)
    for row_of_axes in axes:
        row_of_axes[0].set_ylabel(f"ms a call, {first['pace']}; red: the period")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
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
