"""Test episodes that are played while training, and the learning curves."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

for package in ("accelerate", "datasets", "matplotlib", "tensorboard"):
    pytest.importorskip(package, reason="the extra train is not installed")
for package in ("mujoco", "minigrid"):
    pytest.importorskip(package, reason="a simulator is not installed")

import torch
from helpers import environment, program
from helpers.training_runs import flags, weights, write_inputs
from PIL import Image

import jat_engine
import jat_engine.training.play as play
from jat_engine.cli import main
from jat_engine.envs import TASKS
from jat_engine.evaluation import run_episodes
from jat_engine.evaluation.environment import evaluation_env
from jat_engine.evaluation.scores import normalize
from jat_engine.training.curves import curves_of
from jat_engine.training.resume import state_of

HOPPER, GO_TO = "mujoco-hopper", "babyai-go-to-local"
PLAY = ["--eval_episodes", "2", "--save_strategy", "steps"]
"""Flags that play; those of `flags` save nothing."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the inputs of trainings, and a training `played` of 20 steps of two tasks, with two episodes of each."""
    folder = write_inputs(tmp_path_factory.mktemp("play"))
    assert main(run(folder, folder / "played", *PLAY)) == 0
    return folder


def run(
    folder: Path, output: Path, *more: str, data: str = "data", tasks: tuple[str, ...] = (HOPPER, GO_TO)
) -> list[str]:
    """Return a command line whose steps draw random numbers."""
    noisy = ["--max_steps", "20", "--learning_rate", "0.01", "--action_shuffle", "0.5"]
    return flags(folder, output, *noisy, *more, data=data, tasks=list(tasks))


def returns(engine: Any, task: str, num_episodes: int) -> list[float]:
    with closing(evaluation_env(TASKS[task])) as env:
        options: dict[str, Any] = {"task": TASKS[task], "seed": play.PLAY_SEED, "deterministic": True}
        return [played.return_ for played in run_episodes(engine, None, env, num_episodes, **options)]


# ---- playing -------------------------------------------------------------------------------------------------------


@pytest.mark.versions
def test_the_best_by_its_return_is_kept(folder: Path) -> None:
    output = folder / "played"
    state = state_of(output)
    steps, values = curves_of(state["log_history"])["eval_return"]
    assert steps == list(range(2, 21, 2))
    assert state["best_metric"] == max(values) > min(values)
    assert state["best_global_step"] == steps[values.index(max(values))]
    best = weights(output / f"checkpoint-{state['best_global_step']}")
    assert all(torch.equal(value, best[name]) for name, value in weights(output).items())


def test_returns_are_those_of_an_evaluation_of_the_checkpoint(folder: Path) -> None:
    logged = {
        step: entry
        for entry in state_of(folder / "played")["log_history"]
        if "eval_return" in entry
        for step in [entry["step"]]
    }
    for step in (2, 20):
        engine = jat_engine.JatEngine.from_pretrained(folder / f"played/checkpoint-{step}", "cpu", "float32")
        expected = {task: returns(engine, task, 2) for task in (HOPPER, GO_TO)}
        scores = {task: normalize(values, task) for task, values in expected.items()}
        for task, values in expected.items():
            assert logged[step][f"eval_{task}_return"] == pytest.approx(np.mean(values))
            assert logged[step][f"eval_{task}_score"] == pytest.approx(np.mean(scores[task]))
        assert logged[step]["eval_return"] == pytest.approx(np.mean([np.mean(values) for values in scores.values()]))


def test_playing_changes_no_weight(folder: Path, tmp_path: Path) -> None:
    """Check the training's random numbers, which loading test segments and the seeds of episodes would change."""
    assert main(run(folder, tmp_path)) == 0
    last = weights(folder / "played/checkpoint-20")
    assert all(torch.equal(value, last[name]) for name, value in weights(tmp_path).items())


@pytest.mark.versions
def test_a_stream_is_evaluated_by_playing(folder: Path, tmp_path: Path) -> None:
    more = ["--streaming", "--eval_episodes", "1", "--eval_steps", "10", "--save_strategy", "steps"]
    assert main(run(folder, tmp_path, *more, tasks=(GO_TO,))) == 0
    curves = curves_of(state_of(tmp_path)["log_history"])
    assert curves["eval_return"][0] == [10, 20]
    assert "eval_loss" not in curves
    assert (tmp_path / "checkpoint-10").is_dir()


def test_data_without_a_test_split_are_evaluated_by_playing_each_epoch(folder: Path, tmp_path: Path) -> None:
    more = ["--eval_episodes", "1", "--eval_strategy", "epoch", "--num_train_epochs", "2", "--save_strategy", "steps"]
    command = flags(folder, tmp_path, *more, data="even", tasks=[HOPPER])
    assert main(command) == 0
    state = state_of(tmp_path)
    assert curves_of(state["log_history"])["eval_return"][0] == [3, 6]
    assert (tmp_path / "checkpoint-3").is_dir()


def test_without_checkpoints_the_last_model_is_kept(folder: Path, tmp_path: Path) -> None:
    assert main(run(folder, tmp_path, "--eval_episodes", "1", "--eval_steps", "10", tasks=(GO_TO,))) == 0
    state = state_of(tmp_path)
    assert curves_of(state["log_history"])["eval_return"][0] == [10, 20]
    assert state["best_metric"] is None


