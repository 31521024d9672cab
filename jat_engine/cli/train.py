"""Command `jat-engine train`: train an agent on a dataset, as published."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from tqdm import tqdm
from transformers import TrainingArguments

from ..config import PRESETS, JatConfig
from ..datasets.requirements import require_train_extra
from ..envs import TASKS
from ..training import recipe
from .agent import quiet_loading
from .arguments import note, parse


@dataclass
class TrainModelArguments:
    """Arguments for the model to train: a checkpoint, or a new model."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "checkpoint to start from: folder, or name on the hub"}
    )
    preset: str | None = field(
        default=None, metadata={"help": "train a new model of this published size", "choices": list(PRESETS)}
    )
    config_name: str | None = field(
        default=None, metadata={"help": "train a new model with the config.json of this folder or hub repository"}
    )
    processor_name: str | None = field(
        default=None,
        metadata={"help": "processor of a new model: folder, or name on the hub; by default every byte is a token"},
    )
    freeze: list[str] = field(default_factory=list, metadata={"help": "do not train parameters whose names begin so"})
    cache_dir: str | None = field(default=None, metadata={"help": "folder for downloads and prepared data"})
    trust_remote_code: bool = field(default=False, metadata={"help": "ignored: code in a checkpoint is never run"})

    def check(self) -> None:
        """Check that exactly one source of the model is given.

        Raises:
            ValueError: there are none or several, or a processor is given for a checkpoint.
        """
        given = [self.model_name_or_path, self.preset, self.config_name]
        if sum(value is not None for value in given) != 1:
            raise ValueError("expected one of --model_name_or_path, --preset and --config_name")
        if self.processor_name and self.model_name_or_path:
            raise ValueError("--processor_name: expected none with --model_name_or_path, whose processor is used")
        if self.trust_remote_code:
            note("--trust_remote_code is ignored: code in a checkpoint is never run")


@dataclass(kw_only=True)
class DataArguments:
    """Arguments for the training data."""

    tasks: list[str] = field(metadata={"help": "tasks, domains (atari babyai metaworld mujoco), all, or text datasets"})
    dataset: str = field(
        default="jat-project/jat-dataset",
        metadata={"help": "a folder that `jat-engine collect` wrote, or a dataset on the hub"},
    )
    loss_weights: list[str] = field(
        default_factory=list, metadata={"help": "task=x or domain=x instead of the published weights"}
    )
    sampling_weights: list[str] = field(
        default_factory=list, metadata={"help": "task=x or domain=x instead of the published weights"}
    )
    batch_sizes: list[str] = field(
        default_factory=list, metadata={"help": "task=n or domain=n instead of --per_device_train_batch_size"}
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

    def check(self) -> None:
        """Check the values.

        Raises:
            ValueError: a value is out of range; the message names the flag.
        """
        if not 0 <= self.action_shuffle <= 1:
            raise ValueError(f"--action_shuffle: expected a share in [0, 1], got {self.action_shuffle}")
        if self.eval_num_samples is not None and self.eval_num_samples < 1:
            raise ValueError(f"--eval_num_samples: expected at least 1, got {self.eval_num_samples}")


@dataclass
class JatTrainingArguments(TrainingArguments):
    """transformers' training arguments, with checks and with the settings that batches of a single task need."""

    def __post_init__(self) -> None:
        require_train_extra()
        if self.output_dir is None:
            raise ValueError("--output_dir: expected a folder for checkpoints, got none")
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name}: expected at least 1, got {getattr(self, name)}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate >= 0):
            raise ValueError(f"--learning_rate: expected a finite number of at least 0, got {self.learning_rate}")

        try:
            super().__post_init__()
        except ValueError as error:  # flags that exclude each other, or that this machine does not support
            raise ValueError(str(error)) from error

        if self.fsdp and self.device.type == "cpu":
            raise ValueError("--fsdp: expected GPUs, got the CPU, where accelerate does not shard; leave --fsdp out")
        if self.train_sampling_strategy not in ("random", "group_by_length"):
            raise ValueError(
                f"--train_sampling_strategy: expected random or group_by_length, got {self.train_sampling_strategy}"
            )

        self.remove_unused_columns = False  # the collator already makes the arguments of `forward`
        loading: Any = self.accelerator_config
        loading.even_batches = False  # batches differ in size, and their number already fits the processes
        loading.split_batches = loading.dispatch_batches = False
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = True  # a batch of one task leaves the other encoders out

    @property
    def device(self) -> torch.device:
        """Device of this process. accelerate names the CPU "cpu:0", to which torch cannot load a checkpoint."""
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device


