"""Parts of runs for tests: episodes that are made up, runs of them, and a process without root's rights."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from helpers import ROOT
from jat_engine.envs import TASKS, Task
from jat_engine.runs.database import RunDatabase
from jat_engine.runs.play import Finished
from jat_engine.runs.records import Episode, Evaluation, TaskEpisodes, sort_tasks
from jat_engine.runs.slots import Ended

NOBODY = 65534


def episode(task: str, index: int, return_: float | None, **values: Any) -> Episode:
    """Return an episode of 10 steps with the seed 100 + index; one without a return has failed."""
    defaults: dict[str, Any] = {"length": 10, "error": "" if return_ is not None else "RuntimeError: diverged"}
    return Episode(task, index, 100 + index, return_, **(defaults | values))


def finished(one: Episode, **values: Any) -> Finished:
    """Return the report of an episode."""
    defaults: dict[str, Any] = {"trace": "Traceback ..." if one.failed else ""}
    return Finished(Ended(0, one, **(defaults | values)), "this process")


def evaluation(
    returns: Mapping[str, Sequence[float | None]], tasks: Mapping[str, Task] = TASKS, **settings: Any
) -> Evaluation:
    """Return an evaluation with these returns, all of which were planned; None is an episode that failed."""
    return Evaluation(
        {"deterministic": False, "seed": 100} | settings,
        {
            name: TaskEpisodes(
                tasks[name],
                len(returns[name]),
                tuple(episode(name, index, value) for index, value in enumerate(returns[name])),
            )
            for name in sort_tasks(returns)
        },
    )


def make_run(folder: Path, made: Evaluation) -> Path:
    """Write an evaluation into the database of a folder, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [one.task for one in made.tasks.values()]
    planned = {name: one.planned for name, one in made.tasks.items()}
    with contextlib.closing(RunDatabase(folder, create=True)) as database:
        database.set_settings(made.settings)
        database.add_tasks(tasks, planned, {task.name: {"numpy": "2"} for task in tasks})
        database.add([finished(one) for task in made.tasks.values() for one in task.episodes])
    return folder


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Let this process read a folder and its files and not write them, also where it is root's, in the `with` block.

    It can still read the checkout, also where that is in a folder of root alone.
    """
    is_root = os.getuid() == 0
    paths = [folder, *folder.iterdir()]
    places = {*folder.parents, ROOT, *ROOT.parents}
    parents = [place for place in places if is_root and not place.stat().st_mode & 0o001]
    before = [(path, path.stat().st_mode) for path in (*paths, *parents)]
    for parent in parents:
        parent.chmod(0o755)
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    if is_root:
        os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        if is_root:
            os.setresuid(0, 0, 0)
        for path, mode in before:
            if path.exists():
                path.chmod(mode)
