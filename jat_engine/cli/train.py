"""Command `jat-engine train`: train an agent on a dataset, as published."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers import TrainingArguments

from ..checkpoint.trained_tasks import to_json
from ..config import PRESETS, JatConfig
from ..hub_account import check_account
from ..keywords import did_you_mean
from ..training import recipe
from ..training.arguments import JatTrainingArguments, check_optimizer
from ..training.curves import CurvesCallback
from ..training.fit import check_fit
from ..training.flags import HELP, NO_EFFECT, PublishedArguments, check_published
from ..training.play import Player, playable
from ..training.resume import (
    check_config,
    check_record,
    checkpoints,
    claim,
    complete_output,
    damage_of,
    has_model,
    newest_whole,
    settings_of,
    state_of,
    steps_taken,
)
from .agent import about_source, quiet_loading
from .arguments import HelpLayout, TaskArguments, note, parse
from .train_data import (
    DataArguments,
    Recipe,
    check_evaluation,
    collected_tasks,
    describe,
    digests_of,
    load_segments,
    open_stream,
    trained_tasks,
)


@dataclass
class TrainModelArguments:
    """Arguments for the model to train: a checkpoint, or a new model."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "checkpoint to start from: folder, name on the hub, or jat-mini"}
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
    from_scratch: bool = field(
        default=False, metadata={"help": "take only configuration and processor of --model_name_or_path; new weights"}
    )
    config_overrides: list[str] = field(
        default_factory=list,
        metadata={"help": "fields of the configuration of a new model, such as max_continuous_size=120"},
    )
    freeze: list[str] = field(
        default_factory=list,
        metadata={"help": "beginnings of names of parameters that are not trained, such as transformer"},
    )
    cache_dir: str | None = field(default=None, metadata={"help": "folder for downloads and prepared data"})
    trust_remote_code: bool = field(default=False, metadata={"help": "ignored: code in a checkpoint is never run"})

    def check(self) -> None:
        """Check that exactly one source of the model is given.

        Raises:
            ValueError: there are none or several, or a processor is given for a checkpoint.
        """
        given = [self.model_name_or_path, self.preset, self.config_name]
        if sum(value is not None for value in given) != 1:
            got = "several: the first goes on from weights, the others draw new ones" if any(given) else "none"
            raise ValueError(f"expected one of --model_name_or_path, --preset and --config_name, got {got}")
        if self.from_scratch and self.model_name_or_path is None:
            raise ValueError("--from_scratch: expected --model_name_or_path with it; --preset has new weights anyway")
        if self.config_overrides and self.model_name_or_path is not None and not self.from_scratch:
            raise ValueError(
                "--config_overrides: expected --from_scratch with it, got --model_name_or_path alone, whose weights "
                "have their sizes"
            )
        if self.processor_name and self.model_name_or_path:
            raise ValueError("--processor_name: expected none with --model_name_or_path, whose processor is used")
        if self.trust_remote_code:
            note("--trust_remote_code is ignored: code in a checkpoint is never run")


_LISTED = [name for flags in HELP.values() for name in flags]

LAYOUT = HelpLayout(
    usage="jat-engine train --dataset DATA --tasks TASK ... --model_name_or_path MODEL --output_dir FOLDER [flag ...]",
    sections=HELP,
    rest={
        item.name: f"refused: {NO_EFFECT[item.name]}" if item.name in NO_EFFECT else None
        for item in fields(TrainingArguments)
        if item.name not in _LISTED
    },
    rest_title="all other flags of transformers' Trainer",
)
"""Layout of `jat-engine train --help`: this project's flags, those of transformers' Trainer in use, and the rest."""


def run(argv: Sequence[str]) -> int:
    """Run `jat-engine train` and return its exit code."""
    model_arguments, choice, data, published, arguments = parse(
        "train",
        "Train an agent, as the published one was.",
        [TrainModelArguments, TaskArguments, DataArguments, PublishedArguments, JatTrainingArguments],
        argv,
        layout=LAYOUT,
    )
    model_arguments.check()
    data.check(arguments)
    check_published(published)
    if arguments.push_to_hub:
        check_account(HfApi(token=arguments.hub_token))

    # Processes of one training share its folder.
    with claim(Path(str(arguments.output_dir)), note) if arguments.process_index == 0 else contextlib.nullcontext():
        return train(model_arguments, choice, data, arguments)


