"""Arguments for the training data of `jat-engine train`, and the data that they name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from tqdm import tqdm

from ..checkpoint.trained_tasks import TrainedTask, join_earlier, read_trained_tasks, seed_runs, trained_task
from ..envs import MissingSimulatorError, Task, UnknownTaskError, expand_tasks
from ..envs.task import folder_name
from ..training import recipe
from ..training.arguments import JatTrainingArguments
from ..training.play import metric_names
from .arguments import TaskArguments, note


@dataclass(kw_only=True)
class DataArguments:
    """Arguments for the training data."""

    tasks: list[str] = field(
        metadata={
            "help": "tasks, gym:<id>, domains, all, text datasets, or names of folders with episodes in the dataset"
        }
    )
    dataset: str = field(
        default="jat-project/jat-dataset",
        metadata={"help": "a folder that `jat-engine collect` wrote, or a dataset on the hub"},
    )
    loss_weights: list[str] = field(
        default_factory=list,
        metadata={
            "metavar": "NAME=X",
            "help": "factor of the loss of a task or domain, instead of the published one (mostly 1; Meta-World 50, "
            "MuJoCo 10 to 50): a larger one lets a task count more against others with larger losses",
        },
    )
    sampling_weights: list[str] = field(
        default_factory=list,
        metadata={
            "metavar": "NAME=X",
            "help": "how often batches of a task or domain are drawn relative to others, instead of the published "
            "weight (1; texts 10): 3 draws three times as many, and begins again with data that run out",
        },
    )
    batch_sizes: list[str] = field(
        default_factory=list,
        metadata={
            "metavar": "NAME=N",
            "help": "segments per batch of a task or domain, instead of --per_device_train_batch_size",
        },
    )
    action_shuffle: float = field(
        default=0.0,
        metadata={
            "help": "share of input actions replaced by those of other steps, so that the model does not copy them"
        },
    )
    eval_num_samples: int | None = field(
        default=None, metadata={"help": "number of test segments per task to evaluate; by default all"}
    )
    streaming: bool = field(
        default=False, metadata={"help": "read data during training instead of preparing it on disk; needs --max_steps"}
    )

    def __post_init__(self) -> None:
        self.dataset = os.path.expanduser(self.dataset)  # noqa: PTH111  # may be a name on the hub; a shell keeps =~

    def check(self, arguments: JatTrainingArguments) -> None:
        """Check the values, and that they go with those of the training.

        Raises:
            ValueError: a value is out of range, or has no effect; the message names the flag.
        """
        if not 0 <= self.action_shuffle <= 1:
            raise ValueError(f"--action_shuffle: expected a share in [0, 1], got {self.action_shuffle}")
        if self.eval_num_samples is not None and self.eval_num_samples < 1:
            raise ValueError(f"--eval_num_samples: expected at least 1, got {self.eval_num_samples}")
        if self.eval_num_samples is not None and arguments.eval_strategy == "no":
            raise ValueError("--eval_num_samples: expected --eval_strategy steps or epoch with it, got no")
        if self.streaming and arguments.max_steps <= 0:
            raise ValueError("--streaming: expected --max_steps, since a stream has no end, got none")
        if self.streaming and arguments.eval_strategy != "no" and not arguments.eval_episodes:
            raise ValueError(
                "--streaming: expected --eval_strategy no, got another; evaluate without --streaming, or by playing, "
                "with --eval_episodes"
            )
        if self.streaming and arguments.train_sampling_strategy != "random":
            raise ValueError("--streaming: expected --train_sampling_strategy random, got another; lengths are unknown")

    def settings(self, arguments: JatTrainingArguments) -> dict[str, Any]:
        """Return the values that change a run, by flag; those of a task are in `Recipe`."""
        kept: dict[str, Any] = {"action_shuffle": self.action_shuffle, "streaming": self.streaming}
        if self.streaming:  # each worker reads its own rows
            kept["dataloader_num_workers"] = arguments.dataloader_num_workers
        return kept


@dataclass(frozen=True)
class Recipe:
    """Weights and batch sizes by task.

    Attributes:
        loss_weights: of the tasks for which the command line gives one.
        sampling_weights: of all tasks.
        batch_sizes: of the tasks for which the command line gives one.
    """

    loss_weights: dict[str, float]
    sampling_weights: dict[str, float]
    batch_sizes: dict[str, int]

    @classmethod
    def of(cls, data: DataArguments, tasks: recipe.Chosen) -> Recipe:
        """Return the weights and batch sizes of the command line, and the published ones.

        Raises:
            ValueError: a value is malformed, or names a task that is not trained.
        """
        sampling_weights = {name: recipe.sampling_weight(task) for name, task in tasks.items()}
        return cls(
            recipe.overrides("--loss_weights", data.loss_weights, tasks, float),
            sampling_weights | recipe.overrides("--sampling_weights", data.sampling_weights, tasks, float),
            recipe.overrides("--batch_sizes", data.batch_sizes, tasks, int),
        )


def describe(train: Any, sampler: Any) -> str:
    """Return a description of the training data, for people.

    Args:
        train: the dataset or stream.
        sampler: the sampler of a dataset; None for a stream.
    """
    if sampler is None:
        return f"{len(train.tasks)} task(s), read as they are needed"
    steps = sum(segments.num_steps for segments in train.tasks)
    segments = f"{len(train)} segments, {steps} steps or tokens"
    return f"{len(train.tasks)} task(s), {segments}; an epoch is {len(sampler)} batches"


def collected_tasks(data: DataArguments, choice: TaskArguments) -> dict[str, Task | None]:
    """Return the tasks to train on by name; None for text datasets.

    A task that is not registered, or whose environment cannot be made here, is the one that the dataset defines: its
    episodes are enough to train. Domain names and "all" stand for those of their tasks that a local dataset contains.
    Tasks that are named are kept in any case.

    Raises:
        ValueError: the dataset contains none of the tasks, or has episodes of a task that were stored by another rule.
    """
    from ..datasets.stored_tasks import check_rule, task_of_folder

    folder = Path(data.dataset)
    absent: dict[str, None] = {}

    def find_member(name: str) -> list[Task]:
        try:
            return [check_rule(task, folder) for task in choice.find_some(name)]
        except (UnknownTaskError, MissingSimulatorError):
            stored = task_of_folder(folder, name)
            if stored is None:
                raise
            return [stored]

    def find(name: str) -> list[Task]:
        choice.load()
        try:
            members = expand_tasks([name])
        except UnknownTaskError:
            return find_member(name)
        if name not in members and folder.is_dir():  # of a domain no environment is made that is not needed
            lacking = [member for member in members if not (folder / folder_name(member)).is_dir()]
            absent.update(dict.fromkeys(member for member in lacking if member not in data.tasks))
            members = [member for member in members if member not in lacking]
        return [task for member in members for task in find_member(member)]

    tasks = recipe.choose(data.tasks, find)
    if not tasks:
        raise ValueError(f"--tasks {' '.join(data.tasks)}: expected tasks that {folder} has, got none of them")
    choice.check_adapter(tasks.values())
    if absent:
        names = list(absent)
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        note(f"{folder} does not have {shown}")
    return tasks


def load_segments(
    data: DataArguments,
    tasks: recipe.Chosen,
    model: Any,
    processor: Any,
    loss_weights: dict[str, float],
    cache_dir: str | None,
    arguments: JatTrainingArguments,
) -> tuple[Any, dict[str, Any]]:
    """Prepare the segments of all tasks on disk, and open them as datasets.

    Args:
        data: arguments for the training data.
        tasks: the tasks by name.
        model: the model to train.
        processor: its processor.
        loss_weights: of the tasks for which the command line gives one.
        cache_dir: folder for downloads and prepared data.
        arguments: arguments of the training.

    Returns:
        The training dataset of all tasks, and the test dataset of each task, if the training is to evaluate.

    Raises:
        ValueError: a task has no split "train", or what is to be evaluated does not exist.
    """
    from ..datasets.sources import Source, open_source
    from ..training.dataset import Segments, TaskDataset
    from ..training.prepare import prepare
    from ..training.segments import SegmentSettings

    root = Path(cache_dir or constants.HF_HOME) / "jat_engine" / "pieces"
    splits = ["train", "test"] if arguments.eval_strategy != "no" else ["train"]
    sources: dict[tuple[str, str], Source] = {}
    for name, task in tasks.items():
        for split in splits:
            source = open_source(data.dataset, folder_of(name, task), split, task=task, cache_dir=cache_dir)
            if source is not None:
                sources[name, split] = source
            elif split == "train":
                raise ValueError(f"--dataset {data.dataset}: {name}: expected a split train, got none")
            else:
                note(f"{name}: no test split; it is not evaluated")
    if arguments.eval_strategy != "no":
        check_evaluation([name for name, split in sources if split == "test"], tasks, data, arguments)

    segments: dict[str, dict[str, Segments]] = {split: {} for split in splits}
    with tqdm(desc="preparing", unit="episode", disable=None, leave=False) as bar:
        for (name, split), source in sources.items():
            bar.set_description(f"preparing {name}", refresh=False)
            task = tasks[name]
            length = recipe.segment_length(task, model.config)
            settings = SegmentSettings.of(name, split, length, model.config, processor)
            folder = prepare(source, settings, processor, root, bar.update, task)
            segments[split][name] = Segments(
                folder,
                name,
                loss_weight=loss_weights.get(name, recipe.loss_weight(task)),
                own_weight=name not in loss_weights,
                limit=data.eval_num_samples if split == "test" else None,
                image_processor=processor.image_processor,
            )

    test = {name: TaskDataset([found]) for name, found in segments.get("test", {}).items()}
    return TaskDataset(segments["train"].values()), test


def open_stream(
    data: DataArguments,
    tasks: recipe.Chosen,
    model: Any,
    processor: Any,
    options: Recipe,
    cache_dir: str | None,
    arguments: JatTrainingArguments,
) -> Any:
    """Return an endless stream of batches, each of one task.

    Args:
        data: arguments for the training data.
        tasks: the tasks by name.
        model: the model to train.
        processor: its processor.
        options: weights and batch sizes by task.
        cache_dir: folder for downloads.
        arguments: arguments of the training.

    Raises:
        ValueError: a task has no split "train".
    """
    from ..datasets.sources import open_source
    from ..training.segments import SegmentSettings
    from ..training.stream import StreamedTask, TaskStream

    streamed = []
    for name, task in tasks.items():
        source = open_source(
            data.dataset, folder_of(name, task), "train", task=task, cache_dir=cache_dir, streaming=True
        )
        if source is None:
            raise ValueError(f"--dataset {data.dataset}: {name}: expected a split train, got none")

        length = recipe.segment_length(task, model.config)
        streamed.append(
            StreamedTask(
                source,
                SegmentSettings.of(name, "train", length, model.config, processor),
                batch_size=options.batch_sizes.get(name, arguments.per_device_train_batch_size),
                sampling_weight=options.sampling_weights[name],
                loss_weight=options.loss_weights.get(name, recipe.loss_weight(task)),
                own_weight=name not in options.loss_weights,
                task=task,
            )
        )

    seed = arguments.data_seed if arguments.data_seed is not None else arguments.seed
    return TaskStream(streamed, processor, seed=seed, rank=arguments.process_index, world_size=arguments.world_size)


def trained_tasks(
    data: DataArguments, tasks: recipe.Chosen, source: str | None, cache_dir: str | None
) -> list[TrainedTask]:
    """Return the tasks for a checkpoint's `tasks.json`, with the seeds of their demonstrations.

    Args:
        data: arguments for the training data.
        tasks: the tasks by name.
        source: checkpoint that the training begins with, whose tasks are kept as earlier ones; None for new weights.
        cache_dir: folder for downloads.
    """
    from ..datasets.collection import Collection

    found = []
    for task in tasks.values():
        if task is None:
            continue
        folder = Path(data.dataset) / task.folder_name
        described = Collection.read(folder) if folder.is_dir() else None
        seeds = described.seeds if described is not None else []
        rule = described.task_rule if described is not None else None
        found.append(trained_task(task, seed_runs(seeds), rule))
    return join_earlier(found, read_trained_tasks(source, {"cache_dir": cache_dir}) if source else [])


def folder_of(name: str, task: Task | None) -> str:
    """Return the name of a task's or text dataset's folder or configuration."""
    return name if task is None else task.folder_name


def digests_of(dataset: Any, data: DataArguments) -> dict[str, str]:
    """Return a hash of each task's data, by which a resumed training recognises it wherever it lies.

    Args:
        dataset: the segments or the stream of all tasks.
        data: arguments for the training data.
    """
    if not data.streaming:
        return {segments.task: segments.digest for segments in dataset.tasks if segments.digest is not None}

    digests = {}
    for task in dataset.tasks:
        files = task.source.files
        whole = hashlib.sha256(b"" if files else data.dataset.encode())
        for path in files:
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _FOOTER_BYTES))  # Parquet's footer has the extremes of each column
                whole.update(f"{path.name} {size} ".encode() + file.read())
        digests[task.name] = whole.hexdigest()
    return digests


_FOOTER_BYTES = 2**16


def check_evaluation(
    tested: Sequence[str], tasks: recipe.Chosen, data: DataArguments, arguments: JatTrainingArguments
) -> None:
    """Check that what is evaluated exists.

    Args:
        tested: names of the tasks with a split test.
        tasks: all tasks that are trained.
        data: arguments for the training data.
        arguments: arguments of the training.

    Raises:
        ValueError: there is no such task, or `--metric_for_best_model` is not the name of a metric.
    """
    if not tested and not arguments.eval_episodes:
        raise ValueError(
            f"--eval_strategy: expected a task with a split test in {data.dataset}, got none; leave --eval_strategy "
            "out, collect test episodes, or play with --eval_episodes"
        )
    names = ["loss", *(f"{task}_loss" for task in tested)] if tested else []
    if arguments.eval_episodes:
        names = metric_names(tasks) + names
    metric = arguments.metric_for_best_model
    if metric is not None and metric.removeprefix("eval_") not in names:
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        raise ValueError(f"--metric_for_best_model: expected one of {shown}, got {metric}")
