"""Stages of the recipe: tasks, demonstrations, model, training, export.

The seeds determine everything. Differences from the published recipe, and the reasons:

- Experts almost never fail, and noise disturbs half of the demonstrations. A small model makes mistakes and must see
  how to recover from them.
- Losses of continuous actions are weighted by the inverse of the actions' variance, so that all tasks count alike.
- Observations are not predicted. Acting does not need it, and decoding images doubles the number of convolutions.
- The agent does not see its own actions in training, otherwise it would learn to repeat them.
- Encoders start with larger weights, because relevant differences in metres and integers are small compared with the
  scale of a layer norm.
- Positions are not embedded. In an episode that is longer than the window, the agent sees every token at one of three
  positions, which does not occur in training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...checkpoint.trained_tasks import (
    TrainedTask,
    join_earlier,
    read_trained_tasks,
    to_json,
    trained_task,
    write_trained_tasks,
)
from ...config import JatConfig
from ...envs import Score, get_task

SEED = 0


@dataclass(frozen=True)
class MiniTask:
    """Demonstrations of a task and its share of the training.

    Attributes:
        num_episodes: number of demonstrations, including the test split.
        noise: noise of the demonstrations, see `jat_engine.collect.experts.demonstrate`.
        batch_size: number of segments in a batch.
        sampling_weight: relative frequency of the task's batches.
    """

    num_episodes: int
    noise: float
    batch_size: int
    sampling_weight: float = 1.0


@dataclass(frozen=True)
class Phase:
    """Phase of the training, which starts from the weights of the previous phase.

    Attributes:
        tasks: task -> its demonstrations. Tasks without episodes use the demonstrations of the previous phase.
        first_episode: seed of the first demonstration. Evaluations use the seeds from 0.
        training: arguments of `jat-engine train`, in addition to `TRAINING`.
    """

    tasks: dict[str, MiniTask]
    first_episode: int
    training: dict[str, Any]


_METAWORLD = MiniTask(num_episodes=150, noise=0.3, batch_size=5, sampling_weight=1.5)

_ALL: dict[str, MiniTask] = {
    "atari-pong": MiniTask(num_episodes=60, noise=0.05, batch_size=8, sampling_weight=8.0),
    "babyai-go-to-local": MiniTask(num_episodes=9000, noise=0.1, batch_size=64, sampling_weight=4.0),
    "babyai-go-to-obj": MiniTask(num_episodes=5000, noise=0.1, batch_size=64, sampling_weight=2.0),
    "babyai-go-to-red-ball-grey": MiniTask(num_episodes=9000, noise=0.1, batch_size=64, sampling_weight=3.0),
    "babyai-open-red-door": MiniTask(num_episodes=3000, noise=0.1, batch_size=64, sampling_weight=0.7),
    "metaworld-door-close": _METAWORLD,
    "metaworld-door-unlock": _METAWORLD,
    "metaworld-drawer-open": _METAWORLD,
    "metaworld-faucet-close": _METAWORLD,
    "metaworld-faucet-open": _METAWORLD,
    "mujoco-doublependulum": MiniTask(num_episodes=40, noise=0.1, batch_size=4, sampling_weight=2.0),
    "mujoco-pendulum": MiniTask(num_episodes=40, noise=0.3, batch_size=4, sampling_weight=2.0),
    "mujoco-reacher": MiniTask(num_episodes=800, noise=0.2, batch_size=10, sampling_weight=1.5),
}


def _known(batch_size: int, sampling_weight: float) -> MiniTask:
    """Return a task that uses the demonstrations of the previous phase."""
    return MiniTask(0, 0.0, batch_size, sampling_weight)


_AGAIN: dict[str, MiniTask] = {
    "atari-pong": MiniTask(num_episodes=60, noise=0.2, batch_size=8, sampling_weight=12.0),
    "babyai-go-to-obj": _known(64, 1.0),
    "babyai-go-to-red-ball-grey": _known(64, 2.0),
    "babyai-open-red-door": _known(64, 0.3),
    "metaworld-door-close": _known(5, 0.7),
    "metaworld-door-unlock": _known(5, 0.5),
    "metaworld-drawer-open": _known(5, 0.5),
    "metaworld-faucet-close": _known(5, 1.2),
    "metaworld-faucet-open": _known(5, 1.8),
    "mujoco-pendulum": _known(4, 0.3),
    "mujoco-reacher": _known(10, 0.7),
}

PHASES = (
    Phase(_ALL, 1_000_000, {"max_steps": 30000, "learning_rate": 1e-3, "warmup_steps": 200, "seed": 0}),
    Phase(_AGAIN, 2_000_000, {"max_steps": 10000, "learning_rate": 6e-4, "warmup_steps": 200, "seed": 1}),
)
"""The second phase improves tasks that missed their goal, Pong with new demonstrations and more noise. The other tasks
take part so that the model does not forget them. go-to-local and doublependulum are only in the first phase: they
missed their goals by too much for a short second one."""

TASKS = tuple(_AGAIN)
"""Tasks that the shipped weights play."""

MODEL: dict[str, Any] = {
    "hidden_size": 192,
    "num_layers": 4,
    "num_heads": 6,
    "max_position_embeddings": 256,
    "max_continuous_size": 40,  # Meta-World's 39 values and the reward
    "observation_loss_coef": 0.0,
    "action_loss_coef": 1.0,
    "resid_dropout": 0.0,
    "embed_dropout": 0.0,
    "attention_dropout": 0.0,
}
VOCAB_SIZE = 320  # all bytes, and words of the missions

TRAINING: dict[str, Any] = {
    "lr_scheduler_type": "cosine",
    "weight_decay": 0.01,
    "adam_beta2": 0.99,
    "max_grad_norm": 1.0,
    "bf16": True,
    "logging_steps": 100,
    "save_steps": 1000,
    "save_total_limit": 1,
    "report_to": "tensorboard",
    "freeze": "transformer.wpe",
    "action_shuffle": 1.0,
    "train_sampling_strategy": "group_by_length",
}


def collect(folder: Path, num_workers: int | None) -> None:
    """Collect the demonstrations of all phases with `jat-engine collect`. Finished tasks are skipped.

    Args:
        folder: output. Subfolder `i` holds the demonstrations of phase i, with links for tasks without new ones.
        num_workers: number of processes; None for one per core.
    """
    from ...cli.collect import run

    for number, phase in enumerate(PHASES):
        target = folder / str(number)
        target.mkdir(parents=True, exist_ok=True)
        for name, task in phase.tasks.items():
            if task.num_episodes == 0:
                if not (target / name).exists():
                    (target / name).symlink_to(Path("..", str(number - 1), name), target_is_directory=True)
                continue

            arguments: dict[str, Any] = {
                "tasks": name,
                "output_dir": target,
                "num_episodes": task.num_episodes,
                "seed": phase.first_episode,
                "noise": task.noise,
            }
            if num_workers is not None:
                arguments["num_workers"] = num_workers
            run(_flags(arguments))


def _flags(arguments: dict[str, Any]) -> list[str]:
    """Convert arguments to command-line flags."""
    flags: list[str] = []
    for name, value in arguments.items():
        flags += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return flags


def initialize(data: Path, folder: Path) -> None:
    """Write the model before training, and its processor.

    Args:
        data: demonstrations of the first phase. The tokenizer is trained on their missions.
        folder: folder to write to.
    """
    from ... import JatModel, JatProcessor

    processor = JatProcessor.byte_level(JatConfig(**MODEL, vocab_size=VOCAB_SIZE))
    processor.tokenizer = processor.tokenizer.train_new_from_iterator(
        sorted(_missions(data)), vocab_size=VOCAB_SIZE, show_progress=False
    )
    end = processor.tokenizer.eos_token_id
    config = JatConfig(**MODEL, vocab_size=VOCAB_SIZE, bos_token_id=end, eos_token_id=end, pad_token_id=end)

    torch.manual_seed(SEED)
    model = JatModel(config)
    torch.nn.init.zeros_(model.transformer.wpe.weight)
    _scale_inputs(model.continuous_encoder, data)
    _scale_integers(model)

    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def train(data: Path, initial: Path, folder: Path, overrides: dict[str, Any] | None = None) -> Path:
    """Train all phases with `jat-engine train`. Finished phases are skipped, an interrupted one is resumed.

    Args:
        data: folder that `collect` wrote.
        initial: folder that `initialize` wrote.
        folder: output. Subfolder `i` holds the run of phase i.
        overrides: further arguments of `jat-engine train`, for all phases.

    Returns:
        The folder with the trained weights.
    """
    for number, phase in enumerate(PHASES):
        target = folder / str(number)
        if not (target / "model.safetensors").exists():
            _train_phase(phase, data / str(number), initial, target, overrides or {})
        initial = target
    return initial


def _train_phase(phase: Phase, data: Path, initial: Path, folder: Path, overrides: dict[str, Any]) -> None:
    from ...cli.train import run
    from ...training.resume import newest_whole

    arguments: dict[str, Any] = {
        "model_name_or_path": initial,
        "dataset": data,
        "output_dir": folder,
        "cache_dir": folder / "cache",
        "tasks": list(phase.tasks),
        "batch_sizes": [f"{name}={task.batch_size}" for name, task in phase.tasks.items()],
        "sampling_weights": [f"{name}={task.sampling_weight}" for name, task in phase.tasks.items()],
        "loss_weights": [f"{name}={_loss_weight(data / name):.6g}" for name in phase.tasks],
        **TRAINING,
        **phase.training,
        **overrides,
    }
    if newest_whole(folder) is not None:
        arguments["resume_from_checkpoint"] = "latest"
    if not torch.cuda.is_available():
        arguments["use_cpu"] = True
    if run(_flags(arguments)) != 0:
        raise RuntimeError(f"{folder}: the training ended before its last step, for the reason that it printed")


def export(trained: Path, folder: Path) -> None:
    """Write the checkpoint to ship: in bfloat16, with zeros for untrained parameters, so that it compresses well.

    Args:
        trained: folder with the trained weights.
        folder: folder to write to.
    """
    from ... import JatModel, JatProcessor

    model = JatModel.from_pretrained(trained).to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if name.startswith(UNTRAINED):
            torch.nn.init.zeros_(parameter)
    folder.mkdir(parents=True, exist_ok=True)
    model.config.dtype = torch.bfloat16
    model.save_pretrained(folder)
    JatProcessor.from_pretrained(trained).save_pretrained(folder)
    tasks = read_trained_tasks(trained)
    write_trained_tasks(folder, to_json(tasks or trained_tasks()))


def store_demonstrators(folder: Path, scores: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the demonstrators' returns into a checkpoint's `tasks.json`, with which `jat-engine eval` compares.

    Args:
        folder: of the checkpoint.
        scores: task -> agent -> returns, as `scores.evaluate` measures them. Other tasks keep what they have.
    """
    tasks = []
    for task in read_trained_tasks(folder):
        returns = scores.get(task.name, {}).get("demonstrator")
        score = task.demonstrator if returns is None else Score(float(np.mean(returns)), float(np.std(returns)))
        tasks.append(replace(task, demonstrator=score))
    write_trained_tasks(folder, to_json(tasks))


