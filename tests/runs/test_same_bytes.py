"""Results depend on the seeds alone, not on how many environments play at a time, where, and in which order.

They are those of `run_episode`, one episode after the other.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import environment
from helpers.kills import TASKS, results_digest

from jat_engine import AutoModelForCausalLM, AutoProcessor, JatEngine
from jat_engine.checkpoint_files import JAT_MINI_FOLDER
from jat_engine.cli import main
from jat_engine.envs import get_task
from jat_engine.evaluation import run_episodes
from jat_engine.evaluation.environment import evaluation_env
from jat_engine.runs.database import read_run

SEED, NUM_EPISODES, MAX_STEPS = 500, 3, 25
FLAGS = ["--model_name_or_path", "jat-mini", "--use_cpu", "--seed", str(SEED), "--max_steps", str(MAX_STEPS)]
FLAGS += ["--num_episodes", str(NUM_EPISODES)]


def evaluate(folder: Path, *flags: str, tasks: Sequence[str] = TASKS) -> Path:
    assert main(["eval", *FLAGS, "--output_dir", str(folder), "--tasks", *tasks, *flags]) == 0
    return folder


@pytest.fixture(scope="module", params=["sampled", "greedy"])
def sequential(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of a run that plays one episode at a time, and its flags."""
    flags = ["--deterministic"] if request.param == "greedy" else []
    folder = tmp_path_factory.mktemp("same") / "run"
    return evaluate(folder, "--num_workers", "0", "--num_envs", "1", *flags), flags


@pytest.mark.parametrize(
    ("flags", "tasks"),
    [
        pytest.param(["--num_workers", "0", "--num_envs", "8"], TASKS, id="eight in this process"),
        pytest.param(["--num_workers", "0", "--num_envs", "5"], TASKS[::-1], id="another order of tasks"),
        pytest.param(["--num_workers", "2", "--num_envs", "16"], TASKS, id="two workers"),
        pytest.param(["--num_envs", "3", "--save_trajectories"], TASKS, id="trajectories"),
    ],
)
def test_results_have_the_same_bytes(
    flags: list[str], tasks: Sequence[str], sequential: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, more = sequential
    if "--save_trajectories" in flags:
        pytest.importorskip("pyarrow")
    assert results_digest(evaluate(tmp_path / "run", *flags, *more, tasks=tasks)) == results_digest(folder)


def test_threads_of_the_engine_change_nothing(sequential: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, more = sequential
    command = [sys.executable, "-m", "jat_engine.cli", "eval", *FLAGS, "--output_dir", str(tmp_path), "--tasks", *TASKS]
    threads = environment() | {"OMP_NUM_THREADS": str(min(4, 2 * (os.cpu_count() or 1)))}
    subprocess.run([*command, "--num_envs", "6", *more], env=threads, check=True, capture_output=True)
    assert results_digest(tmp_path) == results_digest(folder)


def test_frames_of_videos_change_nothing(sequential: tuple[Path, list[str]], tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    folder, more = sequential
    tasks = ["babyai-go-to-obj", "atari-pong"]  # their frames need no display
    found = read_run(evaluate(tmp_path / "run", "--save_video", "--video_episodes", "0", "2", *more, tasks=tasks))
    expected = read_run(folder)
    for name in tasks:
        assert found.tasks[name].episodes == expected.tasks[name].episodes
        assert len(list((tmp_path / "run/videos" / name).iterdir())) == 2


@pytest.mark.parametrize("name", TASKS)
def test_episodes_are_those_of_run_episode(name: str, sequential: tuple[Path, list[str]]) -> None:
    folder, more = sequential
    run, task = read_run(folder), get_task(name)
    engine = JatEngine.from_pretrained("jat-mini", device="cpu", dtype=run.settings["dtype"])
    assert plain(run, name) == played(engine, None, task, bool(more))


@pytest.mark.parametrize("flags", [[], ["--deterministic"]])
def test_episodes_of_the_reference_are_those_of_run_episode(flags: list[str], tmp_path: Path) -> None:
    folder = evaluate(tmp_path / "run", "--backend", "reference", "--num_envs", "4", "--max_steps", "8", *flags)
    model = AutoModelForCausalLM.from_pretrained(JAT_MINI_FOLDER, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(JAT_MINI_FOLDER)
    for name in TASKS:
        assert plain(read_run(folder), name) == played(model, processor, get_task(name), bool(flags), max_steps=8)


def plain(run: Any, name: str) -> list[tuple[Any, ...]]:
    return [(one.return_, one.length, one.capped) for one in run.tasks[name].episodes]


def played(agent: Any, processor: Any, task: Any, greedy: bool, max_steps: int = MAX_STEPS) -> list[tuple[Any, ...]]:
    """Play the episodes one after the other by the published protocol."""
    env = evaluation_env(task)
    options = {"seed": SEED, "deterministic": greedy, "max_steps": max_steps}
    found = list(run_episodes(agent, processor, env, NUM_EPISODES, task=task, **options))
    env.close()
    return [(one.return_, one.length, one.capped) for one in found]
