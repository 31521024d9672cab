"""Show results: tables for terminals and documents, the engine's standing among its peers, Markdown, plots."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .peers import ENGINE
from .results import Interval, Results, Row, paired_ratio

# ---- tables ----------------------------------------------------------------------------------------------------------

STANDINGS = ("latency", "loop", "call", "generate")
"""Suites in which the engine is compared with the fastest other agent of its dtype."""

UNITS = {
    "latency": "ms",
    "loop": "ms",
    "host": "us",
    "call": "ms",
    "batches": "ms",
    "throughput": "ms",
    "load": "s",
    "generate": "ms",
    "beside": "ms",
    "train": "ms",
    "eval": "ms",
    "growth": "ms",
    "soak": "ms",
}
"""Suite -> unit of its times; the tables of other suites show no times."""

TAILS = {
    "loop": {"99": "p99", "99.9": "p99.9", "max": "max"},
    "generate": {"99": "p99"},
    "beside": {"99": "p99", "max": "max"},
}

"""Suite -> further percentiles its table shows, and their headers."""

_SCALES = {"us": 1e6, "ms": 1e3, "s": 1.0}

_WITHHELD = "outputs differ"
"""In place of every figure of an agent whose outputs are not the reference's."""


def title(suite: str, settings: Mapping[str, Any]) -> str:
    """Return a table's title, which says so if the engine was measured without its native module."""
    return f"{suite}: JatEngine in PLAIN TORCH, its native module is missing" if settings.get("plain_torch") else suite


def columns(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return header -> cells of one suite's rows. Times are medians with 5th and 95th percentiles."""
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for row in rows for name in row.case):
        found[name] = [str(row.case.get(name, "")) for row in rows]
    found["agent"] = [row.agent for row in rows]
    found["dtype"] = [row.dtype for row in rows]
    found |= _times(rows)
    if any(row.faster for row in rows):
        found["times faster"] = [times_faster(row) for row in rows]
    for name in dict.fromkeys(name for row in rows for name in row.facts):
        found[name] = [number(row.facts[name]) if name in row.facts and row.agrees else "" for row in rows]
    for name in dict.fromkeys(name for row in rows for name in row.intervals):
        found[name] = [interval(row.intervals[name]) if name in row.intervals and row.agrees else "" for row in rows]
    if any(row.error is not None for row in rows):
        found["error"] = ["" if row.error is None else f"{row.error:.1g}" for row in rows]
    return found


