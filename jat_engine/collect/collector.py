"""`collect`: expert episodes of any tasks, as a folder that `datasets.load_dataset` reads."""

from __future__ import annotations

import contextlib
import json
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import __version__
from ..datasets.card import write_card
from ..datasets.collection import Collection
from ..envs import TASKS, Task, expand_tasks
from ..errors import DataError
from ..evaluation.environment import require_simulators
from ..machine import available_cores
from .chunks import ChunkFolder, check_settings
from .experts import EXPERT_TASKS, check_noise
from .task import INCOMPLETE, Progress, TooFewSuccessesError, Unfinished, restore_folder
from .worker import Steps
from .worker_pool import Players

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
    left as they are, also with a smaller `num_episodes`; with a larger one only the missing episodes are played.

    The processes that play are spawned: a script that calls this needs `if __name__ == "__main__":`.

    Args:
        tasks: names, domains or "all" (those that have an expert).
        output_dir: `output_dir/<task>/{train,test}-*.parquet`, a `collection.json` beside them, and a README.md that
            is made from all of these.
        num_episodes: per task, both splits together.
        seed: see above; also of the splits.
        num_workers: processes that play; None takes the cores there are.
        noise: of what is executed, see `jat_engine.collect.experts.demonstrate`; the expert's action is what is stored.
        test_fraction: of the episodes, at least one of two and more; 0 for no test split.
        keep_failures: store episodes that do not succeed, too.
        on_progress: called with what there is to tell: steps played, how far a task is, and finished tasks.

    Returns:
        Task -> what is stored of it.

    Raises:
        ValueError: an argument; a task without an expert; as `DataError`, what is in `output_dir` was collected with
            other arguments or versions; when all other tasks are finished, fewer than 1 in 20 attempts, and at least
            100, of a task succeeded.
        MissingSimulatorError: names what to install.
        ChildProcessError, RuntimeError: a process that plays was killed, or a simulator or expert failed or hangs.
    """
    names = _tasks_with_expert(tasks)
    _check(num_episodes=num_episodes, seed=seed, num_workers=num_workers, test_fraction=test_fraction)
    for name in names:
        check_noise(TASKS[name], noise)
    folder, tell = Path(output_dir), on_progress or (lambda _: None)
    plans = [
        _plan(
            folder, TASKS[name], num_episodes, test_fraction, episode_settings(TASKS[name], seed, noise, keep_failures)
        )
        for name in names
    ]
    pending = [plan for plan in plans if not plan.finished]
    require_simulators(plan.task.name for plan in pending)
    collected: dict[str, Collection] = {}
    for plan in plans:
        if plan.finished and plan.stored is not None:
            _tidy(folder, plan)
            collected[plan.task.name] = plan.stored
            tell(plan.stored)
    for plan in pending:
        tell(plan.progress())
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(_play(folder, pending, num_workers or available_cores(), tell)) as playing:
        for collection in playing:
            collected[collection.task] = collection
            tell(collection)
    return {name: collected[name] for name in names}


@dataclass(frozen=True)
class _Plan:
    """What is wanted of a task, and what there is of it."""

    task: Task
    num_episodes: int
    test_fraction: float
    settings: Mapping[str, Any]
    stored: Collection | None

    @property
    def finished(self) -> bool:
        wanted = (self.num_episodes, self.test_fraction)
        return self.stored is not None and (self.stored.num_episodes, self.stored.test_fraction) == wanted

    def progress(self) -> Progress:
        kept = self.stored.num_episodes if self.stored else 0
        return Progress(self.task.name, self.num_episodes, kept, kept, mean_return=math.nan, success_rate=None)

    def begin(self, folder: Path) -> Unfinished:
        return Unfinished(
            self.task,
            folder,
            num_episodes=self.num_episodes,
            test_fraction=self.test_fraction,
            settings=self.settings,
            stored=self.stored,
        )


def _plan(folder: Path, task: Task, num_episodes: int, test_fraction: float, settings: Mapping[str, Any]) -> _Plan:
    """Raises `DataError` if what there is of the task does not go with these settings."""
    path = folder / task.name
    restore_folder(path)
    stored = Collection.read(path)
    if stored is None and path.exists():
        raise DataError(f"{path}: exists, but was not written by `jat-engine collect`; move it away")
    if stored is not None and stored.num_episodes >= num_episodes:
        # Nothing is played, so that only the arguments have to agree, and not what plays.
        check_settings(stored.settings, {**settings, "versions": stored.settings["versions"]}, path)
        num_episodes, settings = stored.num_episodes, stored.settings
    elif stored is not None:
        check_settings(stored.settings, settings, path)
    begun = folder / INCOMPLETE / task.name / "settings.json"
    if begun.exists():
        check_settings(json.loads(begun.read_text(encoding="utf-8")), settings, begun.parent)
    return _Plan(task, num_episodes, test_fraction, settings, stored)


def _play(
    folder: Path, pending: list[_Plan], num_workers: int, tell: Callable[[Progress | Steps], None]
) -> Generator[Collection, None, None]:
    """Let players play what is missing, task after task; a player that finds nothing left to do begins the next.

    A task in which too few attempts succeed is given up, and raises its error when all others are finished.
    """
    waiting, players = deque(pending), Players(num_workers)
    unfinished: dict[str, Unfinished] = {}
    given_up: list[str] = []
    try:
        while waiting or unfinished:
            while players.idle():
                job = next(filter(None, (task.next_job(num_workers) for task in unfinished.values())), None)
                if job is not None:
                    players.give(job)
                elif waiting:
                    plan = waiting.popleft()
                    try:
                        task = unfinished[plan.task.name] = plan.begin(folder)
                    except TooFewSuccessesError as error:
                        given_up.append(str(error))
                    else:
                        tell(task.progress())
                else:
                    break
            for message in players.receive():
                if isinstance(message, Steps):
                    tell(message)
                elif message.job.task in unfinished:
                    task = unfinished[message.job.task]
                    try:
                        task.add(message.chunk)
                    except TooFewSuccessesError as error:
                        given_up.append(str(error))
                        unfinished.pop(task.name).close()
                    else:
                        tell(task.progress())
            for name in [name for name, task in unfinished.items() if task.ready]:
                yield _finish(folder, unfinished[name])
                del unfinished[name]
    finally:
        players.close()
        for task in unfinished.values():
            task.close()
    if given_up:
        less_noise = ", less --noise" if pending[0].settings["noise"] else ""
        raise TooFewSuccessesError(f"{'; '.join(given_up)}. Use --keep_failures{less_noise}, or leave out what fails")


def _finish(folder: Path, task: Unfinished) -> Collection:
    collection = task.finish()
    write_card(folder)
    task.remove()
    return collection


def _tidy(folder: Path, plan: _Plan) -> None:
    """Do what an interruption after the last episode left undone."""
    leftover = folder / INCOMPLETE / plan.task.name
    if leftover.exists():
        ChunkFolder(leftover, plan.settings).remove()
        write_card(folder)


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


def _check(*, num_episodes: int, seed: int, num_workers: int | None, test_fraction: float) -> None:
    if num_episodes < 1:
        raise ValueError(f"num_episodes: expected at least 1, got {num_episodes}")
    if seed < 0:
        raise ValueError(f"seed: expected at least 0, got {seed}")
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"num_workers: expected at least 1, got {num_workers}")
    if not 0 <= test_fraction < 1:
        raise ValueError(f"test_fraction: expected at least 0 and less than 1, got {test_fraction}")


def episode_settings(task: Task, seed: int, noise: float, keep_failures: bool) -> dict[str, Any]:
    """What an episode depends on, beside its number."""
    versions = {"jat_engine": __version__}
    for distribution in ("numpy", *_SIMULATORS[task.domain]):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[distribution] = metadata.version(distribution)
    return {"seed": seed, "noise": float(noise), "keep_failures": keep_failures, "versions": versions}
