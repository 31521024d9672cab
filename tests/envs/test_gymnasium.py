"""Habits of Gymnasium's users: ids, the checker, pickling, copies, seeds, actions and options."""

from __future__ import annotations

import copy
import functools
import importlib.util
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from jat_engine import InputError
from jat_engine.envs import TASK_NAME_TO_ENV_ID, TASKS, get_task_names, make

MODULES = {"atari": "ale_py", "babyai": "minigrid", "metaworld": "metaworld", "mujoco": "mujoco"}


def module(task: str) -> str:
    return MODULES[TASKS[task].domain]


def needs(task: str) -> Any:
    skip = pytest.mark.skipif(importlib.util.find_spec(module(task)) is None, reason=f"needs {module(task)}")
    return pytest.param(task, marks=skip)


DISCRETE = [needs("atari-breakout"), needs("babyai-go-to-obj")]
CONTINUOUS = [needs("metaworld-reach"), needs("mujoco-reacher"), needs("mujoco-pusher")]
EACH = pytest.mark.parametrize("task", DISCRETE + CONTINUOUS)


def play(env: Any, steps: int = 5, seed: int | None = 3) -> list[Any]:
    """Return what a few seeded steps show."""
    observation, _ = env.reset(seed=seed)
    env.action_space.seed(0)
    seen: list[Any] = [observation]
    for _ in range(steps):
        seen += env.step(env.action_space.sample())[:4]
    return [plain(value) if isinstance(value, dict) else value for value in seen]


def plain(observation: dict[str, Any]) -> dict[str, bytes]:
    return {name: np.asarray(values).tobytes() for name, values in observation.items()}


# ---- ids


