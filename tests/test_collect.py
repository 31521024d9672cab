"""Expert episodes as a dataset: real simulators, real processes, real files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from jat_engine.experts import demonstrate, make_expert

from jat_engine.cli.environment import evaluation_env
from jat_engine.data import check_episode, collect
from jat_engine.data.collection import Collection, choose_splits
from jat_engine.data.columns import task_columns
from jat_engine.data.shards import ShardWriter, episode_row, read_rows, schema
from jat_engine.data.unfinished import Progress
from jat_engine.envs import TASKS

OPEN: dict[str, Any] = {"tasks": ["babyai-open"], "num_episodes": 20, "noise": 0.9}
"""Some of these fail: every second episode is noisy."""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Collected in one go by one process."""
    folder = tmp_path_factory.mktemp("one") / "whole"
    collect(**OPEN, output_dir=folder, num_workers=1)
    return folder


# ---- what is stored ------------------------------------------------------------------------------------------------


def test_stored_are_the_first_successful_episodes_and_what_the_expert_did(whole: Path) -> None:
    task = TASKS["babyai-open"]
    collection = Collection.read(whole / task.name)
    assert collection is not None
    assert collection.attempts == collection.seeds[-1] + 1
    assert collection.successes == collection.num_episodes == 20
    assert 0.5 < collection.success_rate < 1  # type: ignore[operator]
    env = evaluation_env(task)
    expert = make_expert(task, env)
    played = {seed: demonstrate(env, expert, task=task, seed=seed, noise=0.9) for seed in range(6)}
    assert [seed for seed, episode in played.items() if episode.success] == [s for s in collection.seeds if s < 6]
    splits = {split: datasets.load_dataset(str(whole), task.name, split=split) for split in ("train", "test")}
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 18, "test": 2}
    positions = dict.fromkeys(splits, 0)
    for seed, split, return_ in zip(collection.seeds, collection.splits, collection.returns, strict=True):
        row = splits[split][positions[split]]
        positions[split] += 1
        episode = check_episode(row, source="row", task=task.name)
        assert episode["rewards"].sum() == pytest.approx(return_, rel=1e-5)
        if seed in played:
            for name, values in played[seed].columns.items():
                assert np.array_equal(episode[name], values), name


def test_every_kind_of_task_is_read_by_datasets(tmp_path: Path) -> None:
    """Frames included, whose fourth channel image software likes to take for transparency."""
    rng = np.random.default_rng(0)
    steps = 5
    columns: dict[str, Any] = {
        "continuous_observations": rng.normal(size=(steps, 3)),
        "continuous_actions": rng.normal(size=(steps, 2)),
        "text_observations": ["go to the é", "", "a", "b", "c"],
        "discrete_observations": rng.integers(0, 9, (steps, 148)),
        "image_observations": rng.integers(0, 256, (steps, 84, 84, 4), np.uint8),
        "discrete_actions": rng.integers(0, 6, steps),
        "rewards": rng.normal(size=steps),
    }
    columns["image_observations"][0, ..., 3] = 0
    for name in ("mujoco-ant", "babyai-open", "atari-pong"):
        names = task_columns(TASKS[name])
        episode = check_episode({n: columns[n] for n in names}, source="x", task=name)
        writer = ShardWriter(tmp_path, name, schema(names))
        writer.append(episode_row(episode))
        (file,) = writer.close()
        (row,) = datasets.load_dataset("parquet", data_files=str(file), split="train", cache_dir=str(tmp_path / "c"))
        assert list(row) == list(names)
        if "image_observations" in row:
            assert {image.mode for image in row["image_observations"]} == {"RGBA"}
            row["image_observations"] = np.stack(row["image_observations"])
        for column, values in episode.items():
            assert np.array_equal(row[column], values), column


def test_shards_are_cut_by_size_and_hold_every_row_in_order(tmp_path: Path) -> None:
    names = task_columns(TASKS["mujoco-ant"])
    episodes = [
        check_episode(
            {
                "continuous_observations": np.full((10 + i, 27), i),
                "continuous_actions": np.full((10 + i, 8), i),
                "rewards": np.full(10 + i, i),
            },
            source="x",
        )
        for i in range(7)
    ]
    rows = [episode_row(episode) for episode in episodes]
    writer = ShardWriter(tmp_path, "train", schema(names), shard_bytes=rows[0].nbytes * 3)
    for row in rows:
        writer.append(row)
    files = writer.close()
    assert [file.name for file in files] == [f"train-{i:05d}-of-00004.parquet" for i in range(4)]
    assert sorted(tmp_path.iterdir()) == files
    read = [row for file in files for row in read_rows(file)]
    assert [row["rewards"][0].as_py() for row in read] == [episode["rewards"].tolist() for episode in episodes]


