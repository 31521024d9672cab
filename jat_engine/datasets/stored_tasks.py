"""Tasks of a dataset's folder: how its episodes define them, and whether they fit those of the registry."""

from __future__ import annotations

from pathlib import Path

from ..envs import TASKS, Task
from ..envs.kinds import usual_window
from ..envs.task import folder_name
from ..errors import DataError
from .collection import Collection, stored_task
from .schema import RL_COLUMNS, check_columns, kinds_of
from .shards import find_shards, open_shards


def task_of_folder(dataset: Path, name: str) -> Task | None:
    """Return a task as a folder of a dataset defines it: by its `collection.json`, or by the columns of its files.

    Args:
        dataset: folder of the dataset.
        name: of the task, or of its folder.

    Returns:
        The task, without a maker unless it is published; None if the dataset has no folder of it.

    Raises:
        DataError: the files are damaged, or have no columns of an RL task.
    """
    folder = dataset / folder_name(name)
    if not folder.is_dir():
        return None
    described = Collection.read(folder)
    if described is not None:
        return described.as_task()
    if name in TASKS:
        return TASKS[name]
    files = find_shards(folder, "train") or find_shards(folder, "test")
    if not files:
        return None
    names = open_shards(files)[0].types.names
    columns = check_columns([column for column in names if column in RL_COLUMNS], source=str(files[0]))
    observation, action = kinds_of(columns)
    rule = {"observation": observation, "action": action, "context_window": usual_window(observation)}
    return stored_task(name, rule, {})


def check_rule(task: Task, dataset: Path) -> Task:
    """Return a task with the scores that a dataset has of it, after checking that its episodes were stored by its rule.

    Args:
        task: of the registry.
        dataset: folder of the dataset.

    Raises:
        DataError: the episodes were stored with other observations or actions.
    """
    described = Collection.read(dataset / task.folder_name)
    if described is None:
        return task
    rule = described.task_rule or {}
    if (part := task.differs_from(rule)) is not None:
        stored = rule[part]
        remedy = f"give --adapter {stored}, or collect" if part == "observation" else "collect"
        raise DataError(
            f"{dataset / task.folder_name}: expected episodes of {task.name} with {part} {task.rule[part]}, got some "
            f"with {stored}; {remedy} the task again"
        )
    found = described.as_task()
    return task.with_scores(found.random, found.demonstrator)