def train(
    model_arguments: TrainModelArguments, choice: TaskArguments, data: DataArguments, arguments: JatTrainingArguments
) -> int:
    """Train with checked arguments, in an output folder that no other training uses; return the exit code."""
    from transformers import set_seed

    from ..training.trainer import JatTrainer, TrainingError

    tasks = collected_tasks(data, choice)
    options = Recipe.of(data, tasks)
    more = {"tasks": list(tasks), **data.settings(arguments), **asdict(options), "freeze": model_arguments.freeze}
    settings = settings_of(arguments, more)
    resume = checkpoint_to_resume(arguments)
    if resume is not None:
        check_record(resume, "settings", settings)

    set_seed(arguments.seed)  # before the weights of a new model are drawn
    model, processor = make_model(model_arguments)
    freeze(model, model_arguments.freeze)
    check_fit(tasks, Path(data.dataset), model.config)
    check_optimizer(arguments, model)
    player = make_player(tasks, model, processor, arguments) if arguments.eval_episodes else None
    done = 0
    if resume is not None:
        check_config(resume, model.config)
        done = max(state_of(resume)["global_step"], steps_taken(Path(str(arguments.output_dir))))
        if 0 < arguments.max_steps <= done:
            return tell_finished(resume, arguments)
        if arguments.max_steps > 0:
            check_can_go_on(resume, arguments)
    elif model_arguments.model_name_or_path and not model_arguments.from_scratch and arguments.process_index == 0:
        note(f"begins with the weights of {model_arguments.model_name_or_path}; --from_scratch draws new ones")

    begun_with = None if model_arguments.from_scratch else model_arguments.model_name_or_path
    dataset: Any
    test: dict[str, Any] = {}
    if data.streaming:
        if player is not None:
            check_evaluation([], tasks, data, arguments)
        dataset = open_stream(data, tasks, model, processor, options, model_arguments.cache_dir, arguments)
    else:
        with arguments.main_process_first(local=True, desc="preparing the data"):
            dataset, test = load_segments(
                data, tasks, model, processor, options.loss_weights, model_arguments.cache_dir, arguments
            )
    digests = digests_of(dataset, data)
    if resume is not None:
        check_record(resume, "data", digests)

    curves = CurvesCallback(note)
    try:
        trainer = JatTrainer(
            model,
            arguments,
            train_dataset=dataset,
            eval_dataset=test,
            processor=processor,
            sampling_weights=options.sampling_weights,
            batch_sizes=options.batch_sizes,
            action_shuffle=data.action_shuffle,
            player=player,
            callbacks=[curves],
            record={
                "settings": settings,
                "data": digests,
                "tasks": to_json(trained_tasks(data, tasks, begun_with, model_arguments.cache_dir)),
            },
        )
    except (ValueError, ImportError) as error:  # flags that the Trainer refuses, or lacks a package for
        raise ValueError(str(error)) from error
    if resume is not None:
        state = state_of(resume)
        if trainer.num_steps <= done:
            return tell_finished(resume, arguments)
        check_can_go_on(resume, arguments)
        if trainer.num_steps != state["max_steps"] and not arguments.lr_scheduler_type.startswith("constant"):
            note(
                f"the learning rate goes on by the schedule of {trainer.num_steps} steps; until step "
                f"{state['global_step']} it followed that of {state['max_steps']}"
            )
    if trainer.is_world_process_zero():
        note(describe(dataset, trainer.sampler))
        if player is not None:
            note(describe_player(player, arguments))

    try:
        trainer.run(None if resume is None else str(resume))
    except TrainingError as error:
        note(f"jat-engine: error: {error}")
        return 1
    finally:  # also after Ctrl-C: the curve says why
        curves.draw(arguments, trainer.state)
    if trainer.is_world_process_zero():
        step, left = trainer.state.global_step, trainer.num_steps - trainer.state.global_step
        stopped = f", stopped at step {step} with {left} to go; go on with --resume_from_checkpoint latest"
        note(f"wrote {arguments.output_dir}{stopped if left > 0 else describe_best(arguments, trainer.state)}")
    return 0


def make_player(tasks: recipe.Chosen, model: Any, processor: Any, arguments: JatTrainingArguments) -> Player:
    """Return the player of `--eval_episodes`, after a check that it can play all tasks that are no texts.

    Raises:
        ValueError: there is no task to play, or a task does not fit the model.
        MissingSimulatorError: simulators are missing.
    """
    player = Player(playable(tasks), arguments.eval_episodes)
    if arguments.process_index == 0:
        player.check(model, processor, arguments.device)
    return player


def describe_player(player: Player, arguments: JatTrainingArguments) -> str:
    """Return a description of the episodes that are played while training, for people."""
    when = "epoch" if arguments.eval_strategy == "epoch" else f"{arguments.eval_steps} steps"
    text = f"plays {player.num_episodes} episode(s) of {len(player.tasks)} task(s) every {when}"
    if arguments.load_best_model_at_end:
        text += f", and keeps the model with the best {arguments.metric_for_best_model}"
    if player.unscored:
        text += f"; the mean leaves out {', '.join(player.unscored)}, whose returns are not normalised"
    return text


