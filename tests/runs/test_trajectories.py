"""Trajectories: the episodes of an evaluation in the published columns, read back by everything that reads datasets."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="needs the train extra")

import pyarrow.parquet as pq

from jat_engine.atomic_io import temporary_path
from jat_engine.datasets.frames import EncodedFrames
from jat_engine.datasets.parquet import episode_row, read_rows
from jat_engine.datasets.schema import check_episode, task_columns, task_features
from jat_engine.datasets.sources import open_source
from jat_engine.envs import TASKS, Task
from jat_engine.evaluation.environment import evaluation_env, missing_simulators
from jat_engine.runs import trajectories
from jat_engine.runs.plan import Item
from jat_engine.runs.recorders import Recorders
from jat_engine.runs.records import Episode
from jat_engine.runs.slots import Act, Begin, Ended, PlayOptions, Slots
from jat_engine.runs.trajectories import TrajectoryRecorder, check_trajectories


def play(task: Task, folder: Path, indices: list[int], max_steps: int = 12) -> tuple[list[Episode], list[Any]]:
    """Play episodes with random actions as a run does.

    Returns:
        The episodes, and (observation, action, reward) of all steps.
    """
    if missing := missing_simulators([task]):
        pytest.skip(missing[task.name])
    slots = Slots({task.name: task}, PlayOptions(max_steps=max_steps, recording=Recorders(folder, trajectories=True)))
    episodes, steps = [], []
    for index in indices:
        report = slots.obey(Begin(0, Item(task.name, index, 100 + index)))
        space = report.action_space
        space.seed(index)
        while not isinstance(report, Ended):
            before = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in report.observation.items()}
            action = space.sample()
            report = slots.obey(Act(0, action if task.action == "discrete" else action.tolist()))
            steps.append((before, action, getattr(report, "reward", None)))  # the last reward is not reported
        assert report.problems == ()
        episodes.append(report.episode)
    slots.close()
    return episodes, steps


def path_of(folder: Path, task: Task, index: int) -> Path:
    return folder / "trajectories" / task.folder_name / f"episode-{index:04d}.parquet"


@pytest.mark.parametrize("name", ["atari-breakout", "babyai-open", "metaworld-reach", "mujoco-reacher"])
def test_trajectories_are_what_was_played(name: str, tmp_path: Path) -> None:
    task = TASKS[name]
    (episode,), steps = play(task, tmp_path, [3])
    path = path_of(tmp_path, task, 3)
    assert [file.name for file in path.parent.iterdir()] == ["episode-0003.parquet"]
    (row,) = read_rows(path)
    (columns,) = row.to_pylist()
    assert tuple(columns) == task_columns(task)
    assert len(columns["rewards"]) == episode.length == len(steps) == 12
    assert sum(columns["rewards"]) == pytest.approx(episode.return_, rel=1e-6)

    metadata = pq.read_metadata(path).metadata
    described = {key: metadata[f"jat_engine.{key}".encode()].decode() for key in ("index", "seed", "digest", "task")}
    assert described == {"index": "3", "seed": "103", "digest": episode.digest, "task": name}
    assert float(metadata[b"jat_engine.return"]) == episode.return_
    assert metadata[b"jat_engine.capped"] == str(episode.capped).encode()

    datasets = pytest.importorskip("datasets", reason="needs the train extra")
    loaded = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.features == task_features(task)
    (seen,) = loaded
    played = {f"{key}s": [step[0][key] for step in steps] for key in steps[0][0]}
    played[f"{task.action}_actions"] = [step[1] for step in steps]
    played["rewards"] = [*(step[2] for step in steps[:-1]), seen["rewards"][-1]]
    for column, values in played.items():
        got = [np.asarray(image) for image in seen[column]] if column == "image_observations" else seen[column]
        expected = [np.float32(value) for value in values] if column.startswith(("continuous", "rewards")) else values
        np.testing.assert_array_equal(got, expected, err_msg=column)


def test_training_reads_trajectories(tmp_path: Path) -> None:
    """Those that are equal, too: episodes of other seeds are other files."""
    task = TASKS["babyai-go-to-obj"]
    episodes, _ = play(task, tmp_path, [0, 1, 12], max_steps=1)
    source = open_source(str(tmp_path / "trajectories"), task.folder_name, "train", task=task)
    assert source is not None
    assert [path.name for path in source.files] == [f"episode-{index:04d}.parquet" for index in (0, 1, 12)]
    rows = [row for part in source.read() for row in part.table.to_pylist()]
    assert [sum(row["rewards"]) for row in rows] == [episode.return_ for episode in episodes]
    assert open_source(str(tmp_path / "trajectories"), task.folder_name, "test", task=task) is None


def test_frames_are_encoded_while_they_are_played(tmp_path: Path) -> None:
    """Long games fit into memory; the file is the one that arrays give."""
    task = TASKS["atari-breakout"]
    rng = np.random.default_rng(0)
    frames = rng.integers(256, size=(3, 84, 84, 4), dtype=np.uint8)
    recorder = TrajectoryRecorder(task, 0, 0, tmp_path / "e.parquet")
    recorder.begin(None)  # type: ignore[arg-type]  # it does not use the environment
    for frame in frames:
        recorder.step({"image_observation": frame}, 1, 0.5, None)  # type: ignore[arg-type]
    recorder.finish(Episode(task.name, 0, 0, 1.5, 3))
    columns = {"image_observations": frames, "discrete_actions": [1] * 3, "rewards": [0.5] * 3}
    (row,) = read_rows(tmp_path / "e.parquet")
    assert row.equals(episode_row(check_episode(columns, source="here", task=task)))

    with pytest.raises(ValueError, match="expected the same number of steps"):
        check_episode(columns | {"image_observations": EncodedFrames([b""] * 2)}, source="here", task=task)


def test_nothing_is_left_of_an_abandoned_episode(tmp_path: Path) -> None:
    task, path = TASKS["mujoco-reacher"], tmp_path / "e.parquet"
    path.write_bytes(b"earlier")
    temporary_path(path).write_bytes(b"of a process that was killed")
    recorder = TrajectoryRecorder(task, 0, 0, path)
    recorder.begin(None)  # type: ignore[arg-type]
    recorder.step({"continuous_observation": np.zeros(11)}, np.zeros(2, np.float32), 0.0, None)  # type: ignore[arg-type]
    recorder.abandon()
    recorder.finish(Episode(task.name, 0, 0, 0.0, 1))
    assert (recorder.error, path.read_bytes()) == ("", b"earlier")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("observation", "folder", "message"),
    [
        (np.zeros(11), "file", "cannot be written: "),
        (
            np.full(11, np.nan),
            "",
            "column continuous_observations, step 0 (element 0): expected a finite number, got nan",
        ),
    ],
)
def test_a_trajectory_that_fails_does_not_fail_the_episode(
    observation: np.ndarray, folder: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    task = TASKS["mujoco-reacher"]
    recorder = TrajectoryRecorder(task, 3, 0, tmp_path / folder / "e.parquet")
    recorder.begin(None)  # type: ignore[arg-type]
    recorder.step({"continuous_observation": observation}, np.zeros(2, np.float32), 0.0, None)  # type: ignore[arg-type]
    recorder.finish(Episode(task.name, 3, 0, 0.0, 1))
    assert recorder.error.startswith("no trajectory of mujoco-reacher, episode 3: ")
    assert message in recorder.error
    assert "\n" not in recorder.error
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_full_disk_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(path: Path) -> Path:
        (name := temporary_path(path)).symlink_to("/dev/full")
        return name

    monkeypatch.setattr(trajectories, "temporary_path", fill)
    task = TASKS["babyai-go-to-obj"]
    recorder = TrajectoryRecorder(task, 3, 0, tmp_path / "e.parquet")
    env = evaluation_env(task)
    observation, _ = env.reset(seed=0)
    recorder.begin(env)
    recorder.step(observation, 1, 0.0, env)
    recorder.finish(Episode(task.name, 3, 0, 0.0, 1))
    where = f"no trajectory of babyai-go-to-obj, episode 3: {tmp_path / 'e.parquet'}"
    assert recorder.error == f"{where}: cannot be written: No space left on device"
    assert list(tmp_path.iterdir()) == []


def test_trajectories_need_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    check_trajectories()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"--save_trajectories: expected pyarrow, .*'jat-engine\[train\]'"):
        check_trajectories()
