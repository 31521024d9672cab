"""Scores of an evaluation: returns normalised by those of a random policy and of a reference.

A normalised score is `(return - random) / (reference - random)`: 0 is the mean return of the random policy, 1 that of
the reference. The reference is always named, since an agent may have 1.0 by one and 2.1 by another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from ..envs import Score, Task, get_task

Reference = Literal["expert", "demonstrator", "human", "max"]

REFERENCES: tuple[Reference, ...] = ("expert", "demonstrator", "human")
"""References of reports, in the order of their columns."""


def main_reference(task: Task) -> Reference:
    """Return the reference of a task's scores where one is shown: the expert, or without one the demonstrator.

    Published tasks have an expert, tasks of your own the demonstrator that was measured with their demonstrations,
    unless they were registered with an expert.
    """
    return "expert" if task.is_published or task.expert is not None else "demonstrator"


def reference_words(reference: Reference, tasks: Iterable[Task] = ()) -> str:
    """Return the words that follow "normalised".

    Args:
        reference: reference of the scores.
        tasks: that are scored; only published ones have "the published expert".

    Example:
        >>> [reference_words(reference) for reference in REFERENCES]
        ['by the published expert', 'by its demonstrator', 'by humans']
    """
    if reference != "expert":
        words: dict[Reference, str] = {
            "demonstrator": "by its demonstrator",
            "human": "by humans",
            "max": "by the highest return",
        }
        return words[reference]
    published = {task.is_published for task in tasks}
    if published <= {True}:
        return "by the published expert"
    return "by the expert" if True in published else "by its expert"


def reference_score(task: Task, reference: Reference) -> Score | None:
    """Return the return that is 1 of a task's normalised scores; None if it is not known.

    Args:
        task: the task.
        reference: "expert", "demonstrator" or "human".

    Raises:
        ValueError: there is no such reference.
    """
    if reference not in REFERENCES:
        raise ValueError(f"reference: expected {', '.join(map(repr, REFERENCES))} or 'max', got {reference!r}")
    scores = {"expert": task.expert, "demonstrator": task.demonstrator, "human": task.human}
    return scores[reference]


def undefined_reason(task: Task | str, reference: Reference | None = None) -> str | None:
    """Return the reason why normalised scores of a task are undefined, or None if they are defined.

    Args:
        task: the task, or its name.
        reference: "expert", "demonstrator" or "human"; None for `main_reference`. With "max" it depends on the returns
            too, which are not considered here.

    Raises:
        UnknownTaskError: there is no such task.
        ValueError: there is no such reference.
    """
    task = get_task(task)
    reference = reference or main_reference(task)
    score = None if reference == "max" else reference_score(task, reference)
    if task.random is None:
        return "undefined: no random score"
    if reference == "max":
        return None
    if score is None:
        return f"undefined: no {reference} score"
    if score.mean <= task.random.mean:
        return f"undefined: {reference} <= random"
    return None


def normalize(
    returns: Sequence[float] | np.ndarray, task: Task | str, reference: Reference | None = None
) -> np.ndarray | None:
    """Return (return - random) / (reference - random) for each return, or None if it is undefined for the task.

    Args:
        returns: returns of episodes, [N].
        task: the task, or its name as in the published `normalize(values, env_id, strategy)`; its published returns
            are used.
        reference: "expert", "demonstrator", "human", or "max" for the highest of `returns`; None for `main_reference`.

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
    reference = reference or main_reference(task)
    if undefined_reason(task, reference) is not None:
        return None
    values = np.asarray(returns, np.float64)
    assert task.random is not None, "undefined_reason checks it"
    if reference == "max":
        highest = float(values.max(initial=-np.inf))
    else:
        score = reference_score(task, reference)
        assert score is not None, "undefined_reason checks it"
        highest = score.mean
    return (values - task.random.mean) / (highest - task.random.mean) if highest > task.random.mean else None
