"""Figures of an evaluation for papers, as PNG and PDF: intervals, performance profiles, and bars of tasks.

Each figure is of the scores by one reference, which its axis names. Equal episodes give equal files.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic_io import write_bytes
from ..evaluation.scores import Reference
from ..evaluation.statistics import performance_profile
from .records import Evaluation
from .summary import OVERALL, GroupSummary, Summary, TaskSummary
from .tables import AGGREGATES

_INCH_PER_TASK = 0.17
_COLORS = {"atari": "tab:red", "babyai": "tab:blue", "metaworld": "tab:green", "mujoco": "tab:orange", OVERALL: "black"}
_OTHER_COLORS = ("tab:purple", "tab:brown", "tab:pink", "tab:olive", "tab:cyan")
_ONE_PANEL = 45
"""Most tasks that are drawn in one panel."""

_LINEAR = 5.0
"""Largest score up to which an axis is linear; beyond it is logarithmic outside of [-1, 1]."""


def check_figures(field: str = "") -> None:
    """Check that figures can be drawn here.

    Args:
        field: the flag that asks for them, for the message.

    Raises:
        ImportError: matplotlib is not installed; the message says how to install it.
    """
    if importlib.util.find_spec("matplotlib") is None:
        prefix = f"{field}: " if field else ""
        raise ImportError(f"{prefix}expected matplotlib, which is not installed here; pip install 'jat-engine[bench]'")


def write_figures(evaluation: Evaluation, summary: Summary, folder: Path, agent: str = "the agent") -> list[Path]:
    """Draw all figures and write each as .png and as .pdf, atomically.

    These are `intervals_REFERENCE`, `profile_REFERENCE` and `tasks_REFERENCE` for each reference by which scores are
    defined, and `atari_human` if the evaluation has games of Atari.

    Args:
        evaluation: with finished episodes.
        summary: the same evaluation's.
        folder: of the files; created if needed.
        agent: its name in titles.

    Returns:
        The paths of the files.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: a file cannot be written.
    """
    check_figures()
    import matplotlib
    from matplotlib.style import context

    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    # The user's settings would change the files; type 42 embeds fonts as journals ask for.
    with context("default"), matplotlib.rc_context({"font.size": 9, "pdf.fonttype": 42, "svg.hashsalt": "jat_engine"}):
        for reference in summary.references:
            drawn = {
                f"intervals_{reference}": draw_intervals(summary, reference, agent),
                f"profile_{reference}": draw_profile(evaluation, summary, reference, agent),
            }
            if reference == "human":
                drawn["atari_human"] = draw_atari(summary, agent)
            else:
                drawn[f"tasks_{reference}"] = draw_tasks(summary, reference, agent)
            for name, figure in drawn.items():
                paths += _save(figure, folder / name)
    return paths


def _save(figure: Any, stem: Path) -> list[Path]:
    """Write a figure in both formats, without dates and versions."""
    nothing = {"png": {"Software": None}, "pdf": {"Creator": None, "Producer": None, "CreationDate": None}}
    paths = []
    for extension, metadata in nothing.items():
        picture = io.BytesIO()
        figure.savefig(picture, format=extension, dpi=150, metadata=metadata)
        path = stem.with_name(f"{stem.name}.{extension}")
        write_bytes(path, picture.getvalue())
        paths.append(path)
    return paths


# ---- figures ---------------------------------------------------------------------------------------------------------


def draw_intervals(summary: Summary, reference: Reference, agent: str = "the agent") -> Any:
    """Return a figure with a panel per aggregate, and in each the 95 % interval of every domain and of all tasks.

    Args:
        summary: of the evaluation.
        reference: of the scores.
        agent: its name in the title.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    groups = summary.scored(reference)
    size = (10.0, 1.7 + 0.3 * len(groups))
    figure = _figure(size, summary, agent, "bands: 95 % bootstrap intervals, ticks: estimates")
    panels = figure.subplots(1, len(AGGREGATES), sharey=True, squeeze=False)[0]
    places = range(len(groups))[::-1]
    for axes, (name, title) in zip(panels, AGGREGATES.items(), strict=True):
        for place, group in zip(places, groups, strict=True):
            found = getattr(group.scores[reference], name)
            color = _color(group.name, groups)
            axes.hlines(place, found.low, found.high, color=color, linewidth=7, alpha=0.35)
            axes.plot([found.value], [place], "|", color=color, markersize=10, markeredgewidth=2)
        axes.set_title(title, fontsize=10)
        axes.set_yticks(list(places), [_count(group, reference) for group in groups])
        axes.set_ylim(-0.6, len(groups) - 0.4)
        axes.margins(x=0.15)
        axes.locator_params(axis="x", nbins=5)
        axes.grid(axis="x", alpha=0.3)
        _clean(axes)
    figure.supxlabel(_axis(summary, reference), fontsize=9)
    return figure