def run(argv: Sequence[str]) -> int:
    """Run `jat-engine train` and return its exit code."""
    model_arguments, data, arguments = parse(
        "train",
        "Train an agent, as the published one was.",
        [TrainModelArguments, DataArguments, JatTrainingArguments],
        argv,
    )
    from transformers import set_seed

    from ..training.trainer import JatTrainer

    model_arguments.check()
    data.check()
    if data.streaming and arguments.max_steps <= 0:
        raise ValueError("--streaming: expected --max_steps, since a stream has no end, got none")
    if data.streaming and arguments.eval_strategy != "no":
        raise ValueError("--streaming: expected --eval_strategy no, got another; evaluate without --streaming")

    tasks = collected_tasks(data)
    loss_weights = recipe.overrides("--loss_weights", data.loss_weights, tasks, float)
    sampling_weights = {task: recipe.sampling_weight(task) for task in tasks}
    sampling_weights |= recipe.overrides("--sampling_weights", data.sampling_weights, tasks, float)
    batch_sizes = recipe.overrides("--batch_sizes", data.batch_sizes, tasks, int)
    resume = checkpoint_to_resume(arguments)

    set_seed(arguments.seed)  # before the weights of a new model are drawn
    model, processor = make_model(model_arguments)
    freeze(model, model_arguments.freeze)

    options = Recipe(loss_weights, sampling_weights, batch_sizes)
    train: Any
    test: dict[str, Any] = {}
    if data.streaming:
        train = open_stream(data, tasks, model, processor, options, model_arguments.cache_dir, arguments)
    else:
        with arguments.main_process_first(local=True, desc="preparing the data"):
            train, test = load_segments(
                data, tasks, model, processor, loss_weights, model_arguments.cache_dir, arguments
            )

    trainer = JatTrainer(
        model,
        arguments,
        train_dataset=train,
        eval_dataset=test,
        processor=processor,
        sampling_weights=sampling_weights,
        batch_sizes=batch_sizes,
        action_shuffle=data.action_shuffle,
    )
    if trainer.is_world_process_zero():
        note(describe(train, trainer.sampler))

    result = trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    trainer.save_state()
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)
    if trainer.is_world_process_zero():
        note(f"wrote {arguments.output_dir}")
    return 0


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


def collected_tasks(data: DataArguments) -> list[str]:
    """Return the names of the tasks to train on.

    Domain names and "all" stand for those of their tasks that a local dataset contains. Tasks that are named are kept
    in any case.

    Raises:
        ValueError: the dataset contains none of the tasks.
    """
    tasks, folder = recipe.expand(data.tasks), Path(data.dataset)
    if not folder.is_dir():
        return tasks
    absent = [task for task in tasks if task not in data.tasks and task in TASKS and not (folder / task).is_dir()]
    if len(absent) == len(tasks):
        raise ValueError(f"--tasks {' '.join(data.tasks)}: expected tasks that {folder} has, got none of them")
    if absent:
        shown = ", ".join(absent[:3]) + (f" and {len(absent) - 3} more" if len(absent) > 3 else "")
        note(f"{folder} does not have {shown}")
    return [task for task in tasks if task not in absent]


def checkpoint_to_resume(arguments: JatTrainingArguments) -> str | None:
    """Return the checkpoint from which to resume: the named one, or for "latest" (or "true") the newest.

    Returns:
        Its folder; None to start a new training.

    Raises:
        ValueError: there is no such checkpoint, or the output folder has checkpoints and `--resume_from_checkpoint` is
            not given.
    """
    given = arguments.resume_from_checkpoint
    folder = Path(str(arguments.output_dir))
    newest = newest_checkpoint(folder)

    if given is None:
        if newest is not None:
            raise ValueError(
                f"--output_dir: expected a folder without checkpoints, got one with {newest.name}; go on from "
                "it with --resume_from_checkpoint latest, or name another folder"
            )
        return None

    if str(given).lower() in ("latest", "true"):
        if newest is None:
            raise ValueError(f"--resume_from_checkpoint latest: there is no complete checkpoint in {folder}")
        return str(newest)

    if not is_complete(Path(given)):
        raise ValueError(
            f"--resume_from_checkpoint: expected the folder of a complete checkpoint, got {given}, "
            "whose trainer_state.json is missing or cut off"
        )
    return str(given)


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint in the output folder of a training; None if there is none."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]
    found.sort(key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True)
    for path in found:
        if is_complete(path):
            return path
        note(f"passing over {path}, which a training was stopped in the middle of writing")
    return None


