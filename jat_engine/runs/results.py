"""Result files of a run: `evaluations.json` in the published layout, and `results.json` with all details.

Both are made of the episodes alone, so that equal episodes give equal bytes. Values that statistics computes are
rounded to `_DIGITS` digits, since a processor may add numbers in another order. Wall times are in `timing.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..atomic_io import write_json
from ..evaluation.scores import REFERENCES, undefined_reason
from ..evaluation.statistics import Aggregates, Interval
from .records import Evaluation, TaskEpisodes
from .summary import GroupSummary, TaskSummary, summarize

EVALUATIONS, RESULTS, TIMING, REPORT = "evaluations.json", "results.json", "timing.json", "report"
"""Names of the files, and of the folder of tables and figures."""

_DIGITS = 9


def evaluations(evaluation: Evaluation) -> dict[str, list[float]]:
    """Return the content of `evaluations.json`: task -> returns, in the order of the episodes."""
    return {name: task.returns.tolist() for name, task in evaluation.tasks.items() if task.finished}


def results(evaluation: Evaluation) -> dict[str, Any]:
    """Return the content of `results.json`."""
    tasks = evaluation.tasks
    found: dict[str, Any] = {"complete": evaluation.complete, "tasks": {}, "failed": {}, "domains": {}, "overall": {}}
    if any(task.finished for task in tasks.values()):
        summary = summarize(evaluation)
        found["tasks"] = {one.task.name: _task(tasks[one.task.name], one) for one in summary.tasks}
        found["domains"] = {group.name: _group(group) for group in summary.domains}
        found["overall"] = _group(summary.overall)
    for name, task in tasks.items():
        failed = [episode for episode in task.episodes if episode.failed]
        if failed:
            found["failed"][name] = [
                {"episode": one.index, "seed": one.seed, "step": one.length, "error": one.error} for one in failed
            ]
    return found | {"settings": dict(evaluation.settings)}


def write_results(folder: Path, evaluation: Evaluation) -> None:
    """Write both files atomically.

    Raises:
        OSError: they cannot be written.
    """
    write_json(folder / RESULTS, results(evaluation), indent=2)
    write_json(folder / EVALUATIONS, evaluations(evaluation))


def _task(task: TaskEpisodes, summary: TaskSummary) -> dict[str, Any]:
    """Return the part of `results.json` about one task."""
    row, episodes = task.task, task.finished
    content: dict[str, Any] = {
        "domain": row.domain,
        "adapter": task.description.get("rule", {}).get("adapter"),
        "module": row.module,
        "versions": task.description.get("versions"),
        "complete": task.complete,
        "episodes": [episode.index for episode in episodes],
        "seeds": [episode.seed for episode in episodes],
        "returns": task.returns.tolist(),
        "lengths": [episode.length for episode in episodes],
        "capped": [episode.capped for episode in episodes],
        "success": None if task.successes is None else task.successes.tolist(),
        "lives": [episode.lives for episode in episodes],
        "digests": [episode.digest for episode in episodes],
        "mean": _rounded(summary.mean.value),
        "std": _rounded(summary.std),
        "interval": _interval(summary.mean),
        "success_rate": _interval(summary.success),
    }
    for name in ("random", "expert", "demonstrator", "human"):
        score = getattr(row, name)
        content[f"{name}_mean"] = None if score is None else score.mean
    for reference in REFERENCES:
        key = f"{reference}_normalized"
        content[key] = None
        if reference in summary.scores:
            value, std = summary.scores[reference], summary.score_stds[reference]
            content[key] = {"mean": _rounded(value.value), "std": _rounded(std), "interval": _interval(value)}
        else:
            content[f"{key}_reason"] = undefined_reason(row, reference)
    return content


def _group(group: GroupSummary) -> dict[str, Any]:
    """Return the aggregates over tasks; those whose normalised scores are undefined are left out of them."""
    content: dict[str, Any] = {
        "tasks": group.tasks,
        "episodes": group.episodes,
        "success_rate": _interval(group.success),
    }
    for reference in REFERENCES:
        found = group.scores.get(reference)
        content[f"{reference}_normalized"] = None if found is None else _aggregates(found)
    return content


def _aggregates(found: Aggregates) -> dict[str, Any]:
    named: Mapping[str, Interval] = {
        "iqm": found.iqm,
        "median": found.median,
        "mean": found.mean,
        "optimality_gap": found.optimality_gap,
    }
    return {"tasks": found.tasks} | {name: _interval(value) for name, value in named.items()}


def _interval(value: Interval | None) -> dict[str, float] | None:
    if value is None:
        return None
    return {"value": _rounded(value.value), "low": _rounded(value.low), "high": _rounded(value.high)}


def _rounded(value: float) -> float:
    return float(f"{float(value):.{_DIGITS}g}")