def test_ids_are_registered_by_the_import() -> None:
    ids = {name for name in gymnasium.registry if name.startswith("jat/")}
    assert ids == {f"jat/{task}-v0" for task in TASKS}
    code = """
import gymnasium
assert not any(name.startswith("jat/") for name in gymnasium.registry)
env = gymnasium.make("jat_engine.envs:jat/{}-v0")
env.reset(seed=0)
import jat_engine.envs
print(len([name for name in gymnasium.registry if name.startswith("jat/")]))
"""
    installed = (task for task in ("babyai-go-to-obj", "mujoco-reacher") if importlib.util.find_spec(module(task)))
    command = [sys.executable, "-W", "error", "-c", code.replace("{}", next(installed))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "157"


@EACH
def test_an_id_makes_the_same_environment(task: str) -> None:
    env = gymnasium.make(f"jat/{task}-v0")
    expected = play(make(task))
    assert play(env) == expected
    assert env.spec is not None
    assert env.spec.id == f"jat/{task}-v0"
    assert play(gymnasium.make(env.spec)) == expected
    assert play(gymnasium.make(make(task).spec)) == expected


@pytest.mark.parametrize(("task", "limit"), [("mujoco-reacher", 50), ("metaworld-reach", 100)])
def test_time_limits_of_ids_can_be_moved(task: str, limit: int) -> None:
    """Also beyond the published one, as for other ids of Gymnasium."""
    pytest.importorskip(module(task))
    assert gymnasium.spec(f"jat/{task}-v0").max_episode_steps == limit
    for env, expected in (
        (gymnasium.make(f"jat/{task}-v0"), limit),
        (gymnasium.make(f"jat/{task}-v0", max_episode_steps=limit + 7), limit + 7),
        (make(task), limit),
        (make(task, max_episode_steps=9), 9),
        (gymnasium.make(make(task, max_episode_steps=9).spec), 9),
        (pickle.loads(pickle.dumps(make(task, max_episode_steps=9))), 9),
    ):
        env.reset(seed=0)
        steps, truncated = 0, False
        while not truncated:
            _, _, _, truncated, _ = env.step(np.zeros(env.action_space.shape, np.float32))
            steps += 1
        assert steps == expected


def test_published_names() -> None:
    assert get_task_names() == list(TASK_NAME_TO_ENV_ID) == list(TASKS)
    assert TASK_NAME_TO_ENV_ID["metaworld-reach"] == "reach-v2"
    assert TASK_NAME_TO_ENV_ID["mujoco-pusher"] == "Pusher-v4"
    pytest.importorskip("minigrid")
    assert play(make(task_name="babyai-go-to-obj")) == play(make("babyai-go-to-obj"))


@EACH
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_vectors_of_an_id(task: str, kind: str) -> None:
    env = gymnasium.make_vec(f"jat/{task}-v0", num_envs=2, vectorization_mode=kind)
    first, _ = env.reset(seed=3)
    alone, _ = gymnasium.make(f"jat/{task}-v0").reset(seed=4)
    for name, values in alone.items():
        assert np.array_equal(first[name][1], values)
    env.action_space.seed(0)
    for _ in range(3):
        env.step(env.action_space.sample())
    env.close()


# ---- the checker


@EACH
def test_the_checker_passes(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For what `make` returns, for an id, and for the unwrapped environment, with frames."""
    from gymnasium.utils.env_checker import check_env

    if TASKS[task].observation == "continuous":
        monkeypatch.setenv("MUJOCO_GL", "egl")
    harmless = ("is different from the unwrapped version", "A Box observation space", "For Box action spaces")
    small = {"width": 32, "height": 32} if TASKS[task].observation == "continuous" else {}
    for env in (make(task, **small), make(task, **small).unwrapped):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert env.metadata["render_modes"] == ["human", "rgb_array"]
            env.metadata = {**env.metadata, "render_modes": ["rgb_array"]}  # a window needs a display
            check_env(env, skip_render_check=TASKS[task].domain in ("atari", "metaworld"))  # slow
        assert [str(each.message) for each in caught if not any(text in str(each.message) for text in harmless)] == []


# ---- pickling and copies


@EACH
def test_a_pickled_environment_is_made_again(task: str) -> None:
    made: Any = make(task, seed=5, max_episode_steps=400)
    again = pickle.loads(pickle.dumps(made))
    assert play(again, seed=None) == play(made, seed=None)
    assert again.spec == made.spec
    used = pickle.loads(pickle.dumps(made))
    with pytest.raises(gymnasium.error.ResetNeeded):
        used.step(used.action_space.sample())


@EACH
def test_an_environment_is_not_copied_without_its_state(task: str) -> None:
    env = make(task)
    for one in (env, gymnasium.wrappers.TimeLimit(env, 10)):
        with pytest.raises(TypeError, match=f"{task}: an environment cannot be copied with its state; make another"):
            copy.deepcopy(one)
    with pytest.raises(TypeError, match="cannot be copied"):
        copy.copy(env)


# ---- seeds and actions


@EACH
def test_seeds_of_any_integer_type(task: str) -> None:
    env = make(task)
    for seed in (np.uint8(3), np.array(3), 10**30):
        assert play(env, 2, seed=seed) == play(env, 2, seed=int(seed)) == play(make(task, seed=seed), 2, seed=None)


@EACH
@pytest.mark.parametrize("seed", [-1, 1.5, "1", [1]], ids=str)
def test_other_seeds_are_refused(task: str, seed: Any) -> None:
    with pytest.raises(InputError, match="seed: expected None or an integer of at least 0, got"):
        make(task, seed=seed)
    env = make(task, seed=2)
    with pytest.raises(InputError, match="seed: expected None or an integer of at least 0, got"):
        env.reset(seed=seed)
    assert play(env, 1, seed=None) == play(make(task), 1, seed=2), "the refused reset used nothing up"


@pytest.mark.parametrize("task", DISCRETE)
def test_discrete_actions(task: str) -> None:
    env = make(task)

    def observe(action: Any) -> Any:
        env.reset(seed=1)
        return plain(env.step(action)[0])

    expected = observe(1)
    for action in (np.int32(1), np.array(1), np.array([1]), torch.tensor(1), torch.tensor([[1]])):
        assert observe(action) == expected
    # Python would take -1 for the last action.
    for action in (-1, 99, 1.0, None, "left", [1], np.array([1, 1]), np.array(0.5), float("nan")):
        with pytest.raises(InputError, match=r"action: expected an integer in \[0, "):
            observe(action)


@pytest.mark.parametrize("task", CONTINUOUS)
def test_continuous_actions(task: str) -> None:
    env = make(task)
    size = env.action_space.shape[0]

    def observe(action: Any) -> Any:
        env.reset(seed=1)
        return env.step(action)[0]["continuous_observation"].tolist()

    expected = observe(np.full(size, 0.5, np.float32))
    same: list[Callable[[list[float]], Any]] = [list, tuple, np.array, torch.tensor, lambda x: np.array([x])]
    for convert in same:
        assert observe(convert([0.5] * size)) == expected
    for action in (None, "left", [0.5], [0.5] * (size + 1), [[0.5], [0.5, 0.5]], [float("nan")] * size, [None] * size):
        with pytest.raises(InputError, match="action: expected numbers"):
            observe(action)


# ---- options


@pytest.mark.skipif(importlib.util.find_spec("ale_py") is None, reason="needs the atari extra")
def test_options_of_atari() -> None:
    def ale(**options: Any) -> Any:
        return make("atari-pong", **options).unwrapped.ale

    assert ale(repeat_action_probability=0.25).getFloat("repeat_action_probability") == 0.25
    assert make("atari-pong", full_action_space=True).action_space.n == 18
    assert make("atari-pong").action_space.n == 6
    assert (ale(mode=1).getFloat("repeat_action_probability"), ale(difficulty=1) is not None) == (0.0, True)

    def frames(**options: Any) -> int:
        env = make("atari-pong", **options)
        before = env.reset(seed=0)[1]["episode_frame_number"]
        return int(env.step(0)[4]["episode_frame_number"] - before)

    assert (frames(), frames(frameskip=2)) == (4, 8)
    for options in ({"difficulty": 77}, {"mode": 99}, {"frameskip": 0}, {"repeat_action_probability": 1.5}):
        (name,) = options
        with pytest.raises(ValueError, match=name):
            make("atari-pong", **options)


@pytest.mark.skipif(importlib.util.find_spec("metaworld") is None, reason="needs the metaworld extra")
def test_cameras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")

    def frame(task: str, **options: Any) -> Any:
        env = make(task, render_mode="rgb_array", width=np.int64(64), height=48, **options)
        env.reset(seed=0)
        return env.render()

    published, top = frame("metaworld-reach"), frame("metaworld-reach", camera_id=0)
    assert published.shape == (48, 64, 3)
    assert not np.array_equal(published, top)
    track = frame("mujoco-ant", camera_name="track")
    assert np.array_equal(track, frame("mujoco-ant", camera_id=0))
    assert not np.array_equal(track, frame("mujoco-ant"))


@pytest.mark.skipif(importlib.util.find_spec("metaworld") is None, reason="needs the metaworld extra")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"camera_name": "side"}, "camera_name: expected one of topview, .* got 'side'"),
        ({"camera_id": 7}, "camera_id: expected -1 to 6, got 7"),
        ({"camera_id": 0, "camera_name": "topview"}, "camera_id: expected None with camera_name"),
        ({"width": 0}, "width: expected at least 1 pixel, got 0"),
        ({"height": 1.5}, "height: expected at least 1 pixel, got 1.5"),
        ({"max_episode_steps": 0}, "max_episode_steps: expected at least 1"),
    ],
    ids=str,
)
def test_options_that_a_simulator_would_misread(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make("metaworld-reach", **options)


@EACH
def test_unknown_options_are_named(task: str) -> None:
    for build in (make, functools.partial(gymnasium.make, f"jat/{task}-v0")):
        arguments = (task,) if build is make else ()
        with pytest.raises(TypeError, match=rf"make\('{task}'\): unexpected option 'speed'; \w+ takes render_mode"):
            build(*arguments, speed=2)
    env = make(task)
    env.reset()
    with pytest.raises(ValueError, match="render_mode='rgb_array'"):
        env.render()
    env.close()
    env.close()
