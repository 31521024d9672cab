"""Test `jat-engine train`: losses, gradients, interruptions, several processes, and files."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jat_engine.testing import golden

for package in ("accelerate", "datasets", "tensorboard"):
    pytest.importorskip(package, reason="the extra train is not installed")

import numpy as np
import torch
from helpers import environment, program
from helpers.checkpointing import enable_checkpointing
from helpers.training_data import tiny_config
from helpers.training_runs import TASKS, flags, weights, write_inputs

import jat_engine
from jat_engine.cli import main
from jat_engine.datasets.sources import open_source
from jat_engine.envs import get_task
from jat_engine.training.arguments import JatTrainingArguments
from jat_engine.training.dataset import TASK, Segments, TaskDataset
from jat_engine.training.prepare import prepare
from jat_engine.training.resume import damage_of
from jat_engine.training.segments import SegmentSettings
from jat_engine.training.trainer import JatTrainer

SGD = ["--optim", "sgd", "--learning_rate", "1", "--lr_scheduler_type", "constant", "--max_grad_norm", "0"]
"""Flags with which a step subtracts the gradient."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("training"))


def changes(folder: Path, output: Path) -> dict[str, torch.Tensor]:
    before = weights(folder / "model")
    return {name: value - before[name] for name, value in weights(output).items()}


def assert_close(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    """Compare relative to the norm of all: some gradients are zero up to rounding."""
    a = torch.cat([actual[name].flatten() for name in sorted(expected)])
    b = torch.cat([expected[name].flatten() for name in sorted(expected)])
    assert b.norm() > 0.1
    assert (a - b).norm() <= tolerance * b.norm()


@pytest.fixture
def trainer(folder: Path, tmp_path: Path) -> Callable[..., JatTrainer]:
    """Return a function that makes a trainer of a model with the segments of the three tasks."""

    def make(model: Any, processor: Any = None, **options: Any) -> JatTrainer:
        config = tiny_config()
        processor = processor or jat_engine.JatProcessor.byte_level(config)
        segments = []
        for task in TASKS:
            source = open_source(str(folder / "data"), task, "train", task=get_task(task))
            assert source is not None
            settings = SegmentSettings.of(task, "train", 12, config, processor)
            segments.append(Segments(prepare(source, settings, processor, folder / "segments"), task, loss_weight=2.0))
        arguments = JatTrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to="none", **options)
        return JatTrainer(model, arguments, train_dataset=TaskDataset(segments), processor=processor)

    return make


# ---- the loss ------------------------------------------------------------------------------------------------------


@pytest.mark.versions
def test_the_trainers_loss_is_the_published_one(tiny_folder: Path, trainer: Callable[..., JatTrainer]) -> None:
    model = jat_engine.JatModel.from_pretrained(tiny_folder).train()
    made = trainer(model)
    for case, inputs in golden.forward_cases():
        tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
        model.zero_grad()
        loss = made.compute_loss(model, {**tensors, TASK: TASKS[0]})
        assert loss.item() == pytest.approx(case["loss"], rel=1e-5), case["name"]
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        model(**tensors).loss.backward()  # everything decoded, and padding masked in the attention
        expected = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        assert gradients.keys() == expected.keys()
        assert_close(gradients, expected, 1e-5)


def test_segments_of_one_step_have_no_observation_loss(tiny_model: Any) -> None:
    """Check a case in which the published formula divides zero by zero, which would ruin a training."""
    for loss_only in (False, True):
        output = tiny_model(
            continuous_observations=torch.ones(2, 1, 5),
            continuous_actions=torch.ones(2, 1, 2),
            rewards=torch.ones(2, 1),
            attention_mask=torch.ones(2, 1, dtype=torch.long),
            loss_only=loss_only,
        )
        assert output.observation_loss == 0
        assert output.loss.isfinite()


def test_gradient_checkpointing_changes_no_gradient(folder: Path, trainer: Callable[..., JatTrainer]) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = jat_engine.JatModel.from_pretrained(folder / "model").train()
        made = trainer(model)
        if checkpointing:
            enable_checkpointing(model)
        for number in (0, 3, 10):  # one segment of each task
            made.compute_loss(model, made.train_dataset[number]).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert_close(gradients[1], gradients[0], 1e-6)


