"""Command `jat-engine collect`: collect expert episodes as a dataset."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from ..collect.experts import EXPERT_TASKS
from ..envs import TASKS, Task, expand_tasks
from ..evaluation import main_reference, normalize, reference_words
from ..evaluation.random_policy import RANDOM_EPISODES
from .arguments import TaskArguments, find_current_folder, note, parse
from .tables import mean_std, number, print_table

if TYPE_CHECKING:
    from ..collect.task import Progress
    from ..collect.worker import Steps
    from ..datasets.collection import Collection


@dataclass(kw_only=True)
class CollectArguments:
    """Arguments of `jat-engine collect`."""

    tasks: list[str] = field(
        metadata={
            "help": "tasks, domains (atari babyai metaworld mujoco) or all; gym:<id> is an environment of Gymnasium. "
            "Without --expert, tasks that have none are left out"
        }
    )
    output_dir: str = field(
        metadata={"help": "folder of the dataset; finished tasks in it are kept, unfinished ones are resumed"}
    )
    expert: str | None = field(
        default=None,
        metadata={
            "help": "expert of all the tasks instead of this package's: module:function, called with the environment, "
            "returns an object with act(observation) or a function policy(observation) -> action; sb3:model.zip is a "
            "policy of Stable-Baselines3; random plays random actions"
        },
    )
    trust_expert: bool = field(
        default=False, metadata={"help": "allow sb3:model.zip, which runs pickled code of whoever wrote the file"}
    )
    num_episodes: int = field(default=100, metadata={"help": "episodes to store per task, both splits together"})
    seed: int = field(default=0, metadata={"help": "seed of the first attempt; attempt i of a task uses seed + i"})
    num_workers: int | None = field(default=None, metadata={"help": "number of processes; by default one per core"})
    noise: float = field(
        default=0.0,
        metadata={
            "help": "standard deviation of noise on continuous actions, or probability of a random discrete action, "
            "in episodes with odd seeds; the dataset always stores the expert's action"
        },
    )
    test_fraction: float = field(default=0.1, metadata={"help": "share of the episodes for the split `test`"})
    keep_failures: bool = field(default=False, metadata={"help": "also store episodes that do not succeed"})
    random_episodes: int = field(
        default=RANDOM_EPISODES,
        metadata={
            "help": "episodes of the random policy that measure the zero of normalised scores, for tasks that are not "
            "published"
        },
    )
    push_to_hub: bool = field(default=False, metadata={"help": "upload the dataset afterwards"})
    repo_id: str | None = field(default=None, metadata={"help": "dataset on the hub to upload to"})

    def check(self) -> None:
        """Check that flags that need each other are given together.

        Raises:
            ValueError: one is missing.
        """
        if self.push_to_hub and not self.repo_id:
            raise ValueError("--push_to_hub needs --repo_id owner/name")
        if self.repo_id and not self.push_to_hub:
            raise ValueError("--repo_id: expected --push_to_hub with it, got none; the dataset would not be uploaded")


def run(argv: Sequence[str]) -> int:
    """Run `jat-engine collect` and return its exit code."""
    arguments, choice = parse(
        "collect",
        "Collect expert episodes as a dataset in the published layout.",
        [CollectArguments, TaskArguments],
        argv,
    )
    arguments.check()
    find_current_folder()
    tasks: list[Task | str] = [*choice.find(arguments.tasks)] if arguments.expert else _with_experts(arguments, choice)
    from ..collect import collect

    if arguments.push_to_hub:
        from ..hub_account import check_upload

        check_upload(str(arguments.repo_id), repo_type="dataset")

    with _Bars() as bars:
        collected = collect(
            tasks,
            arguments.output_dir,
            num_episodes=arguments.num_episodes,
            expert=arguments.expert,
            trust_expert=arguments.trust_expert,
            seed=arguments.seed,
            num_workers=arguments.num_workers,
            noise=arguments.noise,
            test_fraction=arguments.test_fraction,
            keep_failures=arguments.keep_failures,
            random_episodes=arguments.random_episodes,
            on_progress=bars.show,
        )

    _print(list(collected.values()))
    folder = Path(arguments.output_dir)
    first = next(iter(collected.values())).as_task().folder_name
    note(f"wrote {folder}; load_dataset({str(folder)!r}, {first!r}) reads it")
    if arguments.push_to_hub:
        from ..datasets.hub import push_to_hub

        note(f"pushed to {push_to_hub(folder, arguments.repo_id)}")
    return 0


def _with_experts(arguments: CollectArguments, choice: TaskArguments) -> list[Task | str]:
    """Return the given names, after a note about the tasks of domains that have no expert of this package."""
    choice.load()
    domains = expand_tasks(name for name in arguments.tasks if name not in TASKS)
    if without := [name for name in domains if name in TASKS and name not in EXPERT_TASKS]:
        note(f"{len(without)} tasks have no expert and are left out: {', '.join(without)}")
    return list(arguments.tasks)


class _Bars:
    """Progress bars on a terminal's standard error: all episodes, and those of the task with the latest progress."""

    def __init__(self) -> None:
        self._all = tqdm(desc="collect", unit="episode", disable=None, position=0)
        self._task = tqdm(unit="episode", disable=None, position=1, leave=False)
        self._progress: dict[str, Progress] = {}
        self._steps: dict[str, int] = {}

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *_: object) -> None:
        self._task.close()
        self._all.close()

    def show(self, event: Progress | Steps | Collection) -> None:
        """Update the bars. This is the `on_progress` function of `collect`."""
        from ..collect.worker import Steps
        from ..datasets.collection import Collection

        if isinstance(event, Collection):
            tqdm.write(_sentence(event), file=sys.stderr)
            return
        if self._all.disable:
            return
        if isinstance(event, Steps):
            self._steps[event.task] = self._steps.get(event.task, 0) + event.count
        else:
            self._progress[event.task] = event
        self._all.total = sum(progress.num_episodes for progress in self._progress.values())
        self._all.n = sum(progress.episodes for progress in self._progress.values())
        self._all.set_postfix_str(f"{sum(self._steps.values()):,} steps", refresh=False)
        self._all.refresh()
        self._show_task(event.task)

    def _show_task(self, task: str) -> None:
        progress = self._progress[task]
        self._task.set_description(task, refresh=False)
        self._task.total, self._task.n = progress.num_episodes, progress.episodes
        words = [f"{self._steps.get(task, 0):,} steps"]
        if progress.episodes:
            words.append(f"return {number(progress.mean_return)}")
        if progress.success_rate is not None:
            words.append(f"success {progress.success_rate:.0%}")
        self._task.set_postfix_str(", ".join(words), refresh=False)
        self._task.refresh()