def test_two_processes_agree_on_the_best_model(folder: Path, tmp_path: Path) -> None:
    command = program("training_process", json.dumps([run(folder, tmp_path, *PLAY, "--eval_steps", "10")]))
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    state = state_of(tmp_path)
    engine = jat_engine.JatEngine.from_pretrained(tmp_path, "cpu", "float32")
    scores = [np.mean(normalize(returns(engine, task, 2), task)) for task in (HOPPER, GO_TO)]
    assert np.mean(scores) == pytest.approx(state["best_metric"], abs=1e-6)


def test_an_episode_that_fails_ends_the_training_with_a_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(play.Player):
        def play(self, *_: Any) -> dict[str, float]:
            raise OSError("the simulator\nis gone")

    monkeypatch.setattr("jat_engine.cli.train.Player", Broken)
    assert main(run(folder, tmp_path, *PLAY, tasks=(GO_TO,))) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "step 2: --eval_episodes: an episode failed: OSError: the simulator is gone. Go on without" in error


# ---- resuming ------------------------------------------------------------------------------------------------------


def test_a_resumed_training_goes_on_with_curve_and_best_model(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder / "played/checkpoint-12", tmp_path / "checkpoint-12")
    latest = ["--resume_from_checkpoint", "latest"]
    for other, message in (
        (["--eval_episodes", "3"], "expected --eval_episodes 2, as it was trained with, got 3"),
        (
            ["--metric_for_best_model", "loss"],
            "expected --metric_for_best_model return, as it was trained with, got loss",
        ),
    ):
        assert main(run(folder, tmp_path, *PLAY, *other, *latest)) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]

    assert main(run(folder, tmp_path, *PLAY, *latest)) == 0
    whole, resumed = (state_of(path) for path in (folder / "played", tmp_path))
    assert curves_of(resumed["log_history"]) == curves_of(whole["log_history"])
    assert resumed["best_metric"] == whole["best_metric"]
    expected = weights(folder / "played/checkpoint-20")
    assert all(torch.equal(value, expected[name]) for name, value in weights(tmp_path / "checkpoint-20").items())


# ---- mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--eval_episodes -1", "--eval_episodes: expected a finite number of at least 0, got -1"),
        ("--tasks text:captions", "--eval_episodes: expected a task that can be played, got none with an environment"),
        ("--tasks mujoco-humanoid", "--tasks: the sizes of this checkpoint do not fit"),
        ("--metric_for_best_model mse", "expected one of return, mujoco-hopper_return, "),
        ("--greater_is_better false", "--greater_is_better: expected true or no such flag, got false"),
        ("--lr_scheduler_type reduce_lr_on_plateau", '--lr_scheduler_kwargs \'{"mode": "max"}\' with'),
        ("--eval_steps 4 --save_steps 6", "--load_best_model_at_end"),
        ("--streaming --metric_for_best_model loss", "expected one of return, mujoco-hopper_return, "),
    ],
)
def test_errors(change: str, message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Check that mistakes are one line, before any data is prepared."""
    more = [*PLAY, "--cache_dir", str(tmp_path / "cache"), *change.split()]
    assert main(run(folder, tmp_path / "out", *more)) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "cache").exists()


def test_a_missing_simulator_is_said_before_the_data_is_prepared(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "minigrid", None)
    assert main(run(folder, tmp_path / "out", *PLAY, "--cache_dir", str(tmp_path / "cache"))) == 2
    assert "pip install 'jat-engine[babyai]'" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "cache").exists()


# ---- curves --------------------------------------------------------------------------------------------------------


@pytest.mark.versions
def test_curves_of_a_short_run_have_points(folder: Path, tmp_path: Path) -> None:
    """Check the defaults: a picture, TensorBoard, and fifty points."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    command = flags(folder, tmp_path, "--max_steps", "60", tasks=[HOPPER])
    position = command.index("--report_to")
    assert main([*command[:position], *command[position + 2 :]]) == 0
    assert curves_of(state_of(tmp_path)["log_history"])["loss"][0] == list(range(2, 61, 2))
    with Image.open(tmp_path / "curves.png") as picture:
        picture.load()
        assert picture.format == "PNG"
    (events,) = (tmp_path / "runs").rglob("events.out.tfevents.*")
    board = EventAccumulator(str(events.parent))
    board.Reload()
    assert len(board.Scalars("train/loss")) == 30


def test_curves_show_losses_and_returns(folder: Path) -> None:
    def width(output: Path) -> int:
        with Image.open(output / "curves.png") as picture:
            return picture.width

    assert main(run(folder, folder / "unplayed")) == 0
    assert width(folder / "played") == 2 * width(folder / "unplayed")


def test_without_matplotlib_a_training_says_so(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(run(folder, tmp_path)) == 0
    assert capsys.readouterr().err.count("learning curves are not drawn: matplotlib is not installed here; pip") == 1
    assert not (tmp_path / "curves.png").exists()


def test_losses_that_are_no_numbers_have_no_point() -> None:
    history = [{"loss": 1.0, "step": 1}, {"loss": float("nan"), "step": 2}, {"eval_x_runtime": 3.0, "step": 2}]
    assert curves_of(history) == {"loss": ([1], [1.0])}
