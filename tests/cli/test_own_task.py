"""The page on tasks of one's own runs, with smaller numbers; the examples' experts solve their tasks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ROOT

from jat_engine.envs import get_task, load_task_module, make

PAGE = (ROOT / "docs/own_task.md").read_text().partition("## How spaces are converted")[0]
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
COMMANDS = re.compile(r"```\n(jat-engine .*?)```", re.DOTALL)

SMALLER = {
    "--num_episodes 100 --noise": "--num_episodes 20 --random_episodes 5 --noise",
    "--max_steps 400": "--max_steps 20",
}
"""Sizes on the page -> smaller ones that this test runs."""


def shell(command: str, folder: Path) -> str:
    """Run a command of the page in a folder and return what it prints."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    result = subprocess.run(
        ["sh", "-ec", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def test_page(tmp_path: Path) -> None:
    """CartPole from an expert to an agent in the engine, by the page's own commands."""
    pytest.importorskip("datasets", reason="needs the train extra")
    expert, loop = PYTHON.findall(PAGE)
    collect, train, evaluate = COMMANDS.findall(PAGE)
    for written, here in SMALLER.items():
        assert (collect + train).count(written) == 1
        collect, train = collect.replace(written, here), train.replace(written, here)

    (tmp_path / "cartpole.py").write_text(expert)
    assert re.search(r"gym:CartPole-v1: 20 episodes, [\d,]+ steps, return ", shell(collect, tmp_path))
    shell(f"{train.strip()} --cache_dir cache", tmp_path)
    scores = shell(evaluate.replace("--num_episodes 100", "--num_episodes 2"), tmp_path)
    assert re.search(r"gym:CartPole-v1 +gym +2 ", scores), scores
    assert 8 <= float(shell(f"python -c '{loop}'", tmp_path)) <= 500


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the examples' folder on the module path."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))


def returns(env: Any, policy: Any, seeds: range) -> list[float]:
    """Return the returns of an expert."""
    act, executed = getattr(policy, "act", policy), getattr(policy, "executed", lambda _: None)
    found = []
    for seed in seeds:
        observation, _ = env.reset(seed=seed)
        if hasattr(policy, "reset"):
            policy.reset()
        total, done = 0.0, False
        while not done:
            action = act(observation)
            executed(action)
            observation, reward, terminated, truncated, _ = env.step(action)
            total, done = total + float(reward), terminated or truncated
        found.append(total)
    return found


@pytest.mark.usefixtures("examples")
def test_experts_of_gym_tasks() -> None:
    import cartpole  # type: ignore[import-not-found]
    import pendulum  # type: ignore[import-not-found]

    env = make("gym:CartPole-v1")
    assert returns(env, cartpole.balance(env), range(5)) == [500.0] * 5
    env = make("gym:Pendulum-v1")
    assert np.mean(returns(env, pendulum.swing_up(env), range(10))) > -250, "random: -1200"


@pytest.mark.usefixtures("examples")
def test_catch() -> None:
    pytest.importorskip("cv2", reason="needs the atari extra")
    load_task_module("catch")
    task = get_task("catch")
    assert (task.observation, task.action, task.context_window) == ("image", "discrete", 32)

    import catch  # type: ignore[import-not-found]

    env = make("catch", render_mode="rgb_array")
    assert returns(env, catch.catcher(env), range(5)) == [10.0] * 5
    assert env.render().shape == (84, 84, 3)


@pytest.mark.usefixtures("examples")
def test_errands() -> None:
    pytest.importorskip("minigrid", reason="needs the babyai extra")
    load_task_module("errands")
    assert get_task("errands").observation == "discrete+text"

    import errands  # type: ignore[import-not-found]

    env = make("errands")
    missions = {env.reset(seed=seed)[0]["text_observation"] for seed in range(60)}
    assert len(missions) == 6
    assert min(returns(env, errands.bot(env), range(10))) > 0.5


def test_scripts_are_shell() -> None:
    for script in sorted((ROOT / "examples").glob("*.sh")):
        subprocess.run(["sh", "-n", str(script)], check=True)