def draw_profile(evaluation: Evaluation, summary: Summary, reference: Reference, agent: str = "the agent") -> Any:
    """Return a figure of the performance profiles of every domain and of all tasks: shares of episodes above a score.

    Args:
        evaluation: with finished episodes.
        summary: the same evaluation's.
        reference: of the scores.
        agent: its name in the title.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    scores: dict[str, list[np.ndarray]] = {}
    for task in evaluation.tasks.values():
        values = task.scores(reference)
        if values is not None and values.size:
            for name in (task.task.domain, OVERALL):
                scores.setdefault(name, []).append(values)

    figure = _figure((7.4, 4.0), summary, agent, "bands: 95 % bootstrap intervals")
    axes = figure.subplots()
    thresholds = _thresholds(np.concatenate(scores[OVERALL]))
    groups = summary.scored(reference)
    for group in groups:
        found = performance_profile(scores[group.name], thresholds)
        assert found is not None, "groups have scores"
        color, width = _color(group.name, groups), 2.0 if group.name == OVERALL else 1.3
        axes.plot(thresholds, found.share, color=color, linewidth=width, label=_count(group, reference))
        axes.fill_between(thresholds, found.low, found.high, color=color, alpha=0.18, linewidth=0)
    axes.axvline(1.0, color="gray", linestyle="--", linewidth=0.8)
    _scale(axes.xaxis, thresholds, thresholds)
    axes.set(xlim=(thresholds[0], thresholds[-1]), ylim=(-0.02, 1.02))
    axes.set(xlabel=_axis(summary, reference), ylabel="Share of episodes above the score")
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside right center", frameon=False)  # no corner is free of every agent's curves
    _clean(axes)
    return figure


def _thresholds(scores: np.ndarray) -> np.ndarray:
    """Return the scores at which a profile is drawn, float64 [K]: dense where most scores are."""
    low, high = min(0.0, float(np.quantile(scores, 0.005))), max(1.2, float(np.quantile(scores, 0.995)))
    if high <= _LINEAR and low >= -_LINEAR:
        return np.linspace(low, high, 201)
    inner = np.linspace(max(low, -1.0), 1.0, 101)
    parts = [inner, np.geomspace(1.0, high, 101)[1:]]
    if low < -1.0:
        parts.insert(0, -np.geomspace(-low, 1.0, 51)[:-1])
    return np.concatenate(parts)


def draw_tasks(summary: Summary, reference: Reference, agent: str = "the agent") -> Any:
    """Return a figure of the tasks' mean scores as bars, the highest on top; of many tasks with a panel per domain.

    Args:
        summary: of the evaluation.
        reference: of the scores.
        agent: its name in the title.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    tasks = [task for task in summary.tasks if reference in task.scores]
    tasks.sort(key=lambda task: -task.scores[reference].value)
    domains = [group for group in summary.domains if reference in group.scores]
    is_one = len(tasks) <= _ONE_PANEL
    panels = [tasks] if is_one else [[t for t in tasks if t.task.domain == group.name] for group in domains]
    most = max(3, *map(len, panels))

    width = 6.4 if is_one else 4.4 * len(panels) + 0.4
    figure = _figure((width, 1.5 + _INCH_PER_TASK * most), summary, agent, "lines: 95 % bootstrap intervals")
    for axes, members in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        means, errors = _bars(members, reference)
        places, colors = np.arange(len(members)), [_color(task.task.domain, domains) for task in members]
        axes.barh(places, means, color=colors, alpha=0.6, height=0.75)
        axes.errorbar(means, places, xerr=errors, fmt="none", ecolor="black", elinewidth=0.9)
        names = [task.task.name if is_one else task.task.name.removeprefix(f"{task.task.domain}-") for task in members]
        axes.set_yticks(places, names, fontsize=8)
        axes.set_ylim(most - 0.4, -0.6)  # bars of all panels have the same height
        for value in (0.0, 1.0):
            axes.axvline(value, color="gray", linestyle="-" if value == 0 else "--", linewidth=0.8)
        _scale(axes.xaxis, means - errors[0], means + errors[1])
        axes.grid(axis="x", alpha=0.3)
        _clean(axes)
        if not is_one:
            axes.set_title(_count(summary.domain(members[0].task.domain), reference), fontsize=10)
    if is_one and len(domains) > 1:
        _add_legend(figure, domains, reference)
    figure.supxlabel(_axis(summary, reference, "Mean score"), fontsize=9)
    return figure