def is_complete(checkpoint: Path) -> bool:
    """Return whether a checkpoint is complete. The trainer writes trainer_state.json as its last file."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(state, dict) and "global_step" in state


def make_model(arguments: TrainModelArguments) -> tuple[Any, Any]:
    """Load or make the model to train, in float32, and its processor.

    Raises:
        ValueError: a checkpoint, configuration or processor cannot be read, or the tokenizer has more tokens than the
            model.
    """
    from .. import JatModel, JatProcessor

    options: dict[str, Any] = {"cache_dir": arguments.cache_dir}
    with quiet_loading():
        try:
            if arguments.model_name_or_path is not None:
                model = JatModel.from_pretrained(arguments.model_name_or_path, **options)
                return model.float(), JatProcessor.from_pretrained(arguments.model_name_or_path, **options)
        except (OSError, ValueError) as error:
            raise ValueError(f"--model_name_or_path {arguments.model_name_or_path}: {error}") from error

        if arguments.preset is not None:
            config = JatConfig.from_preset(arguments.preset)
        else:
            try:
                config = JatConfig.from_pretrained(str(arguments.config_name), **options)
            except (OSError, ValueError) as error:
                raise ValueError(f"--config_name {arguments.config_name}: {error}") from error

        if arguments.processor_name is None:
            processor = JatProcessor.byte_level(config)
        else:
            try:
                processor = JatProcessor.from_pretrained(arguments.processor_name, **options)
            except (OSError, ValueError) as error:
                raise ValueError(f"--processor_name {arguments.processor_name}: {error}") from error

    if len(processor.tokenizer) > config.vocab_size:
        raise ValueError(
            f"vocab_size: expected at least the {len(processor.tokenizer)} tokens of the tokenizer, "
            f"got {config.vocab_size}"
        )
    return JatModel(config), processor


def freeze(model: Any, beginnings: Sequence[str]) -> None:
    """Exclude the parameters whose names begin with one of `beginnings` from training.

    Raises:
        ValueError: no parameter's name begins so, or no parameter is left to train.
    """
    for beginning in beginnings:
        chosen = [parameter for name, parameter in model.named_parameters() if name.startswith(beginning)]
        if not chosen:
            raise ValueError(f"--freeze: expected the beginning of a parameter's name, got {beginning!r}")
        for parameter in chosen:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"--freeze: expected parameters that are left to train, got {' '.join(map(repr, beginnings))}")


def load_segments(
    data: DataArguments,
    tasks: Sequence[str],
    model: Any,
    processor: Any,
    loss_weights: dict[str, float],
    cache_dir: str | None,
    arguments: JatTrainingArguments,
) -> tuple[Any, dict[str, Any]]:
    """Prepare the segments of all tasks on disk, and open them as datasets.

    Args:
        data: arguments for the training data.
        tasks: names of the tasks.
        model: the model to train.
        processor: its processor.
        loss_weights: of the tasks for which the command line gives one.
        cache_dir: folder for downloads and prepared data.
        arguments: arguments of the training.

    Returns:
        The training dataset of all tasks, and the test dataset of each task, if the training is to evaluate.

    Raises:
        ValueError: a task has no split "train".
    """
    from ..training.dataset import Segments, TaskDataset
    from ..training.prepare import prepare
    from ..training.segments import SegmentSettings
    from ..training.sources import open_source

    root = Path(cache_dir or constants.HF_HOME) / "jat_engine" / "pieces"
    splits = ["train", "test"] if arguments.eval_strategy != "no" else ["train"]
    segments: dict[str, dict[str, Segments]] = {split: {} for split in splits}

    with tqdm(desc="preparing", unit="episode", disable=None, leave=False) as bar:
        for task in tasks:
            for split in splits:
                bar.set_description(f"preparing {task}", refresh=False)
                source = open_source(data.dataset, task, split, cache_dir=cache_dir)
                if source is None:
                    if split == "train":
                        raise ValueError(f"--dataset {data.dataset}: {task}: expected a split train, got none")
                    note(f"{task}: no test split; it is not evaluated")
                    continue

                settings = SegmentSettings.of(
                    task, split, recipe.segment_length(task, model.config), model.config, processor
                )
                folder = prepare(source, settings, processor, root, bar.update)
                limit = data.eval_num_samples if split == "test" else None
                segments[split][task] = Segments(
                    folder,
                    task,
                    loss_weight=loss_weights.get(task, recipe.loss_weight(task)),
                    own_weight=task not in loss_weights,
                    limit=limit,
                    image_processor=processor.image_processor,
                )

    test = {task: TaskDataset([found]) for task, found in segments.get("test", {}).items()}
    return TaskDataset(segments["train"].values()), test


def open_stream(
    data: DataArguments,
    tasks: Sequence[str],
    model: Any,
    processor: Any,
    options: Recipe,
    cache_dir: str | None,
    arguments: JatTrainingArguments,
) -> Any:
    """Return an endless stream of batches, each of one task.

    Args:
        data: arguments for the training data.
        tasks: names of the tasks.
        model: the model to train.
        processor: its processor.
        options: weights and batch sizes by task.
        cache_dir: folder for downloads.
        arguments: arguments of the training.

    Raises:
        ValueError: a task has no split "train".
    """
    from ..training.segments import SegmentSettings
    from ..training.sources import open_source
    from ..training.stream import StreamedTask, TaskStream

    streamed = []
    for task in tasks:
        source = open_source(data.dataset, task, "train", cache_dir=cache_dir, streaming=True)
        if source is None:
            raise ValueError(f"--dataset {data.dataset}: {task}: expected a split train, got none")

        length = recipe.segment_length(task, model.config)
        streamed.append(
            StreamedTask(
                source,
                SegmentSettings.of(task, "train", length, model.config, processor),
                batch_size=options.batch_sizes.get(task, arguments.per_device_train_batch_size),
                sampling_weight=options.sampling_weights[task],
                loss_weight=options.loss_weights.get(task, recipe.loss_weight(task)),
                own_weight=task not in options.loss_weights,
            )
        )

    seed = arguments.data_seed if arguments.data_seed is not None else arguments.seed
    return TaskStream(streamed, processor, seed=seed, rank=arguments.process_index, world_size=arguments.world_size)
