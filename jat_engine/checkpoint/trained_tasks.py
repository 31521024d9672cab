"""The tasks that a checkpoint was trained on, in its `tasks.json`: how they are played, their scores and seeds."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..atomic_io import write_json
from ..checkpoint_files import find_file, read_json, resolve
from ..envs import Score, Task
from ..errors import CheckpointError, TaskError

FILE_NAME = "tasks.json"


@dataclass(frozen=True)
class TrainedTask:
    """Task of a training.

    Attributes:
        name: of the task.
        rule: `Task.rule`; of published tasks too.
        random: return of the random policy that was measured with the demonstrations; None for published tasks, which
            have their own, and where it was not measured.
        demonstrator: return of the policy that the demonstrations show; None where it is not known.
        seeds: first and last seed of each run of demonstrations.
        is_earlier: True if it was trained before the last training, which may have made it worse.
    """

    name: str
    rule: Mapping[str, Any]
    random: Score | None = None
    demonstrator: Score | None = None
    seeds: tuple[tuple[int, int], ...] = ()
    is_earlier: bool = False

    def apply(self, task: Task) -> Task:
        """Return the task with the measured scores, after checking that it is the one that was trained.

        Raises:
            TaskError: its observations or actions are converted by another rule than in training.
        """
        part, kind = task.differs_from(self.rule), self.rule.get("observation")
        if part is not None:
            remedy = (
                f"--adapter {kind} converts to {kind}"
                if part == "observation"
                else "an environment of other spaces is another task; register it under another name"
            )
            raise TaskError(
                f"{task.name}: expected {part} {self.rule[part]}, as the checkpoint was trained with, got "
                f"{task.rule[part]}; {remedy}"
            )
        return task.with_scores(self.random, self.demonstrator)

    @property
    def remedy(self) -> str:
        """Advice for where no task of this name is known."""
        if module := self.rule.get("module"):
            return f"the checkpoint was trained with --task_module {module}"
        return (
            "the checkpoint was trained on it, but has no environment of it; register one with register_task, in a "
            "module that --task_module names"
        )

    def overlaps(self, first: int, last: int) -> bool:
        """Return True if an episode with one of the seeds `first` to `last` began as a demonstration."""
        return any(low <= last and first <= high for low, high in self.seeds)


def find_trained_tasks(source: str | os.PathLike[str], hub: Mapping[str, Any] | None = None) -> Path | None:
    """Return the path of a checkpoint's `tasks.json`; None if it has none. Arguments: see `read_trained_tasks`."""
    return find_file(resolve(source), FILE_NAME, dict(hub or {}), required=False)


def read_trained_tasks(source: str | os.PathLike[str], hub: Mapping[str, Any] | None = None) -> list[TrainedTask]:
    """Read the tasks of a checkpoint; an empty list if it does not say.

    Args:
        source: a folder, a repository id on the hub, or "jat-mini".
        hub: options for finding files, such as `cache_dir`.

    Raises:
        CheckpointError: `tasks.json` is malformed.
    """
    path = find_trained_tasks(source, hub)
    if path is None:
        return []
    try:
        return from_json(read_json(path))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{path}: expected the tasks of a training, got {type(error).__name__}: {error}; copy the checkpoint again"
        ) from None


def from_json(values: Any) -> list[TrainedTask]:
    """Return the tasks of the content of a `tasks.json`.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: it is malformed.
    """
    return [_task(entry) for entry in values["tasks"]]


def _task(entry: Mapping[str, Any]) -> TrainedTask:
    seeds = tuple((int(first), int(last)) for first, last in entry.get("seeds", ()))
    return TrainedTask(
        str(entry["name"]),
        dict(entry["rule"]),
        Score.from_json(entry.get("random")),
        Score.from_json(entry.get("demonstrator", entry.get("expert"))),  # "expert" in files of earlier versions
        seeds,
        bool(entry.get("is_earlier", False)),
    )


def as_trained(task: Task, trained: Iterable[TrainedTask]) -> Task:
    """Return a task as a checkpoint was trained on it, see `TrainedTask.apply`; another task unchanged.

    Args:
        task: the task.
        trained: tasks of the checkpoint.

    Raises:
        TaskError: the checkpoint was trained on another environment of this name.
    """
    return next((known.apply(task) for known in trained if known.name == task.name), task)


def to_json(tasks: Iterable[TrainedTask]) -> list[dict[str, Any]]:
    """Return tasks as JSON values."""
    return [
        {
            "name": task.name,
            "rule": dict(task.rule),
            **{
                key: asdict(score)
                for key, score in (("random", task.random), ("demonstrator", task.demonstrator))
                if score is not None
            },
            "seeds": [list(pair) for pair in task.seeds],
            "is_earlier": task.is_earlier,
        }
        for task in tasks
    ]


def write_trained_tasks(folder: Path, tasks: Sequence[Mapping[str, Any]]) -> None:
    """Write `tasks.json` into a checkpoint's folder, atomically.

    Args:
        folder: of the checkpoint.
        tasks: the return value of `to_json`.
    """
    write_json(folder / FILE_NAME, {"tasks": list(tasks)}, indent=1)


def join_earlier(tasks: Iterable[TrainedTask], earlier: Iterable[TrainedTask]) -> list[TrainedTask]:
    """Return the tasks of a training, and those that its first weights were trained on, marked as earlier.

    A task of both has the seeds of both, and the earlier demonstrator if the new one is not known.
    """
    joined = {task.name: task for task in tasks}
    for task in earlier:
        if task.name in joined:
            now = joined[task.name]
            seeds = tuple(dict.fromkeys((*task.seeds, *now.seeds)))
            joined[task.name] = replace(now, seeds=seeds, demonstrator=now.demonstrator or task.demonstrator)
        else:
            joined[task.name] = replace(task, is_earlier=True)
    return list(joined.values())


def seed_runs(seeds: Iterable[int]) -> list[tuple[int, int]]:
    """Return the first and the last seed of each run of demonstrations.

    A gap is within a run up to `_LONGEST_GAP`: attempts that failed leave many, and are not stored.

    Args:
        seeds: of the demonstrations, in any order.
    """
    runs: list[tuple[int, int]] = []
    for seed in sorted(seeds):
        if runs and seed - runs[-1][1] <= _LONGEST_GAP:
            runs[-1] = runs[-1][0], seed
        else:
            runs.append((seed, seed))
    return runs


_LONGEST_GAP = 1000


def trained_task(
    task: Task, seeds: Iterable[tuple[int, int]] = (), stored_rule: Mapping[str, Any] | None = None
) -> TrainedTask:
    """Return the entry of a task for the checkpoint of its training.

    Args:
        task: the task.
        seeds: first and last seed of each run of its demonstrations.
        stored_rule: by which the demonstrations were stored. A task that is known by them alone has no adapter.
    """
    rule = task.rule | {key: value for key, value in (stored_rule or {}).items() if value is not None}
    random = None if task.is_published else task.random
    return TrainedTask(task.name, rule, random, task.demonstrator, tuple(seeds))
