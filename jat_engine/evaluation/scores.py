"""From returns to scores: normalised by published returns, summed up as interquartile means.

A normalised score is `(return - random) / (reference - random)`: 0 plays like the random policy, 1 like the reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.stats import trim_mean

if TYPE_CHECKING:
    from ..envs import Task

Reference = Literal["expert", "human"]

_CHUNK = 4_000_000
"""Scores held at once while resampling (32 MB)."""


def undefined_reason(task: Task, reference: Reference = "expert") -> str | None:
    """Why normalised scores of `task` do not exist; None if they do."""
    if reference not in ("expert", "human"):
        raise ValueError(f"reference: expected 'expert' or 'human', got {reference!r}")
    score = task.expert if reference == "expert" else task.human
    if task.random is None:
        return "undefined: no random score"
    if score is None:
        return f"undefined: no {reference} score"
    if score.mean <= task.random.mean:
        return f"undefined: {reference} <= random"
    return None


def normalize(returns: Sequence[float] | np.ndarray, task: Task, reference: Reference = "expert") -> np.ndarray | None:
    """Normalised scores of `returns`, float64 of the same length; None where they are undefined."""
    if undefined_reason(task, reference) is not None:
        return None
    score = task.expert if reference == "expert" else task.human
    assert task.random is not None, "undefined_reason checks it"
    assert score is not None, "undefined_reason checks it"
    return (np.asarray(returns, np.float64) - task.random.mean) / (score.mean - task.random.mean)


@dataclass(frozen=True)
class Interval:
    """An interquartile mean and its 95 % interval."""

    value: float
    low: float
    high: float


def interquartile_mean(scores: Iterable[np.ndarray], *, resamples: int = 2000, seed: int = 0) -> Interval | None:
    """Mean of the middle half of all scores, with a stratified bootstrap interval (percentiles 2.5 and 97.5).

    Args:
        scores: normalised scores, one array per task. Each task is resampled by itself, with replacement; tasks may
            differ in their number of episodes.
        resamples: bootstrap repetitions.
        seed: of the resampling.

    Returns:
        None without any score. With one episode a task the interval has no width: there is nothing to resample.
    """
    tasks = [np.asarray(task, np.float64) for task in scores]
    tasks = [task for task in tasks if task.size]
    if not tasks:
        return None
    rng = np.random.default_rng(seed)
    total = sum(task.size for task in tasks)
    estimates: list[float] = []
    while len(estimates) < resamples:
        rows = min(resamples - len(estimates), max(1, _CHUNK // total))
        drawn = [task[rng.integers(task.size, size=(rows, task.size))] for task in tasks]
        estimates.extend(trim_mean(np.concatenate(drawn, axis=1), 0.25, axis=1))
    low, high = np.percentile(estimates, [2.5, 97.5])
    return Interval(float(trim_mean(np.concatenate(tasks), 0.25)), float(low), float(high))