def trained_tasks() -> list[TrainedTask]:
    """Return the tasks of both phases, with bounds of the seeds of their demonstrations, whose attempts may fail."""
    found: list[TrainedTask] = []
    for phase in PHASES:
        seeds = (phase.first_episode, phase.first_episode + _MAX_ATTEMPTS - 1)
        now = [trained_task(get_task(name), [seeds] if task.num_episodes else []) for name, task in phase.tasks.items()]
        found = join_earlier(now, found)
    return found


_MAX_ATTEMPTS = 10_000
"""Bound on the attempts of a task's demonstrations."""

UNTRAINED = ("image_decoder.", "multi_discrete_decoder.", "vit_encoder.", "transformer.wpe.")
"""Beginnings of the names of parameters that no task trains: decoders of observations, image patches, positions."""


def _scale_inputs(encoder: torch.nn.Linear, data: Path) -> None:
    """Set the encoder's weights so that inputs with their typical variation within a task change embeddings by about 1.

    Relevant differences in Meta-World are hundredths of a metre. With weights of the usual size they would be learned
    very slowly.
    """
    deviations, means = [], []
    for name in PHASES[0].tasks:
        if name.startswith(("atari", "babyai")):
            continue
        values = np.concatenate([np.asarray(e, np.float64) for e in _columns(data / name, "continuous_observations")])
        expanded = np.resize(np.arange(values.shape[1] + 1), encoder.in_features)  # the last is the reward
        padded = np.concatenate([values, np.zeros((len(values), 1))], axis=1)
        deviations.append(np.append(padded.std(axis=0)[:-1], 1.0)[expanded])
        means.append(padded.mean(axis=0)[expanded])

    scale = np.maximum(np.exp(np.log(np.maximum(deviations, 0.02)).mean(axis=0)), 0.02)  # [in_features]
    with torch.no_grad():
        weight = torch.randn(encoder.weight.shape) / encoder.in_features**0.5
        encoder.weight.copy_(weight / torch.from_numpy(scale))
        encoder.bias.copy_(-(encoder.weight.double() @ torch.from_numpy(np.mean(means, axis=0))))


def _scale_integers(model: Any) -> None:
    """Set the weights so that embeddings of integers, and features computed from them, have standard deviation 1."""
    reduce, mix = (model.multi_discrete_encoder.get_submodule(name) for name in ("1", "4"))
    torch.nn.init.normal_(model.transformer.wte.weight)
    for layer in (reduce, mix):
        torch.nn.init.normal_(layer.weight, std=layer.in_features**-0.5)


def _columns(folder: Path, column: str) -> list[Any]:
    import pyarrow.parquet as pq

    files = sorted(folder.glob("train-*.parquet"))
    return [row for file in files for row in pq.read_table(file, columns=[column])[column].to_pylist()]


def _missions(data: Path) -> set[str]:
    names = [name for name in PHASES[0].tasks if name.startswith("babyai")]
    return {text for name in names for episode in _columns(data / name, "text_observations") for text in episode}


def _loss_weight(folder: Path) -> float:
    """Return 1 / variance of the demonstrated actions if they are continuous, else 1."""
    if "atari" in folder.name or "babyai" in folder.name:
        return 1.0
    actions = np.concatenate([np.asarray(e, np.float64) for e in _columns(folder, "continuous_actions")])
    return float(1 / actions.var(axis=0).mean())
