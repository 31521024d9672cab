"""Test the registry of tasks: names, registration, adapters of any Gymnasium environment, and what is refused."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from jat_engine.envs import (
    SpaceError,
    TaskError,
    UnknownTaskError,
    domain_names,
    expand_tasks,
    find_tasks,
    get_task,
    load_task_module,
    make,
    register_task,
)
from jat_engine.envs.adapters import choose_adapter
from jat_engine.envs.registry import is_free
from jat_engine.errors import InputError

Box, Dict, Discrete = gym.spaces.Box, gym.spaces.Dict, gym.spaces.Discrete
TWO = Discrete(2)


class Fixed(gym.Env[Any, Any]):
    """Environment with given spaces that returns samples, and given observations after the first."""

    def __init__(self, observation: Any, action: Any = TWO, then: Any = None) -> None:
        self.observation_space, self.action_space, self._then = observation, action, then
        self.actions: list[Any] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.actions.append(action)
        observation = self.observation_space.sample() if self._then is None else self._then
        return observation, 1.0, len(self.actions) >= 5, False, {}


def frozen_lake() -> gym.Env[Any, Any]:
    return gym.make("FrozenLake-v1")


def pixels() -> gym.Env[Any, Any]:
    return Fixed(Box(0, 255, (30, 40, 3), np.uint8))


def text() -> gym.Env[Any, Any]:
    space = Dict({"cells": gym.spaces.MultiDiscrete([3, 4], start=[1, 2]), "order": gym.spaces.Text(20)})
    return Fixed(space, Discrete(3, start=5))


@pytest.mark.parametrize(
    ("space", "kind", "size"),
    [
        (Box(-1, 1, (3,)), "continuous", 3),
        (Box(-1, 1, ()), "continuous", 1),
        (Box(-1, 1, (2, 3), np.float64), "continuous", 6),
        (Box(0, 255, (7,), np.uint8), "continuous", 7),
        (Box(0, 255, (7, 7, 3), np.uint8), "continuous", 147),
        (Box(0, 255, (30, 40, 3), np.uint8), "image", 0),
        (Box(0, 255, (30, 40, 1), np.uint8), "image", 0),
        (Box(0, 255, (30, 40), np.uint8), "image", 0),
        (Discrete(5, start=-2), "discrete", 1),
        (gym.spaces.MultiDiscrete([[2, 3], [4, 5]]), "discrete", 4),
        (gym.spaces.MultiBinary(6), "discrete", 6),
        (gym.spaces.Tuple((Discrete(3), gym.spaces.MultiBinary(2))), "discrete", 3),
        (Dict({"b": Discrete(3), "a": Box(-1, 1, (2,))}), "continuous", 5),
        (Dict({"goal": Box(-1, 1, (2,)), "deep": Dict({"x": Box(-1, 1, (3,))})}), "continuous", 5),
        (Dict({"say": gym.spaces.Text(9), "cells": Box(0, 10, (3, 3), np.int64)}), "discrete+text", 9),
    ],
)
def test_each_space_has_its_kind(space: gym.Space[Any], kind: str, size: int) -> None:
    adapter = choose_adapter(space, TWO)
    assert (adapter.observation, adapter.size) == (kind, size)

    converter, observations = adapter.begin(), adapter.observation_space()
    space.seed(0)
    for convert in (converter.first, converter.next):
        assert observations.contains(convert(space.sample()))


def test_integers_are_in_the_order_of_keys_and_start_at_0() -> None:
    space = Dict({"z": Discrete(3, start=-1), "a": gym.spaces.MultiDiscrete([2, 2], start=[5, 6])})
    adapter = choose_adapter(space, TWO)
    assert adapter.entries == ("a", "z")
    found = adapter.begin().first({"z": -1, "a": np.array([6, 6])})
    np.testing.assert_array_equal(found["discrete_observation"], [1, 0, 0])
    assert adapter.rule["starts"] == [5, 6, -1]


def test_pictures_are_a_stack_of_four() -> None:
    adapter = choose_adapter(Box(0, 255, (84, 84), np.uint8), TWO)
    converter = adapter.begin()
    first, second = np.full((84, 84), 7, np.uint8), np.full((84, 84), 9, np.uint8)
    assert (converter.first(first)["image_observation"] == 7).all()
    np.testing.assert_array_equal(converter.next(second)["image_observation"][0, 0], [7, 7, 7, 9])
    np.testing.assert_array_equal(converter.first(second)["image_observation"][0, 0], [9, 9, 9, 9])


def test_a_kind_can_be_given() -> None:
    assert choose_adapter(Box(0, 9, (4,), np.int64), TWO, "discrete").size == 4
    assert choose_adapter(Discrete(3), TWO, "continuous").size == 3  # one-hot
    assert get_task("gym:FrozenLake-v1", "continuous").adapter.size == 16  # type: ignore[union-attr]
    with pytest.raises(SpaceError, match="expected a Box of pictures"):
        get_task("gym:CartPole-v1", "image")
    with pytest.raises(TaskError, match="expected no adapter for a published task, got discrete"):
        get_task("atari-pong", "discrete")


@pytest.mark.parametrize(
    ("observation", "action", "message"),
    [
        (Box(-1, 1, (3,)), gym.spaces.MultiDiscrete([2, 2]), r"MultiDiscrete.*unravel_index"),
        (Box(-1, 1, (3,)), gym.spaces.MultiBinary(2), "TransformAction from Discrete"),
        (Box(-1, 1, (3,)), Box(-1, 1, (2, 2)), r"TransformAction from a Box of shape \(A,\)"),
        (Box(-1, 1, (3,)), Box(0, 9, (2,), np.int64), "of floats"),
        (Box(-1, 1, (3,)), Dict({"a": TWO}), "TransformAction"),
        (gym.spaces.Sequence(TWO), TWO, "TransformObservation"),
        (gym.spaces.Text(5), TWO, "one text and integers"),
        (Dict({"a": gym.spaces.Text(5), "b": gym.spaces.Text(5), "c": TWO}), TWO, "one text and integers"),
        (Dict({"a": gym.spaces.Text(5), "b": Box(-1, 1, (2,))}), TWO, "b: expected integers of a range"),
        (Dict({"a": Box(0, 255, (64, 64, 3), np.uint8), "b": Box(-1, 1, (2,))}), TWO, "picture in 'a'.*FilterObs"),
    ],
)
def test_refused_spaces_name_the_wrapper_that_helps(observation: Any, action: Any, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        choose_adapter(observation, action)


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1", "Blackjack-v1", "Acrobot-v1"])
def test_environments_of_gymnasium(name: str) -> None:
    env = make(f"gym:{name}", seed=3)
    check_env(env, skip_render_check=True)
    again = pickle.loads(pickle.dumps(env))
    for left, right in zip(env.reset(seed=5)[0].values(), again.reset(seed=5)[0].values(), strict=True):
        np.testing.assert_array_equal(left, right)


def test_registered_tasks() -> None:
    register_task("test-lake", frozen_lake, domain="tests", loss_weight=2)
    register_task("test-lake", frozen_lake, domain="tests", loss_weight=2)  # as when a module is imported twice
    register_task("test-pixels", pixels, domain="tests", context_window=20)
    register_task("test-text", "envs.test_registry:text", domain="tests")
    assert "tests" in domain_names()
    assert expand_tasks(["tests"]) == ["test-lake", "test-pixels", "test-text"]
    lake, picture, words = find_tasks(["tests"])
    assert (lake.observation, lake.loss_weight, lake.context_window) == ("discrete", 2.0, 256)
    assert (picture.observation, picture.context_window) == ("image", 20)
    assert (words.observation, words.action) == ("discrete+text", "discrete")

    env = make("test-text")
    observation, _ = env.reset(seed=1)
    assert observation["discrete_observation"].shape == (2,)
    for action in range(3):
        env.step(action)
    assert env.unwrapped.actions == [5, 6, 7]  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"action: expected an integer in \[0, 3\), got 3"):
        env.step(3)

    for form in (SyncVectorEnv, AsyncVectorEnv):
        vector = form([lambda: make("test-text")] * 2)
        observations, _ = vector.reset(seed=3)
        assert list(observations["text_observation"]) == [
            make("test-text").reset(seed=s)[0]["text_observation"] for s in (3, 4)
        ]
        vector.close()


def test_step_limit_of_a_maker_without_one() -> None:
    register_task("test-limit", frozen_lake, domain="tests2")
    env = make("test-limit", max_episode_steps=1)
    env.reset(seed=0)
    assert env.step(0)[3]
    with pytest.raises(TypeError, match=r"make\('test-limit'\): unexpected option 'width'"):
        make("test-limit", width=3)


def test_refused_registrations() -> None:
    register_task("test-taken", frozen_lake)
    for name, maker, options, message in (
        ("test-taken", pixels, {}, "expected a name that no other task has"),
        ("test-taken", frozen_lake, {"loss_weight": 3}, "expected a name that no other task has"),
        ("atari-pong", pixels, {}, "that of a published task"),
        ("my task", pixels, {}, "name: expected letters"),
        ("gym:x", pixels, {}, "name: expected letters"),
        ("all", pixels, {}, "name: expected another than all"),
        ("test-x", pixels, {"domain": "atari"}, "domain: expected .* none of all, atari"),
        ("test-x", 3, {}, "maker: expected a function"),
        ("test-x", "no_colon", {}, "maker: expected a function"),
        ("test-x", pixels, {"observation": "pixels"}, "observation: expected one of continuous"),
        ("test-x", pixels, {"context_window": 0}, "context_window: expected"),
        ("test-x", pixels, {"loss_weight": 0}, "loss_weight: expected"),
        ("test-x", pixels, {"success": "yes"}, "success: expected"),
    ):
        with pytest.raises(TaskError, match=message):
            register_task(name, maker, **options)  # type: ignore[arg-type]
    with pytest.raises(TaskError, match="test-taken: observation: expected one of continuous"):
        get_task("test-taken", "pixels")  # type: ignore[arg-type]


def test_broken_makers() -> None:
    register_task("test-gone", "no_such_module:make")
    register_task("test-nameless", "envs.test_registry:no_such_name")
    register_task("test-none", lambda: None)  # type: ignore[arg-type,return-value]
    for name, message in (
        ("test-gone", "test-gone: expected a module that can be imported, got no_such_module:make"),
        ("test-nameless", "test-nameless: expected a name of the module"),
        ("test-none", r"test-none: maker: expected it to return a gymnasium\.Env, got NoneType"),
        ("gym:Nope-v1", "gym:Nope-v1: Environment `Nope` doesn't exist"),
        ("gym:no_such_module:X-v0", "no_such_module"),
        ("test-lak", "no task is named 'test-lak'"),
    ):
        with pytest.raises((TaskError, UnknownTaskError), match=message):
            get_task(name)


def test_an_observation_that_changes_its_size() -> None:
    register_task("test-growing", lambda: Fixed(Box(-1, 1, (3,)), then=np.zeros(4, np.float32)))
    env = make("test-growing")
    env.reset(seed=0)
    with pytest.raises(InputError, match="expected 3 values, as its space has, got 4"):
        env.step(0)
    register_task(
        "test-shrinking", lambda: Fixed(Box(0, 255, (30, 30, 3), np.uint8), then=np.zeros((9, 9, 3), np.uint8))
    )
    env = make("test-shrinking")
    env.reset(seed=0)
    with pytest.raises(InputError, match=r"expected uint8 \[30, 30, 3\], as its space says, got uint8 \[9, 9, 3\]"):
        env.step(0)
    missing = Dict({"a": TWO, "b": TWO})
    register_task("test-missing", lambda: Fixed(missing, then={"a": 1}))
    env = make("test-missing")
    env.reset(seed=0)
    with pytest.raises(InputError, match=r"observation\['b'\]: expected one of Discrete\(2\)"):
        env.step(0)


def test_task_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "good_tasks.py").write_text(
        "from jat_engine.envs import register_task\n"
        "import gymnasium\n"
        "register_task('module-cart', lambda: gymnasium.make('CartPole-v1'))\n"
    )
    (tmp_path / "broken_tasks.py").write_text("1 / 0\n")
    load_task_module("good_tasks")
    assert get_task("module-cart").module == "good_tasks"
    for module, message in (
        ("broken_tasks", "--task_module broken_tasks: .*ZeroDivisionError: division by zero"),
        ("no_such_tasks", "--task_module no_such_tasks: .*No module named 'no_such_tasks'"),
    ):
        with pytest.raises(TaskError, match=message):
            load_task_module(module)


def test_worker_processes_import_the_module_that_registers_an_id(tmp_path: Path) -> None:
    """Also if another module was loaded after it, and not for the ids of Gymnasium itself."""
    for name in ("First", "Second"):
        (tmp_path / f"{name.lower()}_ids.py").write_text(
            "import gymnasium\n"
            f"gymnasium.register('{name}-v0', entry_point='gymnasium.envs.classic_control.cartpole:CartPoleEnv')\n"
        )
    program = (
        "from jat_engine.envs import get_task, load_task_module\n"
        "load_task_module('first_ids')\n"
        "load_task_module('second_ids')\n"
        "print([get_task(f'gym:{name}').module for name in ('First-v0', 'First', 'Second-v0', 'CartPole-v1')])\n"
    )
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert found == "['first_ids', 'first_ids', 'second_ids', None]\n"


def test_a_name_for_a_task_of_ones_own_is_free() -> None:
    register_task("test-used", frozen_lake, domain="tests3")
    for name, expected in (
        ("my-robot", True),
        ("test-used", False),
        ("atari-pong", False),
        ("atari", False),
        ("tests3", False),
        ("all", False),
        ("my robot", False),
        ("gym:CartPole-v1", False),
    ):
        assert is_free(name) == expected, name


def test_entry_points_of_installed_packages(tmp_path: Path) -> None:
    """A package's tasks have names without any flag, and a broken package is one warning."""
    for name, body in (
        ("goodpkg", "from jat_engine.envs import register_task\nregister_task('pkg-lake', 'gymnasium:make')\n"),
        ("badpkg", "raise RuntimeError('broken')\n"),
    ):
        (tmp_path / f"{name}.py").write_text(body)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[jat_engine.tasks]\n{name} = {name}\n")
    program = (
        "import warnings\n"
        "from jat_engine.envs import registered_names\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    names = registered_names()\n"
        "print('pkg-lake' in names, len(names), [str(one.message) for one in caught])\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True
    ).stdout
    assert found.startswith("True 158 ['tasks of the package badpkg are left out: importing badpkg raised RuntimeError")
