"""Frames and windows: which OpenGL is taken, errors where there is none, and environments that render side by side."""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from jat_engine.envs import RenderingError, check_rendering, make

HAS_EGL = sys.platform.startswith("linux") and bool(ctypes.util.find_library("EGL"))
pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("metaworld") is None, reason="needs the metaworld extra"),
    pytest.mark.skipif(not HAS_EGL, reason="needs Linux with libEGL"),
]
VARIABLES = ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY", "PYOPENGL_PLATFORM", "SDL_VIDEODRIVER")


def python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, which has these variables of `VARIABLES` only."""
    environ = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ | variables)


def clear(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # restored after the test, whatever sets it meanwhile
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("value", ["banana", "osmesa", "glfw"])
def test_nothing_fails_where_nothing_is_rendered(value: str) -> None:
    """MuJoCo refuses to be imported with a MUJOCO_GL that does not work."""
    code = """
import os
from jat_engine.envs import RenderingError, make
for task in ("mujoco-reacher", "metaworld-reach", "babyai-go-to-obj"):
    env = make(task, seed=0); env.reset(); env.step(env.action_space.sample()); env.close()
try:
    make("mujoco-reacher", render_mode="rgb_array")
except RenderingError as error:
    print(os.environ["MUJOCO_GL"], "|", error)
"""
    done = python(code, MUJOCO_GL=value, DISPLAY=":97")
    assert done.returncode == 0, done.stderr
    kept, _, message = done.stdout.partition(" | ")
    assert kept == value
    if value == "osmesa" and not message:
        pytest.skip("OSMesa is installed")
    assert "MUJOCO_GL" in message
    assert "unset" in message


@pytest.mark.parametrize("task", ["mujoco-hopper", "atari-pong", "babyai-go-to-obj"])
@pytest.mark.parametrize("variables", [{}, {"DISPLAY": ":97"}, {"WAYLAND_DISPLAY": "gone"}])
def test_a_window_without_a_display(task: str, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    clear(monkeypatch, **variables)
    with pytest.raises(RenderingError, match=rf"{task}: .* needs a display.*set DISPLAY"):
        make(task, render_mode="human")


@pytest.mark.parametrize("variables", [{}, {"DISPLAY": ":97"}, {"MUJOCO_GL": ""}])
def test_frames_are_rendered_without_a_display(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    clear(monkeypatch, **variables)
    check_rendering("mujoco-hopper", "rgb_array")
    assert os.environ["MUJOCO_GL"] == "egl"


def test_a_choice_of_opengl_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    clear(monkeypatch, MUJOCO_GL="egl")
    check_rendering("metaworld-reach", "rgb_array")
    assert os.environ["MUJOCO_GL"] == "egl"
    monkeypatch.setenv("MUJOCO_GL", "off")
    check_rendering("mujoco-hopper", None)
    check_rendering("atari-pong", "rgb_array")
    with pytest.raises(RenderingError, match=r"MUJOCO_GL: expected one of glfw, egl, osmesa .* got 'off'"):
        check_rendering("mujoco-hopper", "rgb_array")
    monkeypatch.delenv("MUJOCO_GL")
    check_rendering("mujoco-hopper", None)
    assert "MUJOCO_GL" not in os.environ


SIDE_BY_SIDE = """
import gc, hashlib
import numpy as np
from jat_engine.envs import make

TASKS = "mujoco-hopper", "metaworld-reach", "mujoco-reacher"

def begin(task):
    env = make(task, render_mode="rgb_array", seed=0, width=120, height=90)
    env.reset()
    return env

def frame(env, step):
    if step:
        env.step(np.full(env.action_space.shape, 0.5, np.float32))
    return hashlib.sha1(env.render().tobytes()).hexdigest()

alone = []
for task in TASKS:
    env = begin(task)
    alone.append([frame(env, step) for step in range(4)])
    env.close()
assert len({frames[0] for frames in alone}) == 3

envs = [begin(task) for task in TASKS]
for step in range(2):
    assert [frame(env, step) for env in envs] == [frames[step] for frames in alone], "interleaved"
envs[0].close()
envs[0].close()
assert [frame(env, 2) for env in envs[1:]] == [frames[2] for frames in alone[1:]], "after one is closed"
del env, envs[:2]
gc.collect()
assert frame(envs[0], 3) == alone[2][3], "after one is garbage"
"""


def test_environments_render_their_own_frames() -> None:
    done = python(SIDE_BY_SIDE, MUJOCO_GL="egl")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_closed_environment_renders_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from gymnasium.error import ClosedEnvironmentError

    clear(monkeypatch)
    env: Any = make("mujoco-pendulum", render_mode="rgb_array", seed=0)
    env.reset()
    assert isinstance(env.render(), np.ndarray)
    env.close()
    with pytest.raises(ClosedEnvironmentError, match="make another"):
        env.render()


FORK = """
import functools
from gymnasium.vector import AsyncVectorEnv
from jat_engine.envs import RenderingError, make

maker = functools.partial(make, "mujoco-pendulum", render_mode="rgb_array", width=32, height=32, seed=0)

if __name__ == "__main__":
    children = AsyncVectorEnv([maker] * 2, context="fork")  # the parent has only made an environment
    children.reset()
    print([frame.shape for frame in children.call("render")])
    children.close()
    env = maker()
    env.reset()
    env.render()
    children = AsyncVectorEnv([maker], context="fork")
    children.reset()
    try:
        children.call("render")
    except RenderingError as error:
        print(error)
"""


def test_a_fork_of_a_process_that_has_rendered() -> None:
    """It is refused, since it would wait for ever; a fork of one that has not is not."""
    done = python(FORK, MUJOCO_GL="egl")
    frames, message = done.stdout.splitlines()
    assert frames == "[(32, 32, 3), (32, 32, 3)]"
    assert "context='spawn'" in message
