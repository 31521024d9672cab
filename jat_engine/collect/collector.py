"""Collect expert episodes of any tasks in a folder that `datasets.load_dataset` reads."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import __version__
from ..atomic_io import naming
from ..datasets.card import check_card, write_card
from ..datasets.collection import Collection
from ..datasets.shards import open_split
from ..envs import TASKS, Task, find_tasks
from ..envs.build import check_maker
from ..envs.versions import task_versions
from ..errors import DataError
from ..evaluation.environment import require_simulators
from ..evaluation.random_policy import RANDOM_EPISODES
from ..machine import available_cores
from .chunks import ChunkFolder, begun_settings, check_settings
from .experts import EXPERT_TASKS, ExpertChoice, check_noise
from .task import INCOMPLETE, Progress, TaskProgress, TooFewSuccessesError, restore_folder
from .worker import Steps
from .worker_pool import WorkerPool


def collect(
    tasks: Iterable[str | Task],
    output_dir: str | Path,
    *,
    num_episodes: int,
    expert: str | None = None,
    trust_expert: bool = False,
    seed: int = 0,
    num_workers: int | None = None,
    noise: float = 0.0,
    test_fraction: float = 0.1,
    keep_failures: bool = False,
    random_episodes: int = RANDOM_EPISODES,
    on_progress: Callable[[Progress | Steps | Collection], None] | None = None,
) -> dict[str, Collection]:
    """Collect expert episodes of tasks.

    Attempt i of a task has seed `seed + i`. The first `num_episodes` attempts that succeed are stored, or the first of
    all if the task does not define success. The stored data depends neither on `num_workers` nor on interruptions:
    played episodes are kept in `output_dir/.incomplete` until a task is finished, and the same call continues from
    there. Finished tasks are left unchanged, also with a smaller `num_episodes`; with a larger one only the missing
    episodes are played.

    Worker processes are spawned: a script that calls this needs `if __name__ == "__main__":`.

    Args:
        tasks: tasks, names of tasks or domains, or "all" (every published task that has an expert of this package).
        output_dir: receives `<task>/{train,test}-*.parquet` and `<task>/collection.json` for each task, and a README.md
            about all of them.
        num_episodes: episodes per task, both splits together.
        expert: None for the experts of this package, which only published tasks have; or the expert of all the tasks:

            - "module:function". The function is called with the environment, once per worker, and returns an object
              with the methods of `jat_engine.collect.experts.Expert`, of which only `act(observation)` is required, or
              a function policy(observation) -> action. Observations are dicts of the keyword arguments of
              `get_next_action`; the environment's own last observation is
              `env.get_wrapper_attr("raw_observation")`, its state is at `env.unwrapped`.
            - "sb3:model.zip", a policy that Stable-Baselines3 saved (PPO, A2C, DQN, SAC, TD3, DDPG). It gets the
              environment's own observations. One that was trained with `VecNormalize` or stacked frames needs a
              function that converts them.
            - "random", uniform random actions.
        trust_expert: the file of Stable-Baselines3 may run the pickled code in it.
        seed: seed of attempt 0, and of the choice of splits.
        num_workers: processes that play; None takes the number of available cores.
        noise: disturbance of the executed actions, see `jat_engine.collect.experts.demonstrate`; the stored actions are
            the expert's own.
        test_fraction: share of the episodes in the test split, at least one of two or more; 0 for no test split.
        keep_failures: also store episodes that do not succeed.
        random_episodes: episodes of the random policy whose return is measured for each task that is not published,
            with seeds from 2,000,000; it is stored in `Collection.scores` with that of the expert. 0 for none.
        on_progress: called with `Steps` while episodes are played, with the `Progress` of a task after each chunk, and
            with the `Collection` of a finished task.

    Returns:
        Task -> description of its stored episodes.

    Raises:
        ValueError: an argument is wrong, or a task has no expert.
        ExpertError: the expert cannot be made or loaded, raises an error, or returns an action that is not one of the
            action space; the message has the seed and the step.
        OSError: `output_dir` cannot be written, or its disk is full. The same call continues once it can.
        DataError: `output_dir` has episodes that were collected with other arguments or versions, files that were
            changed since, or a README.md of something else; or another process is collecting the same task. Also, after
            all other tasks are finished, if fewer than 1 in 20 of at least 100 attempts of a task succeeded. Also for
            NaN in observations and rewards, and for an episode that does not end within 100,000 steps.
        TaskError: an environment cannot be made, here or in a worker process.
        MissingSimulatorError: names the package to install.
        ChildProcessError: a worker process was killed.
        RuntimeError: a simulator or an expert failed or hung.

    Example:
        >>> from jat_engine.collect import collect
        >>> stored = collect(["babyai-go-to-local", "mujoco-pendulum"], "data", num_episodes=100, num_workers=8)
        >>> stored["mujoco-pendulum"].num_episodes
        100
    """
    # Everything that can be refused is, before anything is played.
    choice = None if expert is None else ExpertChoice(expert, trust_expert)
    chosen = _tasks_with_expert(tasks) if choice is None else _expand(tasks)
    _check(
        num_episodes=num_episodes,
        seed=seed,
        num_workers=num_workers,
        test_fraction=test_fraction,
        random_episodes=random_episodes,
    )
    if choice is not None:
        choice.check()
    for task in chosen:
        check_noise(task, noise)
        check_maker(task)
    folder, tell = _output_folder(output_dir), on_progress or (lambda _: None)
    plans = [
        _plan(folder, task, num_episodes, test_fraction, episode_settings(task, seed, noise, keep_failures, choice))
        for task in chosen
    ]
    plans = [replace(plan, expert=choice, random_episodes=random_episodes) for plan in plans]
    pending = [plan for plan in plans if not plan.finished]
    require_simulators(plan.task for plan in pending)

    collected: dict[str, Collection] = {}
    for plan in plans:
        if plan.finished and plan.stored is not None:
            _tidy(folder, plan)
            collected[plan.task.name] = plan.stored
            tell(plan.stored)
    for plan in pending:
        tell(plan.progress())

    if pending:
        _prepare_folder(folder)
    with contextlib.closing(_play(folder, pending, num_workers or available_cores(), tell)) as playing:
        for collection in playing:
            collected[collection.task] = collection
            tell(collection)
    return {task.name: collected[task.name] for task in chosen}


def _output_folder(output_dir: str | Path) -> Path:
    """Return the folder of the dataset.

    Raises:
        ValueError: its name is empty, or something else is there.
    """
    folder = Path(output_dir)
    if not str(output_dir):
        raise ValueError("output_dir: expected the name of a folder, got ''; use . for the current one")
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        what = f"a link to {there.readlink()}, which is not there" if there.is_symlink() else "a file"
        raise ValueError(f"output_dir: expected a folder, got {there}, {what}; name another or move it away")
    check_card(folder)
    return folder


def _prepare_folder(folder: Path) -> None:
    """Create the folder of the dataset, and try to write there before episodes are played.

    Raises:
        OSError: it cannot be written.
    """
    with naming(folder, "name another folder with --output_dir"):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")


@dataclass(frozen=True)
class _Plan:
    """The episodes wanted of a task, and those stored already.

    Attributes:
        num_episodes, test_fraction, settings: as stored, where enough episodes are.
        stored: None if the task's folder does not exist.
        expert, random_episodes: as in `TaskProgress`.
    """

    task: Task
    num_episodes: int
    test_fraction: float
    settings: Mapping[str, Any]
    stored: Collection | None
    expert: ExpertChoice | None = None
    random_episodes: int = 0

    @property
    def finished(self) -> bool:
        wanted = (self.num_episodes, self.test_fraction)
        return self.stored is not None and (self.stored.num_episodes, self.stored.test_fraction) == wanted

    def progress(self) -> Progress:
        kept = self.stored.num_episodes if self.stored else 0
        return Progress(self.task.name, self.num_episodes, kept, kept, mean_return=math.nan, success_rate=None)

    def begin(self, folder: Path) -> TaskProgress:
        return TaskProgress(
            self.task,
            folder,
            num_episodes=self.num_episodes,
            test_fraction=self.test_fraction,
            settings=self.settings,
            stored=self.stored,
            expert=self.expert,
            random_episodes=self.random_episodes,
        )


def _plan(folder: Path, task: Task, num_episodes: int, test_fraction: float, settings: Mapping[str, Any]) -> _Plan:
    """Compare the arguments with the task's stored episodes, and with those of an interrupted collection.

    Raises:
        DataError: these were collected with other settings, or the folder was written by something else.
    """
    path = folder / task.folder_name
    restore_folder(path)
    stored = Collection.read(path)
    if stored is None and path.exists():
        raise DataError(f"{path}: exists, but was not written by `jat-engine collect`; move it away")
    if stored is not None and stored.imported is not None:
        raise DataError(
            f"{path}: expected episodes that were played here, got imported ones (from {stored.imported['source']}); "
            "name another --output_dir, or delete the folder"
        )

    if stored is not None and stored.num_episodes >= num_episodes:
        # Nothing will be played, so that the versions of simulators may differ.
        check_settings(stored.settings, {**settings, "versions": stored.settings["versions"]}, path)
        num_episodes, settings = stored.num_episodes, stored.settings
    elif stored is not None:
        check_settings(stored.settings, settings, path)

    plan = _Plan(task, num_episodes, test_fraction, settings, stored)
    if stored is not None:
        _check_stored(path, stored, contents=not plan.finished)

    unfinished = folder / INCOMPLETE / task.folder_name
    if (begun := begun_settings(unfinished)) is not None:
        check_settings(begun, settings, unfinished)
    return plan


def _check_stored(folder: Path, stored: Collection, *, contents: bool) -> None:
    """Check that the files of a finished task are there, and, if they will be copied, that they are unchanged.

    Raises:
        DataError: names the file.
    """
    try:
        for split in ("train", "test"):
            open_split(folder, split, stored)
        if contents:
            stored.check_contents(folder, [name for names in stored.files.values() for name in names])
    except DataError as error:
        raise DataError(f"{error}; or delete {folder} to collect the task again") from None


def _play(
    folder: Path, pending: list[_Plan], num_workers: int, tell: Callable[[Progress | Steps], None]
) -> Generator[Collection, None, None]:
    """Play the missing episodes of all tasks and yield each task's collection when it is finished.

    Workers take jobs of the first task that has any; if none has, the next task is begun.

    Raises:
        TooFewSuccessesError: tasks that were given up because of too few successes, after all others are finished.
    """
    waiting, workers = deque(pending), WorkerPool(num_workers)
    begun: dict[str, TaskProgress] = {}
    given_up: list[str] = []
    try:
        while waiting or begun:
            while workers.idle():
                job = next(filter(None, (task.next_job(num_workers) for task in begun.values())), None)
                if job is not None:
                    workers.give(job)
                elif waiting:
                    plan = waiting.popleft()
                    try:
                        task = begun[plan.task.name] = plan.begin(folder)
                    except TooFewSuccessesError as error:
                        given_up.append(str(error))
                    else:
                        tell(task.progress())
                else:
                    break

            for message in workers.receive():
                if isinstance(message, Steps):
                    tell(message)
                elif message.job.task.name in begun:
                    task = begun[message.job.task.name]
                    try:
                        if message.job.is_measurement:
                            task.add_measured(message.chunk)
                        else:
                            task.add(message.chunk)
                    except TooFewSuccessesError as error:
                        given_up.append(str(error))
                        begun.pop(task.name).close()
                    else:
                        tell(task.progress())

            for name in [name for name, task in begun.items() if task.ready]:
                yield _finish(folder, begun[name])
                del begun[name]
    finally:
        workers.close()
        for task in begun.values():
            task.close()

    if given_up:
        less_noise = ", less --noise" if pending[0].settings["noise"] else ""
        raise TooFewSuccessesError(f"{'; '.join(given_up)}. Use --keep_failures{less_noise}, or leave out what fails")


def _finish(folder: Path, task: TaskProgress) -> Collection:
    """Write a task's dataset and the data card; only then remove the task's chunks."""
    collection = task.finish()
    write_card(folder)
    task.remove()
    return collection


def _tidy(folder: Path, plan: _Plan) -> None:
    """Finish what an interruption after a task's last episode left undone: its chunks, and the card."""
    leftover = folder / INCOMPLETE / plan.task.folder_name
    if leftover.exists():
        ChunkFolder(leftover, plan.settings).remove()
        write_card(folder)


