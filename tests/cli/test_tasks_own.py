"""Tasks of one's own on the command line: listed, played, recorded, evaluated; those that fail in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jat_engine.cli import main
from jat_engine.envs import get_task
from jat_engine.envs.rendering import needs_opengl
from jat_engine.evaluation.video import read_video

MODULE = "tasks_of_a_robot"
CODE = """
import gymnasium as gym
import numpy as np

from jat_engine.envs import register_task


class Cells(gym.Env):
    observation_space, action_space = gym.spaces.MultiDiscrete([3, 4]), gym.spaces.Discrete(2)
    render_mode = None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.step_number = 0
        return np.zeros(2, int), {}

    def step(self, action):
        self.step_number += 1
        return np.array([self.step_number % 3, action]), 1.0, self.step_number == 5, False, {}


class Shown(Cells):
    metadata = {"render_modes": ["rgb_array"]}  # without "render_fps"

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def render(self):
        return np.full((31, 45, 3), 40 * self.step_number, np.uint8)


class Strict(Cells):
    def __init__(self, render_mode=None):
        assert render_mode is None


class Letters(Shown):
    def render(self):
        return "#.#"


def broken():
    raise RuntimeError("no robot is connected")


gym.register("robot/Shown-v0", Shown)
gym.register("robot/Blind-v0", Cells)
for name, maker in {"shown": Shown, "blind": Cells, "strict": Strict, "letters": Letters}.items():
    register_task(f"robot-{name}", maker, domain="robots")
register_task("robot-broken", broken, domain="robots")
"""


@pytest.fixture(scope="module", autouse=True)
def module(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("module")
    (folder / f"{MODULE}.py").write_text(CODE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


def run(command: str, *flags: str) -> int:
    return main([command, "--task_module", MODULE, *flags])


def play(command: str, *flags: str) -> int:
    return run(command, "--model_name_or_path", "jat-mini", "--use_cpu", *flags)


# ---- tasks -----------------------------------------------------------------------------------------------------------


def test_a_broken_task_does_not_end_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tasks", "--domain", "robots") == 0
    out = capsys.readouterr().out
    assert out.startswith("5 tasks")
    assert "robot-broken: failed: TaskError: robot-broken: expected an environment that can be made, got" in out
    assert "RuntimeError: no robot is connected" in out
    assert next(line for line in out.splitlines() if "robot-shown" in line).split()[1:3] == ["discrete", "256"]

    assert run("tasks", "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {"atari-pong", "robot-shown", "robot-broken"} <= rows.keys()
    assert rows["robot-shown"]["module"] == MODULE
    assert rows["robot-shown"]["adapter"] == {
        "observation": "discrete",
        "size": 2,
        "action": "discrete",
        "num_actions": 2,
    }
    assert rows["robot-broken"]["status"] == "failed"
    assert rows["atari-pong"]["adapter"] is None


def test_a_check_tells_the_broken_task(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tasks", "--check", "--domain", "robots") == 1
    out = capsys.readouterr().out
    assert "no robot is connected" in out
    assert out.splitlines()[-1] == "4 ok, 1 failed"
    assert run("tasks", "--check", "--search", "robot-s") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 ok"


def test_a_kind_of_observation_is_for_registered_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tasks", "--search", "o", "--adapter", "continuous", "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["robot-shown"]["observation"] == "continuous"
    assert rows["atari-pong"]["observation"] == "image"


# ---- videos ----------------------------------------------------------------------------------------------------------


def test_evaluation_of_own_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("imageio_ffmpeg", reason="needs the video extra")
    flags = ["--save_video", "--output_dir", str(tmp_path), "--num_episodes", "2"]
    assert play("eval", *flags, "--tasks", "gym:robot/Shown-v0") == 0
    assert (tmp_path / "replay.mp4").exists()
    (tmp_path / "replay.mp4").unlink()
    assert play("eval", *flags, "--tasks", "robot-shown") == 0
    assert "4 episode(s) of 2 task(s)" in capsys.readouterr().err

    names = ["gym--robot--Shown-v0", "robot-shown"]
    assert sorted(path.name for path in (tmp_path / "videos").iterdir()) == names
    widths = []
    for name in names:
        frames = list(read_video(tmp_path / "videos" / name / "episode-0000.mp4"))
        assert len(frames) >= 6, "every state, and the last one held"
        widths.append(frames[0].shape[1])
    assert next(read_video(tmp_path / "replay.mp4")).shape[1] >= sum(widths), "both tasks"

    found = json.loads((tmp_path / "results.json").read_text())["tasks"]
    assert list(found) == ["gym:robot/Shown-v0", "robot-shown"]
    for entry in found.values():
        assert entry["returns"] == [5.0, 5.0]
        assert entry["module"] == MODULE
        assert entry["adapter"]["size"] == 2
    assert json.loads((tmp_path / "evaluations.json").read_text()) == {name: [5.0, 5.0] for name in found}


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("robot-blind", "robot-blind: expected an environment that can be made with render_mode='rgb_array', got Type"),
        ("gym:robot/Blind-v0", "expected an environment that can be made with render_mode='rgb_array', got TypeError"),
        ("robot-strict", "expected an environment that can be made with render_mode='rgb_array', got AssertionError;"),
        ("robot-letters", "robot-letters: expected a frame from render(), uint8 [height, width, 3], got '#.#'"),
        ("robot-broken", "robot-broken: expected an environment that can be made, got RuntimeError: no robot"),
    ],
)
def test_what_cannot_be_shown_is_one_line(
    task: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("imageio_ffmpeg", reason="needs the video extra")
    video = tmp_path / "video.mp4"
    assert play("play", "--task", task, "--save_video", str(video)) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("jat-engine: error: ")
    assert message in line
    assert not video.exists()
    if task != "robot-broken":
        assert play("play", "--task", task) == 0


def test_demo_plays_without_a_video_what_cannot_be_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("imageio_ffmpeg", reason="needs the video extra")
    video = tmp_path / "demo.mp4"
    tasks = ["gym:robot/Shown-v0", "robot-blind", "robot-letters"]
    assert run("demo", "--use_cpu", "--tasks", *tasks, "--video", str(video)) == 0
    said = capsys.readouterr()
    assert next(read_video(video)).shape == (474, 630, 3), "one of the tasks"
    assert "no video of robot-blind: " in said.err
    assert "no video of robot-letters: " in said.err
    assert said.out.count("5.00") == 3


def test_mujoco_of_gymnasium_needs_opengl() -> None:
    pytest.importorskip("mujoco", reason="needs the mujoco extra")
    assert needs_opengl(get_task("gym:InvertedPendulum-v5"))
    assert needs_opengl(get_task("mujoco-ant"))
    assert not needs_opengl(get_task("gym:CartPole-v1"))
    assert not needs_opengl(get_task("atari-pong"))
