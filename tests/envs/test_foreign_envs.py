"""Test what environments of other packages may do wrong: each is an error that names task and remedy."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Text

from jat_engine.envs import TaskError, get_task, make, register_task
from jat_engine.errors import DataError, InputError
from jat_engine.evaluation.checked_env import CheckedEnv

NUMBERS = Box(-1, 1, (2,))
GOOD = np.zeros(2, np.float32)


class Given(gym.Env[Any, Any]):
    """Environment that returns what it was given, and raises what is an error."""

    action_space = Discrete(2)

    def __init__(self, space: Any, reset: Any, step: Any) -> None:
        self.observation_space, self._reset, self._step = space, reset, step

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self._give(self._reset)

    def step(self, action: Any) -> Any:
        return self._give(self._step)

    def _give(self, value: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        return value


def given(name: str, space: Any, reset: Any, step: Any) -> gym.Env[Any, Any]:
    register_task(name, lambda: Given(space, reset, step), domain="foreign")
    return make(name)


RESETS = {
    "no-info": (GOOD, r"reset\(\): expected the tuple \(observation, info\)"),
    "raises": (KeyError("x"), r"reset\(\) of the environment raised KeyError: 'x'"),
}

STEPS = {
    "four": ((GOOD, 0.0, False, {}), r"step\(\): expected the tuple \(observation, reward, terminated"),
    "none": (None, r"step\(\): expected the tuple .*got None"),
    "raises": (ZeroDivisionError("two\nlines"), r"step\(\) of the environment raised ZeroDivisionError: two lines"),
    "reward-none": ((GOOD, None, False, False, {}), "reward: expected one number, got None"),
    "reward-text": ((GOOD, "1", False, False, {}), "reward: expected one number, got '1'"),
    "reward-two": ((GOOD, np.ones(2), False, False, {}), "reward: expected one number"),
    "ended-none": ((GOOD, 0.0, None, False, {}), "terminated: expected one truth value, got None"),
}


@pytest.mark.parametrize("name", RESETS)
def test_wrong_resets(name: str) -> None:
    returned, message = RESETS[name]
    env = given(f"reset-{name}", NUMBERS, returned, None)
    with pytest.raises(TaskError, match=f"^reset-{name}: {message}"):
        env.reset()
    with pytest.raises(DataError, match=f"^reset-{name}: episode with seed 3, step 0: {message}"):
        CheckedEnv(get_task(f"reset-{name}"), env).reset(3)


@pytest.mark.parametrize("name", STEPS)
def test_wrong_steps(name: str) -> None:
    returned, message = STEPS[name]
    env = given(f"step-{name}", NUMBERS, (GOOD, {}), returned)
    env.reset()
    with pytest.raises(TaskError, match=f"^step-{name}: .*{message}"):
        env.step(0)


def test_rewards_and_ends_of_numpy() -> None:
    env = given("step-numpy", NUMBERS, (GOOD, {}), (GOOD, np.array([0.5]), np.array([True]), np.bool_(False), {}))
    env.reset()
    assert env.step(0)[1:4] == (0.5, True, False)


OBSERVATIONS = {
    "fraction": (
        MultiDiscrete([3, 4]),
        np.array([0.5, 1]),
        r"expected integers of MultiDiscrete\(\[3 4\]\), got 0.5 1",
    ),
    "outside": (MultiDiscrete([3, 4]), np.array([0, 4]), "expected integers of MultiDiscrete"),
    "wraps": (Box(0, 255, (2,), np.uint8), np.array([256, 0]), "expected integers of Box.*got 256 0"),
    "one-hot": (Dict({"a": Discrete(3), "b": NUMBERS}), {"a": -1, "b": GOOD}, r"observation\['a'\]: expected integers"),
    "missing": (Dict({"a": Discrete(3), "b": NUMBERS}), {"a": 1}, r"observation\['b'\]: expected one of Box"),
    "text": (
        Dict({"a": Discrete(3), "b": Text(9)}),
        {"a": 1, "b": None},
        r"observation\['b'\]: expected a text, got None",
    ),
    "own": (
        Dict({"discrete_observation": MultiDiscrete([3, 4])}),
        {"discrete_observation": np.array([0.5, 1])},
        "discrete_observation: expected one of MultiDiscrete.*got float64",
    ),
}


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_observations_outside_their_space(name: str) -> None:
    space, observation, message = OBSERVATIONS[name]
    env = given(f"observation-{name}", space, (observation, {}), None)
    with pytest.raises(InputError, match=message):
        env.reset()


def test_own_observations_of_other_shapes_are_converted() -> None:
    space = Dict({"discrete_observation": MultiDiscrete([5, 5], start=[-3, 2])})
    env = given("own-start", space, ({"discrete_observation": np.array([-3, 6])}, {}), None)
    assert env.reset()[0]["discrete_observation"].tolist() == [0, 4]


def test_wrong_spaces() -> None:
    for name, space, message in (
        ("no-space", None, "observation_space: expected a space of Gymnasium, got None"),
        ("no-numbers", Box(-1, 1, (0,)), "expected at least one number"),
    ):
        with pytest.raises(TaskError, match=f"^{name}: .*{message}"):
            given(name, space, (GOOD, {}), None)


def test_makers_that_fail_later() -> None:
    built: list[int] = []

    def make_once() -> gym.Env[Any, Any]:
        if built:
            raise SystemExit("no more")
        built.append(1)
        return Given(NUMBERS, (GOOD, {}), None)

    register_task("make-once", make_once, domain="foreign")
    get_task("make-once")
    with pytest.raises(
        TaskError, match=r"^make-once: expected an environment that can be made, got SystemExit: no more"
    ):
        make("make-once")
