"""Scores of an evaluation: returns normalised by those of a random policy and of a reference.

A normalised score is `(return - random) / (reference - random)`: 0 is the mean return of the random policy, 1 that of
the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from ..envs import Task, get_task

Reference = Literal["expert", "human", "max"]


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