def draw_atari(summary: Summary, agent: str = "the agent") -> Any:
    """Return a figure of the human-normalised scores of Atari's games as bars on a logarithmic axis, the highest first.

    The axis is linear from -1 to 1: 0 is a random policy, 1 are humans.

    Args:
        summary: of the evaluation, with a game of Atari.
        agent: its name in the title.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    tasks = [task for task in summary.tasks if "human" in task.scores]
    tasks.sort(key=lambda task: -task.scores["human"].value)
    means, errors = _bars(tasks, "human")
    size = (2.2 + _INCH_PER_TASK * max(len(tasks), 20), 4.6)
    figure = _figure(size, summary, agent, "lines: 95 % bootstrap intervals")
    axes = figure.subplots()
    places = np.arange(len(tasks))
    colors = ["tab:red" if mean >= 1 else "tab:blue" for mean in means]
    axes.bar(places, means, color=colors, alpha=0.6, width=0.75)
    axes.errorbar(places, means, yerr=errors, fmt="none", ecolor="black", elinewidth=0.9)
    for value in (0.0, 1.0):
        axes.axhline(value, color="gray", linestyle="-" if value == 0 else "--", linewidth=0.8)
    axes.set_xticks(places, [task.task.name.removeprefix("atari-") for task in tasks], rotation=90, fontsize=8)
    axes.set_xlim(-0.7, max(len(tasks), 20) - 0.3)
    _scale(axes.yaxis, means - errors[0], means + errors[1], is_log=True)
    axes.set_ylabel(_axis(summary, "human", "Mean score"))
    axes.grid(axis="y", alpha=0.3)
    _clean(axes)
    return figure


# ---- parts -----------------------------------------------------------------------------------------------------------


def _figure(size: tuple[float, float], summary: Summary, agent: str, marks: str) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(f"{agent}: {summary.run}\n{marks}", fontsize=8)
    return figure


def _axis(summary: Summary, reference: Reference, what: str = "Score") -> str:
    meaning = {"expert": "the expert", "demonstrator": "the demonstrator", "human": "humans"}[reference]
    return f"{what} {summary.words(reference)}\n(0: random policy, 1: {meaning})"


def _count(group: GroupSummary, reference: Reference) -> str:
    number = group.scores[reference].tasks
    return f"{group.title} ({number})" if group.name == OVERALL else f"{group.title} ({_tasks(number)})"


def _tasks(number: int) -> str:
    return f"{number} task{'' if number == 1 else 's'}"


def _color(name: str, groups: Sequence[GroupSummary]) -> str:
    if name in _COLORS:
        return _COLORS[name]
    others = [group.name for group in groups if group.name not in _COLORS]
    return _OTHER_COLORS[others.index(name) % len(_OTHER_COLORS)]


def _add_legend(figure: Any, groups: Sequence[GroupSummary], reference: Reference) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=_color(group.name, groups), alpha=0.6, label=_count(group, reference)) for group in groups]
    figure.legend(handles=handles, fontsize=8, loc="outside right center", frameon=False)


def _bars(tasks: Sequence[TaskSummary], reference: Reference) -> tuple[np.ndarray, np.ndarray]:
    """Return means, float64 [N], and distances to the bounds of their intervals, float64 [2, N]."""
    found = [task.scores[reference] for task in tasks]
    means = np.array([one.value for one in found])
    errors = [[one.value - one.low for one in found], [one.high - one.value for one in found]]
    return means, np.maximum(np.array(errors), 0.0)  # rounding


def _scale(axis: Any, low: np.ndarray, high: np.ndarray, is_log: bool = False) -> None:
    """Set an axis's limits, and make it logarithmic outside of [-1, 1] if its values need it, or if `is_log`.

    Args:
        axis: of matplotlib.
        low, high: bounds of what is drawn, besides 0 and 1.
        is_log: make it logarithmic in any case.
    """
    from matplotlib.ticker import FixedLocator, StrMethodFormatter

    bottom, top = min(0.0, float(low.min())), max(1.0, float(high.max()))
    is_log = is_log or max(-bottom, top) > _LINEAR
    if not is_log:
        margin = 0.04 * (top - bottom)
        limits = (bottom - margin * (bottom < 0), top + margin)
    else:
        limits = (1.3 * bottom if bottom < -1 else bottom - 0.1 * (bottom < 0), 1.3 * top)
        decades = [factor * 10.0**power for power in range(6) for factor in (1, 2, 5)]
        ticks = [0.0, *(sign * tick for tick in (0.5, *decades) for sign in (-1, 1))]
        _set(axis, "scale", "symlog", linthresh=1.0, linscale=0.8)
        axis.set_major_locator(FixedLocator(sorted(tick for tick in ticks if limits[0] <= tick <= limits[1])))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_locator(FixedLocator([]))
    _set(axis, "lim", *limits)


def _set(axis: Any, what: str, *values: Any, **options: Any) -> None:
    """Call `set_xscale`, `set_ylim` and so on of an axis's panel."""
    getattr(axis.axes, f"set_{axis.axis_name}{what}")(*values, **options)


def _clean(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
