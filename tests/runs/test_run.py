"""Whole runs: the same bytes however they are played and interrupted, and the episodes of the published protocol."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.dice import DICE

from jat_engine import JatEngine, JatModel, JatProcessor
from jat_engine.cli import main
from jat_engine.envs import TASKS, TaskError
from jat_engine.evaluation import run_episodes
from jat_engine.evaluation.environment import evaluation_env, missing_simulators
from jat_engine.runs.database import FILE_NAME, RunDatabase, RunError, read_run
from jat_engine.runs.plan import plan_items
from jat_engine.runs.run import RunOptions, choose_workers, share_room
from jat_engine.runs.slots import PlayOptions

MIX = ["atari-pong", "babyai-go-to-obj", "metaworld-drawer-open", "mujoco-reacher"]
"""A task of each domain."""

EPISODES, STEPS, SEED = 3, 25, 77
EVAL = ["eval", "--model_name_or_path", "jat-mini", "--use_cpu", "--seed", str(SEED), "--max_steps", str(STEPS)]
FLAGS = ["--num_episodes", str(EPISODES), "--tasks", *MIX]

pytestmark = pytest.mark.skipif(
    bool(missing_simulators([TASKS[name] for name in MIX])), reason="needs the simulators of all domains"
)


@pytest.fixture(scope="module")
def sequential(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that was played one episode after the other in this process."""
    folder = tmp_path_factory.mktemp("sequential")
    assert main([*EVAL, *FLAGS, "--num_workers", "0", "--num_envs", "1", "--output_dir", str(folder)]) == 0
    return folder


def _files(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("results.json", "evaluations.json")]


@pytest.mark.parametrize(
    ("flags", "tasks"),
    [
        (["--num_workers", "0", "--num_envs", "8"], MIX),
        (["--num_workers", "2", "--num_envs", "4"], MIX[::-1]),
        ([], MIX),
    ],
    ids=["8 environments in this process", "2 workers, tasks in another order", "as chosen"],
)
def test_the_files_are_the_same_however_a_run_is_played(
    flags: list[str], tasks: list[str], sequential: Path, tmp_path: Path
) -> None:
    run = [*EVAL, "--num_episodes", str(EPISODES), "--tasks", *tasks, "--output_dir", str(tmp_path)]
    assert main([*run, *flags]) == 0
    assert _files(tmp_path) == _files(sequential)


def test_the_files_are_the_same_after_kills(sequential: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jat_engine.cli", *EVAL, *FLAGS, "--output_dir", str(tmp_path)]
    for least, workers in ((1, "1"), (5, "0")):
        with subprocess.Popen(
            [*command, "--num_workers", workers, "--num_envs", "2"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as driver:
            until = time.monotonic() + 200
            while driver.poll() is None and _num_finished(tmp_path) < least and time.monotonic() < until:
                time.sleep(0.01)
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.kill(driver.pid, signal.SIGKILL)
    assert least <= _num_finished(tmp_path) < len(MIX) * EPISODES, "killed in the middle"
    assert main([*EVAL, "--resume", "--output_dir", str(tmp_path)]) == 0
    assert _files(tmp_path) == _files(sequential)


def _num_finished(folder: Path) -> int:
    """Return the number of a run's finished episodes so far."""
    if not (folder / FILE_NAME).exists():
        return 0
    try:
        return sum(len(task.finished) for task in read_run(folder).tasks.values())
    except RunError:  # its tables are being made
        return 0


def test_episodes_are_those_of_the_published_protocol(sequential: Path) -> None:
    """One after the other, each with the seeds of the environment and of the sampling."""
    engine = JatEngine.from_pretrained("jat-mini", device="cpu")
    played = json.loads((sequential / "evaluations.json").read_text())
    for name in MIX:
        with contextlib.closing(evaluation_env(TASKS[name])) as env:
            found = run_episodes(engine, None, env, EPISODES, task=TASKS[name], seed=SEED, max_steps=STEPS)
            assert [episode.return_ for episode in found] == played[name]


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_reference_plays_the_same_episodes_together_as_alone(deterministic: bool, tmp_path: Path) -> None:
    model = JatModel.from_pretrained("jat-mini", dtype=torch.float32).eval()
    processor = JatProcessor.from_pretrained("jat-mini")
    names = ["babyai-go-to-obj", "mujoco-reacher"]
    flags = [
        "--backend",
        "reference",
        "--dtype",
        "float32",
        "--num_episodes",
        "2",
        "--num_workers",
        "0",
        "--num_envs",
        "4",
    ]
    flags += ["--deterministic"] if deterministic else []
    assert main([*EVAL, *flags, "--tasks", *names, "--output_dir", str(tmp_path)]) == 0
    played = json.loads((tmp_path / "evaluations.json").read_text())
    for name in names:
        with contextlib.closing(evaluation_env(TASKS[name])) as env:
            options = {"deterministic": deterministic, "max_steps": STEPS}
            found = run_episodes(model, processor, env, 2, task=TASKS[name], seed=SEED, **options)
            assert [episode.return_ for episode in found] == played[name]


def test_nothing_is_claimed_in_the_end(sequential: Path) -> None:
    with contextlib.closing(RunDatabase(sequential)) as database:
        assert database.claims() == {}
        assert database.read().complete


# ---- choices -------------------------------------------------------------------------------------------------------


def test_number_of_workers() -> None:
    pong = TASKS["atari-pong"]
    few, many = plan_items({pong.name: 1}, 0), plan_items({pong.name: 100}, 0)

    def chosen(items: list[object], number: int | None, max_steps: int | None = None, task: object = pong) -> int:
        return choose_workers(items, [task], RunOptions(0, play=PlayOptions(max_steps), num_workers=number), False)  # type: ignore[list-item, arg-type]

    assert chosen(few, None) == 0, "a single episode"  # type: ignore[arg-type]
    assert chosen(many, None, 3) == 0, "a short run"  # type: ignore[arg-type]
    assert chosen(many, None) >= 1  # type: ignore[arg-type]
    assert chosen(many, 3) == 3  # type: ignore[arg-type]
    assert chosen(few, 3) == 1, "not more than episodes"  # type: ignore[arg-type]

    local = replace(DICE, maker=lambda: None)  # type: ignore[arg-type, return-value]
    assert chosen(many, None, task=local) == 0, "its environment cannot be made elsewhere"  # type: ignore[arg-type]
    with pytest.raises(TaskError, match="worker processes can import"):
        chosen(many, 2, task=local)  # type: ignore[arg-type]


def test_number_of_environments_for_which_an_engine_has_room() -> None:
    assert share_room(None, 0, None, 1000) == (1, 64)
    assert share_room(None, 2, None, 1000) == (2, 32)
    assert share_room(None, 2, 100, 1000) == (2, 100)
    assert share_room(10, 2, None, 1000) == (2, 5)
    assert share_room(1, 2, None, 1000) == (1, 1)
    assert share_room(10, 2, 6, 10) == (2, 6), "no more are open at a time than there are episodes"
    with pytest.raises(RunError, match="--num_envs: expected at most 5 environments in each of 2 processes"):
        share_room(10, 2, 6, 11)
