"""Evaluations made by hand, without playing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from jat_engine.envs import Task, get_task
from jat_engine.runs.records import Episode, Evaluation, TaskEpisodes, sort_tasks

SETTINGS = {"seed": 1_000_000, "deterministic": False, "max_steps": None}


def episodes_of(
    task: Task, returns: Sequence[float], successes: Sequence[bool] | None = None, seed: int = 1_000_000
) -> TaskEpisodes:
    """Return the episodes of a task with these returns, which have seeds from `seed`; equal ones have equal digests."""
    episodes = tuple(
        Episode(
            task.name,
            index,
            seed + index,
            float(value),
            length=10,
            success=None if successes is None else bool(successes[index]),
            digest=hashlib.sha256(f"{task.name} {seed + index} {value}".encode()).hexdigest(),
        )
        for index, value in enumerate(returns)
    )
    return TaskEpisodes(task, len(episodes), episodes)


def evaluation_of(tasks: Iterable[TaskEpisodes], settings: Mapping[str, object] = SETTINGS) -> Evaluation:
    """Return the evaluation of some tasks, in the order of all evaluations."""
    by_name = {task.task.name: task for task in tasks}
    return Evaluation(settings, {name: by_name[name] for name in sort_tasks(by_name)})


def sample_evaluation(names: Iterable[str], num_episodes: int, *, seed: int = 0, level: float = 0.8) -> Evaluation:
    """Return an evaluation of published tasks with random returns near `level` of the published experts' scores."""
    rng, tasks = np.random.default_rng(seed), []
    for name in names:
        task = get_task(name)
        assert task.random is not None
        assert task.expert is not None
        scale = task.expert.mean - task.random.mean
        share = level * rng.uniform(0.2, 1.2) + rng.normal(0, 0.2, num_episodes)
        successes = None if task.success is None else rng.uniform(size=num_episodes) < level
        tasks.append(episodes_of(task, task.random.mean + share * scale, successes))
    return evaluation_of(tasks)