def _expand(tasks: Iterable[str | Task]) -> list[Task]:
    """Expand names to tasks, each once.

    Raises:
        ValueError: there is none.
    """
    found: dict[str, Task] = {}
    for one in tasks:
        for task in [one] if isinstance(one, Task) else find_tasks([one]):
            found[task.name] = task
    if not found:
        raise ValueError("tasks: expected at least one task, got none")
    return list(found.values())


def _tasks_with_expert(tasks: Iterable[str | Task]) -> list[Task]:
    """Expand names to tasks with an expert.

    Raises:
        ValueError: a task named itself has no expert, or no task is left. Tasks of a named domain that have none are
            left out.
    """
    given = list(tasks)
    chosen: dict[str, Task] = {}
    for one in given:
        for task in [one] if isinstance(one, Task) else find_tasks([one]):
            name = task.name
            if name in EXPERT_TASKS:
                chosen[name] = task
            elif not task.is_published:
                raise ValueError(
                    f"tasks: {name} has no expert of this package; give one with --expert module:function, "
                    "sb3:model.zip or random"
                )
            elif one in (name, task):
                others = ", ".join(sorted(other for other in EXPERT_TASKS if TASKS[other].domain == task.domain))
                raise ValueError(
                    f"tasks: {name} has no expert; those of its domain that have one: {others or 'none'}; or give one "
                    "with --expert"
                )
    if not chosen:
        shown = ", ".join(one.name if isinstance(one, Task) else one for one in given)
        raise ValueError(f"tasks: expected at least one task with an expert, got {shown or 'none'}")
    return list(chosen.values())


