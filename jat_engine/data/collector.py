"""`collect`: expert episodes of any tasks, as a folder that `datasets.load_dataset` reads."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from ..cli.environment import require_simulators
from ..envs import TASKS, expand_tasks
from ..errors import DataError
from ..experts import EXPERT_TASKS
from ..info import available_cores
from .card import write_card
from .chunks import check_settings
from .collection import Collection
from .player import Played, Steps
from .players import Players
from .unfinished import INCOMPLETE, Progress, Unfinished, restore_folder

_SIMULATORS = {
    "atari": ("gymnasium", "ale-py", "opencv-python", "opencv-python-headless"),
    "babyai": ("gymnasium", "minigrid"),
    "metaworld": ("gymnasium", "metaworld", "mujoco"),
    "mujoco": ("gymnasium", "mujoco"),
}
"""Distributions whose version can change an episode."""


def collect(
    tasks: Iterable[str],
    output_dir: str | Path,
    *,
    num_episodes: int,
    seed: int = 0,
    num_workers: int | None = None,
    noise: float = 0.0,
    test_fraction: float = 0.1,
    keep_failures: bool = False,
    on_progress: Callable[[Progress | Steps | Collection], None] | None = None,
) -> dict[str, Collection]:
    """Collect expert episodes of tasks.

    Attempt i of a task has seed `seed + i`. Stored are the first `num_episodes` that succeed (all of them, where a task
    has no notion of success). What is stored depends neither on `num_workers` nor on interruptions: what was played is
    kept in `output_dir/.incomplete` until a task is finished, and the same call goes on from there. Finished tasks are
    left as they are; with a larger `num_episodes` only the missing ones are played.

    The processes that play are spawned: a script that calls this needs `if __name__ == "__main__":`.

    Args:
        tasks: names, domains or "all" (those that have an expert).
        output_dir: `output_dir/<task>/{train,test}-*.parquet`, a `collection.json` beside them, and a README.md that
            is made from all of these.
        num_episodes: per task, both splits together.
        seed: see above; also of the splits.
        num_workers: processes that play; None takes the cores there are.
        noise: of what is executed, see `jat_engine.experts.demonstrate`; the expert's action is what is stored.
        test_fraction: of the episodes, at least one of two and more; 0 for no test split.
        keep_failures: store episodes that do not succeed, too.
        on_progress: called with what there is to tell: steps played, how far a task is, and finished tasks.

    Returns:
        Task -> what is stored of it.

    Raises:
        ValueError: an argument; a task without an expert; as `DataError`, what is in `output_dir` was collected with
            other arguments or versions, or fewer than 1 in 20 of 100 attempts or more succeeded.
        MissingSimulatorError: names what to install.
    """
    names = _tasks_with_expert(tasks)
    _check(num_episodes=num_episodes, seed=seed, num_workers=num_workers, noise=noise, test_fraction=test_fraction)
    folder = Path(output_dir)
    settings = {name: _settings(name, seed, noise, keep_failures) for name in names}
    stored = {name: _stored(folder, name, settings[name]) for name in names}
    wanted = {
        name: max(num_episodes, collection.num_episodes if collection else 0) for name, collection in stored.items()
    }
    finished: dict[str, Collection] = {}
    pending: list[str] = []
    for name, collection in stored.items():
        if collection is None:
            pending.append(name)
        elif wanted[name] > collection.num_episodes:
            check_settings(collection.settings, settings[name], folder / name)
            pending.append(name)
        elif collection.test_fraction != test_fraction:  # only divided anew: whatever versions played, still did
            settings[name] = collection.settings
            pending.append(name)
        else:
            finished[name] = collection
    require_simulators(pending)
    tell = on_progress or (lambda _: None)
    for collection in finished.values():
        tell(collection)
    for name in pending:
        collection = stored[name]
        kept = collection.num_episodes if collection else 0
        tell(Progress(name, wanted[name], kept, attempts=kept, mean_return=math.nan, success_rate=None))
    folder.mkdir(parents=True, exist_ok=True)

    players = Players(num_workers or available_cores())
    unfinished: dict[str, Unfinished] = {}

    def begin(name: str) -> Unfinished:
        unfinished[name] = Unfinished(
            TASKS[name],
            folder,
            num_episodes=wanted[name],
            test_fraction=test_fraction,
            settings=settings[name],
            stored=stored[name],
        )
        tell(unfinished[name].progress())
        return unfinished[name]

    def finish(task: Unfinished) -> None:
        name = task.task.name
        finished[name] = task.finish()
        del unfinished[name]
        write_card(folder)
        tell(finished[name])

    try:
        while pending or unfinished:
            while players.idle():
                job = next(filter(None, (task.next_job(players.count) for task in unfinished.values())), None)
                if job is not None:
                    players.give(job)
                elif pending:
                    task = begin(pending.pop(0))
                    if task.ready:
                        finish(task)
                else:
                    break
            if not players.busy():
                continue
            for message in players.receive():
                if isinstance(message, Played):
                    task = unfinished[message.job.task]
                    task.add(message.chunk)
                    tell(task.progress())
                    if task.ready:
                        finish(task)
                else:
                    tell(message)
    finally:
        players.close()
        for task in unfinished.values():
            task.close()
    return {name: finished[name] for name in names}


def _tasks_with_expert(tasks: Iterable[str]) -> list[str]:
    """Those of domains that have none are left out; those that are named must have one."""
    given = list(tasks)
    for name in given:
        if name in TASKS and name not in EXPERT_TASKS:
            others = ", ".join(sorted(task for task in EXPERT_TASKS if TASKS[task].domain == TASKS[name].domain))
            raise ValueError(f"tasks: {name} has no expert; those of its domain that have one: {others or 'none'}")
    names = [name for name in expand_tasks(given) if name in EXPERT_TASKS]
    if not names:
        raise ValueError(f"tasks: expected at least one task with an expert, got {', '.join(given) or 'none'}")
    return names


def _check(*, num_episodes: int, seed: int, num_workers: int | None, noise: float, test_fraction: float) -> None:
    if num_episodes < 1:
        raise ValueError(f"num_episodes: expected at least 1, got {num_episodes}")
    if seed < 0:
        raise ValueError(f"seed: expected at least 0, got {seed}")
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"num_workers: expected at least 1, got {num_workers}")
    if not (math.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise: expected a finite number of at least 0, got {noise}")
    if not 0 <= test_fraction < 1:
        raise ValueError(f"test_fraction: expected at least 0 and less than 1, got {test_fraction}")


def _settings(name: str, seed: int, noise: float, keep_failures: bool) -> dict[str, Any]:
    versions = {}
    for distribution in ("jat-engine", "numpy", *_SIMULATORS[TASKS[name].domain]):
        try:
            versions[distribution] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return {"seed": seed, "noise": float(noise), "keep_failures": keep_failures, "versions": versions}


def _stored(folder: Path, name: str, settings: Mapping[str, Any]) -> Collection | None:
    """What is there of a finished task; raises `DataError` unless it was collected with these arguments."""
    restore_folder(folder / name)
    collection = Collection.read(folder / name)
    if collection is not None:
        arguments = {key: value for key, value in settings.items() if key != "versions"}
        check_settings({key: collection.settings.get(key) for key in arguments}, arguments, folder / name)
    elif (folder / name).exists():
        raise DataError(f"{folder / name}: exists, but was not written by `jat-engine collect`; move it away")
    begun = folder / INCOMPLETE / name / "settings.json"
    if begun.exists():
        check_settings(json.loads(begun.read_text()), settings, begun.parent)
    return collection