@pytest.mark.parametrize(
    ("count", "fraction", "tests"), [(1, 0.5, 0), (2, 0.01, 1), (2, 0.99, 1), (10, 0.1, 1), (95, 0.1, 10), (9, 0, 0)]
)
def test_splits(count: int, fraction: float, tests: int) -> None:
    splits = choose_splits(count, fraction, seed=3)
    assert splits.count("test") == tests
    assert splits.count("train") == count - tests
    assert splits == choose_splits(count, fraction, seed=3)


def test_splits_hardly_change_as_a_task_grows() -> None:
    small, large = choose_splits(200, 0.1, 0), choose_splits(400, 0.1, 0)
    tests = [i for i, split in enumerate(small) if split == "test"]
    assert sum(large[i] == "test" for i in tests) >= 0.7 * len(tests)
    assert small != choose_splits(200, 0.1, 1)


# ---- interruptions -------------------------------------------------------------------------------------------------


def processes(group: int) -> list[int]:
    """Those of a process group that run (a zombie does not)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, _, rest = stat.read_text().partition(" ")
        except OSError:
            continue
        state, _, its_group = rest.rpartition(")")[2].split()[:3]
        if int(its_group) == group and state != "Z":
            found.append(int(pid))
    return found


def interrupted(folder: Path, how: str, chunks: int) -> subprocess.CompletedProcess[str]:
    """Collect in a process, ended once so many chunks are there: by "kill", of the parent alone, or by "ctrl-c"."""
    if how == "kill":
        call = f"collect(**{OPEN}, output_dir={str(folder)!r}, num_workers=2)"
        command = [sys.executable, "-c", f"from jat_engine.data import collect; {call}"]
    else:
        flags = ["--tasks", *OPEN["tasks"], "--num_episodes", "20", "--noise", "0.9", "--num_workers", "2"]
        command = [sys.executable, "-m", "jat_engine.cli", "collect", *flags, "--output_dir", str(folder)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    while process.poll() is None and len(list(folder.glob(".incomplete/*/episodes-*.parquet"))) < chunks:
        time.sleep(0.005)
    if how == "kill":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGINT)
    error = process.stderr.read()
    process.wait()
    until = time.monotonic() + 10
    while processes(process.pid) and time.monotonic() < until:
        time.sleep(0.02)
    assert processes(process.pid) == []
    return subprocess.CompletedProcess(command, process.returncode, stderr=error)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_killed_interrupted_and_resumed_by_other_workers_it_is_the_same(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "whole"
    assert interrupted(folder, "kill", 1).returncode == -signal.SIGKILL
    assert not (folder / "babyai-open").exists()
    done = len(list(folder.glob(".incomplete/*/episodes-*.parquet")))
    stopped = interrupted(folder, "ctrl-c", done + 1)
    assert stopped.returncode == 130
    assert stopped.stderr.splitlines() == ["jat-engine: interrupted"]
    assert not (folder / "babyai-open").exists()
    (folder / ".incomplete/babyai-open/episodes-0000000-0000009.parquet.1.tmp").write_bytes(b"half")

    events: list[Any] = []
    collect(**OPEN, output_dir=folder, num_workers=2, on_progress=events.append)
    first = next(e for e in events if isinstance(e, Progress) and e.attempts)  # what the others left
    collection = events[-1]
    assert 0 < first.attempts < collection.attempts
    assert contents(folder) == {
        name: text.replace(b'"one"', b'"push"') for name, text in contents(whole).items()
    }  # nothing is left in .incomplete


def test_a_player_that_dies_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    import multiprocessing

    def kill_player(event: Any) -> None:
        if isinstance(event, Progress) and event.attempts:
            for process in multiprocessing.active_children():
                process.kill()

    with pytest.raises(RuntimeError, match=r"babyai-open, seed .*: the process that played was ended by signal 9"):
        collect(["babyai-open"], tmp_path, num_episodes=40, num_workers=1, on_progress=kill_player)
    assert multiprocessing.active_children() == []
    assert list(tmp_path.glob(".incomplete/babyai-open/episodes-*.parquet"))
    assert os.environ["OMP_NUM_THREADS"] == "1"
