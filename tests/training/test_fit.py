"""Test that tasks which are too large for a model are refused, with the flag that makes a model with room."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

for package in ("accelerate", "datasets"):
    pytest.importorskip(package, reason="the extra train is not installed")

import gymnasium as gym
from gymnasium import spaces
from helpers.training_data import episode, tiny_config, write_split
from helpers.training_runs import flags, write_inputs

from jat_engine.cli import main
from jat_engine.envs import Task, get_task
from jat_engine.envs.adapters import choose_adapter
from jat_engine.training.fit import check_fit

CONFIG = tiny_config()
NUMBERS, INTEGERS, IDS = CONFIG.max_continuous_size, CONFIG.max_discrete_value, CONFIG.vocab_size
TWO, ONE = spaces.Discrete(2), spaces.Box(-1, 1, (1,))


def adapted(observation: gym.Space[Any], action: gym.Space[Any]) -> Task:
    adapter = choose_adapter(observation, action)
    return Task("own", None, adapter.observation, adapter.action, 256, adapter=adapter)


def text(size: int) -> spaces.Dict:
    return spaces.Dict({"cells": spaces.MultiDiscrete([3] * size), "order": spaces.Text(9)})


def numbers(size: int) -> spaces.Box:
    return spaces.Box(-1, 1, (size,))


@pytest.mark.parametrize(
    ("fits", "too_large", "field"),
    [
        ((numbers(NUMBERS - 1), TWO), (numbers(NUMBERS), TWO), "max_continuous_size"),
        ((TWO, numbers(NUMBERS)), (TWO, numbers(NUMBERS + 1)), "max_continuous_size"),
        (
            (spaces.MultiDiscrete([2] * INTEGERS), ONE),
            (spaces.MultiDiscrete([2] * (INTEGERS + 1)), ONE),
            "max_discrete_value",
        ),
        ((text(INTEGERS - 64), ONE), (text(INTEGERS - 63), ONE), "max_discrete_value"),
        ((spaces.Discrete(IDS), ONE), (spaces.Discrete(IDS + 1), ONE), "vocab_size"),
        ((ONE, spaces.Discrete(IDS)), (ONE, spaces.Discrete(IDS + 1)), "vocab_size"),
    ],
    ids=["numbers", "values", "integers", "text", "largest integer", "choices"],
)
def test_the_flag_of_the_message_makes_room(fits: Any, too_large: Any, field: str, tmp_path: Path) -> None:
    check_fit({"own": adapted(*fits)}, tmp_path, CONFIG)
    task = adapted(*too_large)
    with pytest.raises(ValueError, match=rf"--tasks own: expected at most \d+ .*{field} of the model: \d+") as caught:
        check_fit({"text": None, "own": task}, tmp_path, CONFIG)

    name, value = re.findall(r"--config_overrides (\w+)=(\d+)", str(caught.value))[0]
    larger = CONFIG.to_dict() | {name: int(value)}
    check_fit({"own": task}, tmp_path, type(CONFIG)(**larger))
    with pytest.raises(ValueError, match=rf"{field} of the model"):  # it is the smallest one with room
        check_fit({"own": task}, tmp_path, type(CONFIG)(**larger | {name: int(value) - 1}))


def test_stored_episodes_tell_the_size_of_a_task_without_an_environment(tmp_path: Path) -> None:
    write_split(tmp_path, "own", "train", [episode("continuous", 5, 0)])  # 11 numbers, 3 values
    task = Task("own", None, "continuous", "continuous", 256)
    check_fit({"own": task}, tmp_path, CONFIG)
    small = type(CONFIG)(**CONFIG.to_dict() | {"max_continuous_size": 11})
    with pytest.raises(ValueError, match=r"expected at most 10 numbers of an observation .* got 11"):
        check_fit({"own": task}, tmp_path, small)
    check_fit({"absent": replace(task, name="absent")}, tmp_path, small)  # said when its folder is opened
    check_fit({"atari-pong": get_task("atari-pong")}, tmp_path, small)


def test_a_larger_model_is_trained_from_scratch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_inputs(tmp_path)
    rng = np.random.default_rng(0)
    large = [
        {
            "continuous_observations": rng.standard_normal((6, NUMBERS + 4)).astype(np.float32),
            "continuous_actions": rng.uniform(-1, 1, (6, 2)).astype(np.float32),
            "rewards": np.ones(6, np.float32),
        }
        for _ in range(4)
    ]
    write_split(folder / "large", "my-robot", "train", large)

    def train(*more: str) -> int:
        return main(flags(folder, tmp_path / "run", *more, "--max_steps", "1", data="large", tasks=["my-robot"]))

    assert train() == 2
    assert f"expected at most {NUMBERS - 1} numbers of an observation" in capsys.readouterr().err
    size = f"max_continuous_size={NUMBERS + 5}"
    assert train("--config_overrides", size) == 2
    assert "--config_overrides: expected --from_scratch with it" in capsys.readouterr().err
    assert train("--from_scratch", "--config_overrides", f"max_continuous_sizes={NUMBERS + 5}") == 2
    assert "did you mean max_continuous_size" in capsys.readouterr().err
    assert train("--from_scratch", "--config_overrides", size) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["max_continuous_size"] == NUMBERS + 5
    (task,) = json.loads((tmp_path / "run" / "tasks.json").read_text())["tasks"]
    assert (task["name"], task["rule"]["observation"], task["is_earlier"]) == ("my-robot", "continuous", False)