def _check(
    *, num_episodes: int, seed: int, num_workers: int | None, test_fraction: float, random_episodes: int
) -> None:
    if num_episodes < 1:
        raise ValueError(f"num_episodes: expected at least 1, got {num_episodes}")
    if seed < 0:
        raise ValueError(f"seed: expected at least 0, got {seed}")
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"num_workers: expected at least 1, got {num_workers}")
    if random_episodes < 0:
        raise ValueError(f"random_episodes: expected at least 0, got {random_episodes}")
    if not 0 <= test_fraction < 1:
        raise ValueError(f"test_fraction: expected at least 0 and less than 1, got {test_fraction}")


def episode_settings(
    task: Task, seed: int, noise: float, keep_failures: bool, expert: ExpertChoice | None = None
) -> dict[str, Any]:
    """Return everything that a task's attempts depend on, apart from their number.

    Args:
        task, seed, noise, keep_failures: as in `collect`.
        expert: a given expert; None for that of this package.

    Returns:
        JSON values: "seed", "noise", "keep_failures", and "versions", package -> version. With a given expert its
        address, "expert", and the SHA-256 of its file, "expert_sha256". For a task that is not published the rule of
        its observations and actions, and what counts as success.
    """
    experts = () if expert is None else (expert.module,)
    versions = {"jat_engine": __version__, **task_versions(task, *experts)}

    settings: dict[str, Any] = {"seed": seed, "noise": float(noise), "keep_failures": keep_failures}
    if expert is not None:
        settings |= expert.settings
    if not task.is_published:
        settings |= {name: task.rule[name] for name in ("observation", "action", "adapter")}
        settings["success"] = task.success
    return {**settings, "versions": versions}
