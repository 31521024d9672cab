"""Recorders of episodes: videos with every state, which neither change an episode nor fail with it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jat_engine.atomic_io import temporary_path
from jat_engine.envs import TASKS, Task
from jat_engine.errors import MissingSimulatorError, RenderingError
from jat_engine.evaluation.environment import evaluation_env
from jat_engine.evaluation.video import read_video
from jat_engine.runs.recording import EpisodeRecorder, VideoRecorder, episode_path, parse_episode_choice
from jat_engine.runs.records import Episode

pytest.importorskip("imageio_ffmpeg", reason="needs the video extra")

BABYAI = TASKS["babyai-go-to-obj"]


def make_env(task: Task, render_mode: str | None = "rgb_array") -> Any:
    try:
        return evaluation_env(task, render_mode)
    except (MissingSimulatorError, RenderingError) as error:
        pytest.skip(str(error))


def play(env: Any, seed: int, steps: int, recorder: EpisodeRecorder | None = None) -> list[Any]:
    """Play random actions, and return what the environment gives: observations, and after each action the reward."""
    env.action_space.seed(seed)
    observation, _ = env.reset(seed=seed)
    given = [observation]
    if recorder is not None:
        recorder.begin(env)
    for _ in range(steps):
        before, action = given[-1], env.action_space.sample()
        observation, reward, terminated, truncated, _ = env.step(action)
        given += [float(reward), observation]
        if recorder is not None:
            recorder.step(before, action, float(reward), env)
        if terminated or truncated:
            break
    return given


def episode(task: Task, seed: int, given: list[Any]) -> Episode:
    return Episode(task.name, 3, seed, sum(given[1::2]), len(given) // 2)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# ---- videos --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["atari-breakout", "babyai-open", "metaworld-drawer-open", "mujoco-hopper"])
def test_recording_a_video_changes_no_episode(name: str, tmp_path: Path) -> None:
    """Every state has its frame, and observations and rewards are those of an environment that does not render."""
    task, path = TASKS[name], tmp_path / "videos" / "v.mp4"
    recorder = VideoRecorder(task, 3, 7, path)
    env, plain = make_env(task), make_env(task, None)
    for seed in (1, 7):  # the second with an environment that has rendered before
        given = play(env, seed, 12, recorder := VideoRecorder(task, 3, seed, path))
        recorder.finish(episode(task, seed, given))
        assert recorder.error == ""
        expected = play(plain, seed, 12)
        assert given[1::2] == expected[1::2]
        for ours, theirs in zip(given[::2], expected[::2], strict=True):
            assert ours.keys() == theirs.keys()
            for key in ours:
                np.testing.assert_array_equal(ours[key], theirs[key])
    env.close()
    plain.close()

    frames = list(read_video(path))
    states = len(given) // 2 + 1
    fps = {"atari": 15, "babyai": 3, "metaworld": 20, "mujoco": 20}[task.domain]
    assert len(frames) == states + max(fps, 3 * fps - states)
    assert f"{name}, episode 3, seed 7".encode() in path.read_bytes()
    changes = [np.abs(a.astype(int) - b).max() > 64 for a, b in itertools.pairwise(frames)]
    assert all(changes[: states - 1]), "the number of the step changes"
    assert not any(changes[states:]), "the last state is held"


def test_a_gif_shows_every_state_too(tmp_path: Path) -> None:
    path = tmp_path / "e.gif"
    recorder = VideoRecorder(BABYAI, 3, 0, path)
    given = play(make_env(BABYAI), 0, 5, recorder)
    recorder.finish(episode(BABYAI, 0, given))
    assert recorder.error == ""
    with Image.open(path) as image:
        durations = []
        for index in range(image.n_frames):
            image.seek(index)
            durations.append(image.info["duration"])
    assert durations == [340] * 5 + [340 + 3 * 340], "the last one, too, is held"


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_an_episode_that_is_abandoned_leaves_nothing(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"e{suffix}"
    env = make_env(BABYAI)
    recorder = VideoRecorder(BABYAI, 3, 0, path)
    play(env, 0, 5, recorder)
    recorder.abandon()
    recorder.abandon()
    assert files(tmp_path) == []

    path.write_bytes(b"earlier")
    temporary_path(path).write_bytes(b"of a process that was killed")
    temporary_path(tmp_path / f"other{suffix}").write_bytes(b"of one that is at work")
    recorder = VideoRecorder(BABYAI, 3, 0, path)
    given = play(env, 0, 5, recorder)
    assert path.read_bytes() == b"earlier", "until the new one is complete"
    recorder.finish(episode(BABYAI, 0, given))
    assert len(path.read_bytes()) > 1000
    assert len(files(tmp_path)) == 2


class Blind:
    """Environment that stops rendering."""

    def __init__(self, env: Any, frames: int, frame: Any) -> None:
        self._env, self._frames, self._frame = env, frames, frame

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def render(self) -> Any:
        self._frames -= 1
        if self._frames >= 0:
            return self._env.render()
        if isinstance(self._frame, Exception):
            raise self._frame
        return self._frame


@pytest.mark.parametrize("frames", [0, 3])
@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (None, "expected a frame from render(), uint8 [height, width, 3], got None"),
        (np.zeros((4, 4)), "got float64 [4, 4]"),
        (RuntimeError("lost\nthe GPU"), "RuntimeError: lost the GPU"),
    ],
)
def test_a_video_that_fails_does_not_fail_the_episode(frames: int, frame: Any, message: str, tmp_path: Path) -> None:
    recorder = VideoRecorder(BABYAI, 3, 0, tmp_path / "e.mp4")
    given = play(Blind(make_env(BABYAI), frames, frame), 0, 6, recorder)
    recorder.finish(episode(BABYAI, 0, given))
    assert len(given) == 13
    assert recorder.error.startswith("no video of babyai-go-to-obj, episode 3: ")
    assert message in recorder.error
    assert "\n" not in recorder.error
    assert files(tmp_path) == []


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_folder_that_cannot_be_written_to_is_one_line(suffix: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    recorder = VideoRecorder(BABYAI, 3, 0, tmp_path / "file" / f"e{suffix}")
    given = play(make_env(BABYAI), 0, 3, recorder)
    recorder.finish(episode(BABYAI, 0, given))
    assert "Not a directory" in recorder.error or "File exists" in recorder.error
    assert "\n" not in recorder.error


def test_an_encoder_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import imageio_ffmpeg

    encoder = tmp_path / "ffmpeg"
    encoder.write_text('#!/bin/sh\nfor last; do :; done\nhead -c 100 > "$last"; echo No space left >&2; exit 1\n')
    encoder.chmod(0o755)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(encoder))
    recorder = VideoRecorder(BABYAI, 3, 0, tmp_path / "e.mp4")
    given = play(make_env(BABYAI), 0, 3, recorder)
    recorder.finish(episode(BABYAI, 0, given))
    assert "No space left" in recorder.error
    assert files(tmp_path) == ["ffmpeg"]


# ---- choice --------------------------------------------------------------------------------------------------------


def test_files_are_named_by_task_and_index() -> None:
    assert episode_path(Path("run/videos"), BABYAI, 3, ".mp4") == Path("run/videos/babyai-go-to-obj/episode-0003.mp4")
    assert episode_path(Path("x"), BABYAI, 12_345, ".gif").name == "episode-12345.gif"


@pytest.mark.parametrize(
    ("texts", "chosen"),
    [
        (["all"], range(10)),
        (["first:3"], range(3)),
        (["first:30"], range(10)),
        (["0", "3", "9", "3"], (0, 3, 9)),
        (["first:2", "7"], (0, 1, 7)),
    ],
)
def test_episodes_are_chosen(texts: list[str], chosen: Any) -> None:
    assert parse_episode_choice(texts, 10) == frozenset(chosen)


@pytest.mark.parametrize(
    ("texts", "got"),
    [
        ([], "got nothing"),
        (["10"], "got 10; the first episode has index 0, and --num_episodes 11 plays this one, too"),
        (["-1"], "got '-1'"),
        (["first:0"], "with N of at least 1, got 'first:0'"),
        (["first:"], "got 'first:'"),
        (["1,2"], "got '1,2'"),
        (["every"], "got 'every'"),
        (["²"], "got '²'"),
    ],
)
def test_a_wrong_choice_is_refused(texts: list[str], got: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_episode_choice(texts, 10)
    assert str(caught.value) == f"--video_episodes: expected indices from 0 to 9, first:N, or all, {got}"
