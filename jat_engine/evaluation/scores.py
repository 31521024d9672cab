"""Scores of an evaluation: returns normalised by published returns, and their interquartile means (IQM).

A normalised score is `(return - random) / (reference - random)`: 0 is the mean return of the random policy, 1 that of
the reference.
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
"""Largest number of scores in memory at once while resampling (32 MB)."""


def undefined_reason(task: Task, reference: Reference = "expert") -> str | None:
    """Return the reason why normalised scores of a task are undefined, or None if they are defined.

    Args:
        task: the task.
        reference: "expert" or "human".

    Raises:
        ValueError: there is no such reference.
    """
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
    """Return (return - random) / (reference - random) for each return, or None if it is undefined for the task.

    Args:
        returns: returns of episodes, [N].
        task: the task; its published returns are used.
        reference: "expert" or "human".

    Returns:
        float64 [N].

    Raises:
        ValueError: there is no such reference.

    Example:
        >>> task = TASKS["atari-pong"]
        >>> normalize([task.random.mean, task.expert.mean], task)
        array([0., 1.])
    """
    if undefined_reason(task, reference) is not None:
        return None
    score = task.expert if reference == "expert" else task.human
    assert task.random is not None, "undefined_reason checks it"
    assert score is not None, "undefined_reason checks it"
    return (np.asarray(returns, np.float64) - task.random.mean) / (score.mean - task.random.mean)


@dataclass(frozen=True)
class Interval:
    """Interquartile mean with its 95 % confidence interval."""

    value: float
    low: float
    high: float


def interquartile_mean(scores: Iterable[np.ndarray], *, resamples: int = 2000, seed: int = 0) -> Interval | None:
    """Return the mean of the middle half of all scores, with a stratified bootstrap interval.

    Args:
        scores: normalised scores, one array per task. Each task is resampled separately, with replacement; tasks may
            have different numbers of episodes.
        resamples: number of bootstrap repetitions.
        seed: seed of the resampling.

    Returns:
        The mean, and percentiles 2.5 and 97.5 of the resampled means; None if there are no scores. With one episode
        per task the interval has no width, since there is nothing to resample.
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