def _sentence(collection: Collection) -> str:
    return (
        f"{collection.task}: {collection.num_episodes} episodes, {collection.steps:,} steps, "
        f"return {mean_std(collection.returns)}, success {_success(collection)}, "
        f"normalised {_words(collection)} {_normalized(collection)}"
    )


def _success(collection: Collection) -> str:
    rate = collection.success_rate
    return "-" if rate is None else f"{rate:.1%} of {collection.attempts}"


def _normalized(collection: Collection) -> str:
    scores = normalize(collection.returns, collection.as_task())
    return "undefined" if scores is None else f"{float(np.mean(scores)):.3f}"


def _words(collection: Collection) -> str:
    task = collection.as_task()
    return reference_words(main_reference(task), [task])


def _print(collected: list[Collection]) -> None:
    columns = {
        "task": [c.task for c in collected],
        "train": [str(c.splits.count("train")) for c in collected],
        "test": [str(c.splits.count("test")) for c in collected],
        "steps": [f"{c.steps:,}" for c in collected],
        "return": [mean_std(c.returns) for c in collected],
        "success": [_success(c) for c in collected],
    }
    for words in dict.fromkeys(map(_words, collected)):
        columns[f"normalised {words}"] = [_normalized(c) if _words(c) == words else "-" for c in collected]
    print_table(
        f"{len(collected)} task{'s' if len(collected) > 1 else ''}",
        columns,
        left=["task"],
        optional=["success", "steps"],
    )