def describe_best(arguments: JatTrainingArguments, state: Any) -> str:
    """Return the step whose model was kept as the best, for people; empty if the last one was kept."""
    if not arguments.load_best_model_at_end or state.best_global_step is None:
        return ""
    return f", the model of step {state.best_global_step}: {arguments.metric_for_best_model} {state.best_metric:.4g}"


def checkpoint_to_resume(arguments: JatTrainingArguments) -> Path | None:
    """Return the checkpoint from which to resume: the named one, or for "latest" (or "true") the newest whole one.

    Returns:
        Its folder, or the output folder itself if it has a finished training without checkpoints; None to start a new
        training.

    Raises:
        ValueError: there is no such checkpoint, or the output folder has a training and `--resume_from_checkpoint` is
            not given.
    """
    given = arguments.resume_from_checkpoint
    folder = Path(str(arguments.output_dir))
    if given is None:
        check_unused(folder)
        return None

    if str(given).lower() in ("latest", "true"):
        newest = newest_whole(folder, note)
        if newest is None and steps_taken(folder):
            return folder
        if newest is None:
            raise ValueError(f"--resume_from_checkpoint latest: there is no complete checkpoint in {folder}")
        return newest

    named = Path(given).expanduser()
    damage = damage_of(named)
    if damage is not None:
        raise ValueError(
            f"--resume_from_checkpoint: expected the folder of a complete checkpoint, got {given}: {damage}"
        )
    if named.resolve().parent != folder.resolve():
        check_unused(folder)
    return named


def check_unused(folder: Path) -> None:
    """Check that a new training in an output folder would not write over another one.

    A checkpoint that was not written to its end is no obstacle: a job that was killed begins again.

    Raises:
        ValueError: the folder has a checkpoint with a whole model, or a finished training.
    """
    newest = newest_whole(folder, note)
    if newest is not None:
        raise ValueError(
            f"--output_dir: expected a folder without checkpoints, got one with {newest.name}; go on from "
            "it with --resume_from_checkpoint latest, or name another folder"
        )
    if has_model(folder):
        raise ValueError(
            f"--output_dir: expected a folder without a model, got {folder}, which has one; nothing is written "
            "over: name another folder, or remove it"
        )
    for path in checkpoints(folder):
        if state_of(path) and has_model(path):
            raise ValueError(
                f"--output_dir: expected a folder without checkpoints, got one with {path.name}, which has a model but "
                f"cannot be resumed ({damage_of(path)}); name another folder, and --model_name_or_path {path} to begin "
                "with its weights"
            )


def check_can_go_on(resume: Path, arguments: JatTrainingArguments) -> None:
    """Check that there is a checkpoint from which a training takes further steps.

    Raises:
        ValueError: the output folder has only the model of a finished training.
    """
    if resume == Path(str(arguments.output_dir)):
        raise ValueError(
            f"--resume_from_checkpoint latest: expected a complete checkpoint for steps after "
            f"{steps_taken(resume)}, got {resume} with a finished model only; begin another training in another "
            f"--output_dir, with --model_name_or_path {resume}"
        )


def tell_finished(resume: Path, arguments: JatTrainingArguments) -> int:
    """Write the model of a finished training to its output folder if it is not there, say so, and return 0."""
    folder = Path(str(arguments.output_dir))
    if arguments.process_index == 0:
        if resume != folder:
            complete_output(resume, folder, best=bool(arguments.load_best_model_at_end))
        note(f"finished: {folder} has the model of step {steps_taken(folder)}, and no step is left to train")
    return 0


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
                source = arguments.model_name_or_path
                if arguments.from_scratch:
                    model = JatModel(JatConfig.from_pretrained(source, **options, **overrides(arguments)))
                else:
                    model = JatModel.from_pretrained(source, **options)
                return model.float(), JatProcessor.from_pretrained(source, **options)
        except (OSError, ValueError) as error:
            raise about_source(str(arguments.model_name_or_path), error) from error

        if arguments.preset is not None:
            config = JatConfig.from_preset(arguments.preset, **overrides(arguments))
        else:
            try:
                config = JatConfig.from_pretrained(str(arguments.config_name), **options, **overrides(arguments))
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


def overrides(arguments: TrainModelArguments) -> dict[str, Any]:
    """Return the fields of `--config_overrides` by name.

    Raises:
        ValueError: one is not of the form name=value, or no field of a configuration.
    """
    known = [name for name in JatConfig.__annotations__ if name not in ("model_type", "attribute_map")]
    found: dict[str, Any] = {}
    for text in arguments.config_overrides:
        name, equals, value = text.partition("=")
        if not equals or name not in known:
            hint = did_you_mean(name, known, f"fields are {', '.join(known)}")
            raise ValueError(f"--config_overrides: expected field=value, got {text!r}; {hint}")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


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