def test_bfloat16_is_near_float32(folder: Path, trainer: Callable[..., JatTrainer]) -> None:
    gradients = []
    for options in ({}, {"bf16": True}):
        model = jat_engine.JatModel.from_pretrained(folder / "model").train()
        made = trainer(model, **options)
        for number in (0, 3, 10):
            with made.compute_loss_context_manager(), made.accelerator.autocast():
                loss = made.compute_loss(model, made.train_dataset[number])
            assert loss.dtype == torch.float32
            loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert all(value.dtype == torch.float32 for value in gradients[1].values())
    assert_close(gradients[1], gradients[0], 0.05)
    name = "transformer.h.0.mlp.c_fc.weight"
    assert not torch.equal(gradients[0][name], gradients[1][name])  # the precision really differed


# ---- whole trainings -----------------------------------------------------------------------------------------------


@pytest.mark.versions
def test_a_training_learns_and_an_engine_plays_it(folder: Path, tmp_path: Path) -> None:
    more = ["--max_steps", "60", "--learning_rate", "0.003", "--logging_steps", "20", "--weight_decay", "0.01"]
    more += ["--eval_strategy", "steps", "--eval_steps", "30", "--eval_num_samples", "1", "--bf16", "--report_to"]
    more += ["tensorboard", "--dataloader_num_workers", "1", "--batch_sizes", "mujoco=4", "atari=1"]
    output = tmp_path / "out"
    assert main(flags(folder, output, *more)) == 0
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]
    assert {"action_loss", "observation_loss", *(f"loss/{task}" for task in TASKS)} <= history[0].keys()
    evaluated = next(entry for entry in history if entry.keys() == {"eval_loss", "epoch", "step"})
    single = [next(e[f"eval_{task}_loss"] for e in history if f"eval_{task}_loss" in e) for task in TASKS]
    assert evaluated["eval_loss"] == pytest.approx(np.mean(single))
    assert list(output.rglob("events.out.tfevents.*"))
    engine = jat_engine.JatEngine.from_pretrained(output, device="cpu")
    from helpers import spaces

    action = engine.get_next_action(
        None, continuous_observation=np.zeros(11, np.float32), action_space=spaces.Box(-1, 1, (3,)), reward=0.0
    )
    assert len(action) == 3
    config = json.loads((output / "config.json").read_text())
    assert config["model_type"] == "jat"
    jat_engine.JatProcessor.from_pretrained(output)


@pytest.mark.versions
def test_a_stream_trains(folder: Path, tmp_path: Path) -> None:
    more = [
        "--streaming",
        "--max_steps",
        "6",
        "--save_strategy",
        "steps",
        "--save_steps",
        "3",
        "--learning_rate",
        "0.01",
    ]
    assert main(flags(folder, tmp_path / "whole", *more)) == 0
    resume = ["--resume_from_checkpoint", str(tmp_path / "whole/checkpoint-3")]
    assert main(flags(folder, tmp_path / "resumed", *more, *resume)) == 0
    expected = weights(tmp_path / "whole")
    assert all(torch.equal(value, expected[name]) for name, value in weights(tmp_path / "resumed").items())
    assert any(change.any() for change in changes(folder, tmp_path / "whole").values())


def test_parameters_that_a_batch_does_not_use_stay_unchanged(folder: Path, tmp_path: Path) -> None:
    """Check that a step leaves out parameters without gradient, weight decay included."""
    more = ["--max_steps", "2", "--weight_decay", "0.5", "--learning_rate", "0.1"]
    assert main(flags(folder, tmp_path, *more, tasks=["mujoco-hopper"])) == 0
    changed = {name for name, change in changes(folder, tmp_path).items() if change.any()}
    assert changed == {
        name
        for name in weights(folder / "model")
        if name.startswith(("continuous_", "transformer.h.", "transformer.ln_f", "transformer.wpe"))
    }


def test_frozen_parameters_stay_as_they_are(folder: Path, tmp_path: Path) -> None:
    more = ["--max_steps", "2", "--weight_decay", "0.5", "--learning_rate", "0.1", "--freeze", "transformer."]
    assert main(flags(folder, tmp_path, *more, "continuous_decoder", tasks=["mujoco-hopper"])) == 0
    changed = {name for name, change in changes(folder, tmp_path).items() if change.any()}
    assert changed == {"continuous_encoder.weight", "continuous_encoder.bias"}