def _times(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return the columns of times, of a suite that has a unit."""
    suite = rows[0].suite
    if suite not in UNITS:
        return {}
    unit = UNITS[suite]
    scale = _SCALES[unit]

    found = {f"p50 {unit}": [number(row.p50 * scale) if row.agrees else _WITHHELD for row in rows]}
    found["p5 to p95"] = [
        f"{number(row.seconds['5'] * scale)} to {number(row.seconds['95'] * scale)}" if row.agrees else ""
        for row in rows
    ]
    for percentile, header in TAILS.get(suite, {}).items():
        found[f"{header} {unit}"] = [number(row.seconds[percentile] * scale) if row.agrees else "" for row in rows]
    return found


def times_faster(row: Row) -> str:
    """Return the ratio and its 95 % interval, as in `9.3 [9.1, 9.6]`; "" where there is none."""
    return "" if row.faster is None else interval(row.faster)


def interval(value: Interval) -> str:
    """Return a ratio with its interval."""
    return f"{number(value.value)} [{number(value.low)}, {number(value.high)}]"


def number(value: float) -> str:
    """Return a figure with three significant digits, or "-" for what is not finite."""
    if not math.isfinite(value):
        return "-"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


# ---- standing --------------------------------------------------------------------------------------------------------

_FEWEST_ROUNDS = 3


def standing(rows: Iterable[Row]) -> dict[str, list[str]]:
    """Return header -> cells: in each case, the engine compared with the fastest other agent of the same dtype.

    A line for each case and dtype of the engine that another agent has been measured in; agents whose outputs are not
    the reference's are left out.
    """
    cases: dict[tuple[tuple[str, str | int], ...], list[Row]] = {}
    for row in rows:
        if row.agrees:
            cases.setdefault(tuple(row.case.items()), []).append(row)

    lines: list[dict[str, str]] = []
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
            line["times faster"] = interval(ratio)
            if engine.error is not None and best.error is not None:
                line |= {"error": f"{engine.error:.1g}", "its error": f"{best.error:.1g}"}
            line["ahead"] = "yes" if ratio.low > 1 else "no" if ratio.high < 1 else "within noise"
            if len(engine.round_medians) < _FEWEST_ROUNDS:
                line["ahead"] = "too few rounds"
            lines.append(line)
    return by_column(lines)


# ---- Markdown --------------------------------------------------------------------------------------------------------

_MAX_TEXT = 400


def markdown(columns: Mapping[str, Sequence[str]], right: Container[str] = ()) -> str:
    """Return a Markdown table.

    Args:
        columns: header -> cells, as many in each.
        right: headers of columns that are set to the right.
    """
    rule = ["---:" if name in right else "---" for name in columns]
    lines = [list(columns), rule, *map(list, zip(*columns.values(), strict=True))]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def by_column(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return rows as columns, in the order in which they first come; what a row lacks is left empty."""
    found = list(rows)
    names = dict.fromkeys(name for row in found for name in row)
    return {name: [cell(row.get(name, "")) for row in found] for name in names}


def cell(value: Any) -> str:
    """Return a value as a table shows it: on one line, floats with four digits, collections as lists."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {cell(v)}" for key, v in value.items())
    if isinstance(value, list):
        return ", ".join(cell(v) for v in value)
    if isinstance(value, float):
        return f"{value:.2e}" if 0 < abs(value) < 0.001 else f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value).replace("|", "/").replace("\n", " ")[:_MAX_TEXT]


# ---- plots -----------------------------------------------------------------------------------------------------------

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


def write_plots(results: Results, path: Path) -> list[Path]:
    """Draw every suite that has a plot, each into a file next to `path`.

    Returns:
        The files.

    Raises:
        ValueError: matplotlib is not installed.
    """
    written = []
    for suite, draw in DRAWN.items():
        rows = [row for row in results.of_suite(suite) if row.agrees]
        if rows:
            target = path.with_name(f"{path.stem}_{suite}.png")
            save(draw, rows, target)
            written.append(target)
    return written


def save(draw: Callable[[Sequence[Row]], Any], rows: Sequence[Row], path: Path) -> None:
    """Draw rows into a file. Raises `ValueError` where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise ValueError("matplotlib is not installed; pip install 'jat-engine[bench]'") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = draw(rows)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_latency(rows: Sequence[Row]) -> Any:
    """Return bars: the median of every agent, an axis for each modality of the first model."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    model = rows[0].case["model"]
    windows = [row.case["window"] for row in rows if row.case["model"] == model]
    window = HEADLINE_WINDOW if HEADLINE_WINDOW in windows else windows[0]
    shown = [row for row in rows if row.case["model"] == model and row.case["window"] == window]
    kinds = list(dict.fromkeys(str(row.case["observation"]) for row in shown))
    names = list(dict.fromkeys(_bar(row) for row in shown))

    figure, axes = plt.subplots(1, len(kinds), figsize=(4 * len(kinds), 1.5 + 0.25 * len(names)), squeeze=False)
    for axis, kind in zip(axes[0], kinds, strict=True):
        of_kind = {_bar(row): row for row in shown if row.case["observation"] == kind}
        present = [name for name in reversed(names) if name in of_kind]
        times = [of_kind[name].p50 * 1e3 for name in present]
        colors = [_COLORS.get(of_kind[name].agent, "tab:orange") for name in present]
        bars = axis.barh(present, times, color=colors)
        axis.bar_label(bars, fmt="%.3g", padding=2, fontsize=8)
        axis.set(
            title=f"{kind}, window {window}", xlabel="ms a step", xscale="log", xlim=(min(times) / 2, max(times) * 3)
        )
        axis.tick_params(labelsize=8, labelleft=kind == kinds[0])
        axis.xaxis.set_minor_formatter(NullFormatter())  # bars have their own labels
    figure.tight_layout()
    return figure


def _bar(row: Row) -> str:
    """Return a bar's label: the agent, and what its case says beyond the axis."""
    rest = [str(value) for name, value in row.case.items() if name not in ("model", "observation", "window")]
    return ", ".join([row.name, *rest])


_TAIL = ("50", "75", "90", "95", "99", "99.9", "max")
"""Percentiles from left to right."""


def draw_loop(rows: Sequence[Row]) -> Any:
    """Return lines: latency over percentiles, which shows jitter as slope; an axis for each rate and neighbour.

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
    """Return lines: agent-steps a second over the number of agents."""
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


def draw_growth(rows: Sequence[Row]) -> Any:
    """Return lines: time of a step over the cached tokens, an axis for each model."""
    import matplotlib.pyplot as plt

    models = list(dict.fromkeys(str(row.case["model"]) for row in rows))
    figure, axes = plt.subplots(1, len(models), figsize=(4.5 * len(models), 3.5), squeeze=False)
    for axis, model in zip(axes[0], models, strict=True):
        of_model = [row for row in rows if row.case["model"] == model]
        for name in dict.fromkeys(row.name for row in of_model):
            chosen = [row for row in of_model if row.name == name]
            axis.plot([row.case["cached tokens"] for row in chosen], [row.p50 * 1e3 for row in chosen], label=name)
        axis.set(title=model, xlabel="cached tokens", ylabel="ms a step", ylim=(0, None))
        axis.legend(fontsize=8)
    figure.tight_layout()
    return figure


def draw_call(rows: Sequence[Row]) -> Any:
    """Return bars: every agent's median back to back, with its 95 % interval."""
    import matplotlib.pyplot as plt

    shown = sorted((row for row in rows if row.case["hz"] == "none"), key=lambda row: -row.p50)
    figure, axis = plt.subplots(figsize=(7, 1.2 + 0.25 * len(shown)))
    medians = [row.intervals["p50 ms [95 %]"] for row in shown]
    bars = axis.barh(
        [row.name for row in shown],
        [found.value for found in medians],
        xerr=[[found.value - found.low for found in medians], [found.high - found.value for found in medians]],
        color=[
            _COLORS.get(row.agent, "tab:cyan" if row.agent.startswith("JatEngine") else "tab:orange") for row in shown
        ],
    )
    axis.bar_label(bars, [f"{found.value:.3g}" for found in medians], padding=4, fontsize=8)
    axis.set(xlabel="ms a call, back to back", xscale="log", xlim=(medians[-1].value / 2, 2 * medians[0].high))
    axis.tick_params(labelsize=8)
    figure.tight_layout()
    return figure


DRAWN = {
    "latency": draw_latency,
    "call": draw_call,
    "batches": draw_throughput,
    "loop": draw_loop,
    "throughput": draw_throughput,
    "growth": draw_growth,
}
"""Suite -> its plot."""
