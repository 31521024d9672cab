"""Result files of a run: `evaluations.json` in the published layout, and `results.json` with all details.

Both are made of the episodes alone, so that equal episodes give equal bytes. Values that statistics computes are
rounded to `_DIGITS` digits, since a processor may add numbers in another order. Wall times are in `timing.json`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic_io import write_json
from ..evaluation.scores import REFERENCES, reference_score, undefined_reason
from ..evaluation.statistics import Aggregates, Interval, aggregate, mean_interval, success_rate
from .records import Evaluation, TaskEpisodes

EVALUATIONS, RESULTS, TIMING = "evaluations.json", "results.json", "timing.json"
"""Names of the files."""

_DIGITS = 9


def evaluations(evaluation: Evaluation) -> dict[str, list[float]]:
    """Return the content of `evaluations.json`: task -> returns, in the order of the episodes."""
    return {name: task.returns.tolist() for name, task in evaluation.tasks.items() if task.finished}


def results(evaluation: Evaluation) -> dict[str, Any]:
    """Return the content of `results.json`."""
    tasks = evaluation.tasks
    return {
        "complete": evaluation.complete,
        "tasks": {name: _task(task) for name, task in tasks.items() if task.finished},
        "failed": {
            name: [{"episode": e.index, "seed": e.seed, "step": e.length, "error": e.error} for e in failed]
            for name, task in tasks.items()
            if (failed := [episode for episode in task.episodes if episode.failed])
        },
        "domains": {domain: _group(members) for domain, members in evaluation.domains().items()},
        "overall": _group(tasks.values()),
        "settings": dict(evaluation.settings),
    }


def write_results(folder: Path, evaluation: Evaluation) -> None:
    """Write both files atomically.

    Raises:
        OSError: they cannot be written.
    """
    write_json(folder / RESULTS, results(evaluation), indent=2)
    write_json(folder / EVALUATIONS, evaluations(evaluation))


def _task(task: TaskEpisodes) -> dict[str, Any]:
    """Return the part of `results.json` about one task."""
    row, episodes, returns = task.task, task.finished, task.returns
    summary: dict[str, Any] = {
        "domain": row.domain,
        "adapter": task.description.get("rule", {}).get("adapter"),
        "module": row.module,
        "versions": task.description.get("versions"),
        "complete": task.complete,
        "episodes": [episode.index for episode in episodes],
        "seeds": [episode.seed for episode in episodes],
        "returns": returns.tolist(),
        "lengths": [episode.length for episode in episodes],
        "capped": [episode.capped for episode in episodes],
        "success": None if task.successes is None else task.successes.tolist(),
        "lives": [episode.lives for episode in episodes],
        "digests": [episode.digest for episode in episodes],
        **_mean_std(returns),
        "mean_interval": _interval(mean_interval(returns)),
        "success_rate": None if task.successes is None else _interval(success_rate(task.successes)),
        "random_mean": row.random.mean if row.random else None,
    }
    for reference in REFERENCES:
        score = reference_score(row, reference)
        summary[f"{reference}_mean"] = score.mean if score else None
        scores, key = task.scores(reference), f"{reference}_normalized"
        summary[key] = None
        if scores is None:
            summary[f"{key}_reason"] = undefined_reason(row, reference)
        else:
            summary[key] = _mean_std(scores) | {"interval": _interval(mean_interval(scores))}
    return summary


def _group(members: Iterable[TaskEpisodes]) -> dict[str, Any]:
    """Return the aggregates over tasks; those whose normalised scores are undefined are left out of them."""
    members = [task for task in members if task.finished]
    summary: dict[str, Any] = {"tasks": len(members), "episodes": sum(len(task.finished) for task in members)}
    for reference in REFERENCES:
        scores = [task.scores(reference) for task in members]
        found = aggregate(one for one in scores if one is not None)
        summary[f"{reference}_normalized"] = None if found is None else _aggregates(found)
    return summary


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


def _mean_std(values: np.ndarray) -> dict[str, float]:
    return {"mean": _rounded(values.mean()), "std": _rounded(values.std())}


def _rounded(value: float) -> float:
    return float(f"{float(value):.{_DIGITS}g}")