def test_shuffled_actions_are_shown_but_not_predicted(folder: Path, trainer: Callable[..., JatTrainer]) -> None:
    model = jat_engine.JatModel.from_pretrained(folder / "model").train()
    model.continuous_encoder.weight.data *= 10  # so that the model's answer depends on what it is shown
    made = trainer(model)
    batch = made.train_dataset[0]
    made._action_shuffle = 1.0
    torch.manual_seed(0)
    loss = made.compute_loss(model, batch)
    torch.manual_seed(0)
    inputs = {name: value for name, value in batch.items() if name != TASK}
    shown = inputs["continuous_actions"][:, torch.randperm(12)]
    assert not torch.equal(shown, inputs["continuous_actions"])
    expected = model(**inputs, action_inputs=shown)
    assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
    assert loss.item() != pytest.approx(model(**inputs).loss.item(), rel=1e-4)


def test_a_killed_training_resumes_exactly(folder: Path, tmp_path: Path) -> None:
    more = ["--save_strategy", "steps", "--save_steps", "3", "--max_steps", "12", "--gradient_accumulation_steps", "2"]
    more += ["--logging_steps", "1"]
    assert main(flags(folder, tmp_path / "whole", *more)) == 0

    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "jat_engine.cli", *flags(folder, killed, *more)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while damage_of(killed / "checkpoint-3"):
        assert process.poll() is None, "the training ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "checkpoint-12").exists()
    torn = shutil.copytree(killed / "checkpoint-3", killed / "checkpoint-11") / "trainer_state.json"
    torn.write_bytes(torn.read_bytes()[:40])  # as of a training killed while it wrote its newest checkpoint

    assert main(flags(folder, killed, *more, "--resume_from_checkpoint", "latest")) == 0
    expected, actual = weights(tmp_path / "whole"), weights(killed)
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name
    states = [torch.load(f / "checkpoint-12" / "optimizer.pt")["state"] for f in (tmp_path / "whole", killed)]
    assert states[0].keys() == states[1].keys()
    for key, state in states[0].items():
        assert all(torch.equal(value, states[1][key][name]) for name, value in state.items())


def test_two_processes_give_the_gradient_of_one(folder: Path, tmp_path: Path) -> None:
    """Compare batches of different tasks with accumulation, and equally long ones of one task with one batch."""
    step = [*SGD, "--max_steps", "1"]
    even: dict[str, Any] = {"data": "even", "tasks": ["mujoco-hopper"]}
    long = ["--max_steps", "8", "--save_strategy", "steps", "--save_steps", "5", "--per_device_train_batch_size", "8"]
    long += ["--eval_strategy", "steps", "--eval_steps", "8"]  # of fewer batches than there are processes
    resume = ["--resume_from_checkpoint", str(tmp_path / "long" / "checkpoint-5")]
    runs = [
        flags(folder, tmp_path / "mixed", *step, "--data_seed", "1"),
        flags(folder, tmp_path / "even", *step, **even),
        flags(folder, tmp_path / "long", *long),
        flags(folder, tmp_path / "resumed", *long, *resume),
    ]
    command = program("training_process", json.dumps(runs))
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]

    state = json.loads((tmp_path / "long/checkpoint-5/trainer_state.json").read_text())
    assert state["epoch"] > 1  # resumed where the order of batches is not the first epoch's
    assert state["epoch"] % 1
    resumed, whole = weights(tmp_path / "resumed"), weights(tmp_path / "long")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())

    accumulated = ["--gradient_accumulation_steps", "2"]
    assert main(flags(folder, tmp_path / "one", *step, "--data_seed", "1", *accumulated)) == 0
    assert_close(changes(folder, tmp_path / "mixed"), changes(folder, tmp_path / "one"), 1e-5)
    used = {name.split(".")[0] for name, change in changes(folder, tmp_path / "one").items() if change.any()}
    assert len(used & {"continuous_encoder", "multi_discrete_encoder", "image_encoder"}) == 2  # two tasks' batches
    assert main(flags(folder, tmp_path / "joint", *step, "--per_device_train_batch_size", "4", **even)) == 0
    assert_close(changes(folder, tmp_path / "even"), changes(folder, tmp_path / "joint"), 1e-5)
