"""Scores of an evaluation: returns normalised by published returns, and their interquartile means (IQM).

A normalised score is `(return - random) / (reference - random)`: 0 is the mean return of the random policy, 1 that of
the reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import trim_mean

from ..envs import Task, get_task

Reference = Literal["expert", "human", "max"]

_CHUNK = 4_000_000
"""Largest number of scores in memory at once while resampling (32 MB)."""


def undefined_reason(task: Task | str, reference: Reference = "expert") -> str | None:
    """Return the reason why normalised scores of a task are undefined, or None if they are defined.

    Args:
        task: the task, or its name.
        reference: "expert" or "human"; with "max" it depends on the returns too, which are not considered here.

    Raises:
        UnknownTaskError: there is no such task.
        ValueError: there is no such reference.
    """
    task = get_task(task)
    if reference not in ("expert", "human", "max"):
        raise ValueError(f"reference: expected 'expert', 'human' or 'max', got {reference!r}")
    if task.random is None:
        return "undefined: no random score"
    if reference == "max":
        return None
    score = task.expert if reference == "expert" else task.human
    if score is None:
        return f"undefined: no {reference} score"
    if score.mean <= task.random.mean:
        return f"undefined: {reference} <= random"
    return None


def normalize(
    returns: Sequence[float] | np.ndarray, task: Task | str, reference: Reference = "expert"
) -> np.ndarray | None:
    """Return (return - random) / (reference - random) for each return, or None if it is undefined for the task.

    Args:
        returns: returns of episodes, [N].
        task: the task, or its name as in the published `normalize(values, env_id, strategy)`; its published returns
            are used.
        reference: "expert", "human", or "max" for the highest of `returns`.

    Returns:
        float64 [N].

    Raises:
        UnknownTaskError: there is no such task.
        ValueError: there is no such reference.

    Example:
        >>> from jat_engine.envs import get_task
        >>> task = get_task("atari-pong")
        >>> normalize([task.random.mean, task.expert.mean], task)
        array([0., 1.])
        >>> normalize([-20.7, 0.0], "atari-pong", "max")
        array([0., 1.])
    """
    task = get_task(task)
    if undefined_reason(task, reference) is not None:
        return None
    values = np.asarray(returns, np.float64)
    assert task.random is not None, "undefined_reason checks it"
    if reference == "max":
        highest = values.max(initial=-np.inf)
        return (values - task.random.mean) / (highest - task.random.mean) if highest > task.random.mean else None
    score = task.expert if reference == "expert" else task.human
    assert score is not None, "undefined_reason checks it"
    return (values - task.random.mean) / (score.mean - task.random.mean)


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
