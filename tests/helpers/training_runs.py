"""Make what `jat-engine train` needs, and its command line."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

import jat_engine

from . import training_data
from .training_data import KINDS, episode, tiny_config, write_split

TASKS = list(KINDS)


def write_inputs(folder: Path) -> Path:
    """Write `data` of three tasks, `even` data with segments of one length, and a `model` with random weights."""
    training_data.write_dataset(folder / "data")
    write_split(folder / "even", "mujoco-hopper", "train", [episode("continuous", 12, i) for i in range(6)])
    config = tiny_config()
    torch.manual_seed(0)
    jat_engine.JatModel(config).save_pretrained(folder / "model")
    jat_engine.JatProcessor.byte_level(config).save_pretrained(folder / "model")
    return folder


def flags(folder: Path, output: Path, *more: str, data: str = "data", tasks: list[str] = TASKS) -> list[str]:
    """Return a command line that trains the model of `write_inputs`, without checkpoints."""
    return [
        *("train", "--tasks", *tasks, "--dataset", str(folder / data), "--model_name_or_path", str(folder / "model")),
        *("--cache_dir", str(folder / "cache"), "--output_dir", str(output), "--use_cpu", "--report_to", "none"),
        *("--disable_tqdm", "true", "--per_device_train_batch_size", "2", "--save_strategy", "no", *more),
    ]


def weights(output: Path) -> dict[str, torch.Tensor]:
    """Return the weights in the folder of a model."""
    return load_file(output / "model.safetensors")
