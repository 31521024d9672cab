"""Import datasets in the layout of LeRobot, written here field by field as its documentation describes it."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jat_engine.cli import main
from jat_engine.datasets.collection import Collection

pytestmark = pytest.mark.versions

LENGTHS = [4, 2, 6]
FRAMES = sum(LENGTHS)
EPISODES = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
STATES = np.random.default_rng(0).normal(size=(FRAMES, 3)).astype(np.float32)
ACTIONS = np.random.default_rng(1).normal(size=(FRAMES, 2)).astype(np.float32)
REWARDS = np.arange(FRAMES, dtype=np.float32)


def feature(dtype: str, *shape: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "names": None}


FEATURES = {
    "observation.state": feature("float32", 3),
    "observation.environment_state": feature("float32", 1),
    "observation.images.top": feature("video", 96, 96, 3),
    "observation.wrist": feature("image", 4, 4, 3),
    "action": feature("float32", 2),
    "next.reward": feature("float32", 1),
    "next.done": feature("bool", 1),
    "timestamp": feature("float32", 1),
    "frame_index": feature("int64", 1),
    "episode_index": feature("int64", 1),
    "index": feature("int64", 1),
    "task_index": feature("int64", 1),
}


def table(rows: slice, **changed: Any) -> pa.Table:
    """Return frames as a table of LeRobot: numbers for features of shape [1], lists of fixed size for others."""

    def vector(values: np.ndarray) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])

    count = len(STATES[rows])
    columns = {
        "observation.state": vector(STATES[rows]),
        "observation.environment_state": pa.array(STATES[rows][:, 0] + 1),
        "observation.wrist": pa.array([{"bytes": b"png", "path": None}] * count),
        "action": vector(ACTIONS[rows]),
        "next.reward": pa.array(REWARDS[rows]),
        "next.done": pa.array(np.append(EPISODES[1:] != EPISODES[:-1], True)[rows]),
        "timestamp": pa.array(np.arange(count, dtype=np.float32) / 50),
        "frame_index": pa.array(np.arange(count)),
        "episode_index": pa.array(EPISODES[rows]),
        "index": pa.array(np.arange(FRAMES)[rows]),
        "task_index": pa.array(np.zeros(count, np.int64)),
    }
    return pa.table({name: values for name, values in {**columns, **changed}.items() if values is not None})


def info(folder: Path, **changed: Any) -> None:
    values = {
        "codebase_version": "v3.0",
        "robot_type": "arm",
        "total_episodes": len(LENGTHS),
        "total_frames": FRAMES,
        "total_tasks": 1,
        "fps": 50,
        "splits": {"train": f"0:{len(LENGTHS)}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": FEATURES,
    }
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    (folder / "meta" / "info.json").write_text(json.dumps({**values, **changed}))


def write(folder: Path, lengths: list[int] = LENGTHS, **changed: Any) -> Path:
    """Write version 3: the first two episodes in one file, the third in another."""
    info(folder)
    for number, rows in enumerate((slice(0, 6), slice(6, None))):
        path = folder / "data" / "chunk-000" / f"file-{number:03d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table(rows, **(changed if number else {})), path)
    meta = folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    meta.parent.mkdir(parents=True)
    starts = np.cumsum([0, *lengths])
    episodes = {
        "episode_index": list(range(len(lengths))),
        "tasks": [["push"]] * len(lengths),
        "length": lengths,
        "data/chunk_index": [0] * len(lengths),
        "data/file_index": [int(start >= 6) for start in starts[:-1]],
        "dataset_from_index": starts[:-1].tolist(),
        "dataset_to_index": starts[1:].tolist(),
    }
    pq.write_table(pa.table(episodes), meta)
    pq.write_table(pa.table({"task_index": [0], "task": ["push"]}), folder / "meta" / "tasks.parquet")
    return folder


def run(*arguments: Any) -> int:
    return main(["import", *map(str, arguments)])


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    capsys.readouterr()
    assert run(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("jat-engine: error: ")


def stored(folder: Path) -> list[dict[str, Any]]:
    collection = Collection.read(folder)
    assert collection is not None
    return [row.to_pylist()[0] for row in collection.rows(folder)]


def check(episodes: list[dict[str, Any]]) -> None:
    assert [len(episode["rewards"]) for episode in episodes] == LENGTHS
    for name, values in (
        ("continuous_observations", STATES),
        ("continuous_actions", ACTIONS),
        ("rewards", REWARDS),
    ):
        np.testing.assert_array_equal(np.concatenate([episode[name] for episode in episodes]), values)


def test_states_actions_and_rewards_are_imported_and_the_rest_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "pusht")
    assert run(source, "--task", "pusht", "--output_dir", tmp_path / "d") == 0
    check(stored(tmp_path / "d" / "pusht"))
    output = capsys.readouterr().out
    for words in (
        "video observation.images.top",
        "image observation.wrist",
        "column observation.environment_state",
        "column next.done",
        "language instructions (1 different)",
        "timestamps (50 frames a second)",
    ):
        assert words in output
    assert "column frame_index" not in output
    card = (tmp_path / "d" / "README.md").read_text()
    assert "the LeRobot dataset `pusht`" in card


def test_states_are_joined_on_request(tmp_path: Path) -> None:
    source = write(tmp_path / "a")
    columns = ["observation=observation.environment_state,observation.state"]
    assert run(source, "--task", "arm", "--output_dir", tmp_path / "d", "--columns", *columns) == 0
    joined = np.concatenate([e["continuous_observations"] for e in stored(tmp_path / "d" / "arm")])
    np.testing.assert_array_equal(joined, np.concatenate([STATES[:, :1] + 1, STATES], axis=1))


def test_version_2_has_a_file_for_each_episode(tmp_path: Path) -> None:
    source = tmp_path / "old"
    info(source, codebase_version="v2.1")
    starts = np.cumsum([0, *LENGTHS])
    (source / "data" / "chunk-000").mkdir(parents=True)
    for number, (first, last) in enumerate(pairwise(starts)):
        path = source / "data" / "chunk-000" / f"episode_{number:06d}.parquet"
        pq.write_table(table(slice(int(first), int(last))), path)
    lines = [{"episode_index": n, "tasks": ["push"], "length": length} for n, length in enumerate(LENGTHS)]
    (source / "meta" / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run(source, "--task", "arm", "--output_dir", tmp_path / "d") == 0
    check(stored(tmp_path / "d" / "arm"))


def test_without_rewards_they_are_0_and_no_score_is_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features = {name: value for name, value in FEATURES.items() if name != "next.reward"}
    source = write(tmp_path / "a")
    info(source, features=features)
    assert run(source, "--task", "arm", "--output_dir", tmp_path / "d") == 0
    assert "unknown: the source has no rewards" in capsys.readouterr().out
    collection = Collection.read(tmp_path / "d" / "arm")
    assert collection is not None
    assert (collection.scores, collection.returns) == ({}, [0.0] * 3)
    assert "| arm | 2 | 1 | 12 | - | - | - | - | - | - | - |" in (tmp_path / "d" / "README.md").read_text()


def test_a_single_action_is_a_column_of_numbers(tmp_path: Path) -> None:
    """LeRobot stores a feature of shape [1] without a list. An integer is a choice."""
    source = write(tmp_path / "a")
    for path in (source / "data").rglob("*.parquet"):
        frames = pq.read_table(path)
        choices = pa.array(np.arange(len(frames)))
        pq.write_table(frames.set_column(frames.schema.names.index("action"), "action", choices), path)
    info(source, features={**FEATURES, "action": feature("int64", 1)})
    assert run(source, "--task", "arm", "--output_dir", tmp_path / "d") == 0
    assert stored(tmp_path / "d" / "arm")[2]["discrete_actions"] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("version", "meta/info.json: expected codebase_version v2.0, v2.1 or v3, got v1.6; convert it with LeRobot"),
        ("json", "meta/info.json: expected what LeRobot writes, got JSONDecodeError"),
        ("lengths", "file-001.parquet: episode 2 (episode_index 2): expected 7 frames, as meta/episodes says, got 6"),
        ("episodes", "expected 4 episodes in data, as meta/episodes says, got none with the number 3"),
        ("no episodes", "expected meta/episodes/*/*.parquet, got none; download the whole dataset"),
        ("no data", "expected data/chunk-*/*.parquet, got none; download the whole dataset"),
        ("pointer", "file-001.parquet: expected a Parquet file, got the pointer of Git LFS"),
        ("column", "file-001.parquet: column 'action' is missing, which meta/info.json lists"),
        ("nan", "file-001.parquet: episode 2 (episode_index 2): column continuous_actions, step 1 (element 0)"),
    ],
)
def test_faults_are_named_in_one_line(
    change: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = {"lengths": [4, 2, 7], "episodes": [4, 2, 6, 1]}.get(change, LENGTHS)
    broken = ACTIONS[6:].copy()
    broken[1] = np.nan
    changed = {"column": None, "nan": pa.array(broken.tolist())}
    source = write(tmp_path / "a", lengths, **({"action": changed[change]} if change in changed else {}))
    files = {"no episodes": "meta/episodes/chunk-000/file-000.parquet"}
    if change == "version":
        info(source, codebase_version="v1.6")
    elif change == "json":
        (source / "meta" / "info.json").write_text("{")
    elif change in files:
        (source / files[change]).unlink()
    elif change == "no data":
        for path in (source / "data").rglob("*.parquet"):
            path.unlink()
    elif change == "pointer":
        (source / "data" / "chunk-000" / "file-001.parquet").write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
        )
    line = refused(capsys, source, "--task", "arm", "--output_dir", tmp_path / "d")
    assert message in line, line
    assert not (tmp_path / "d" / "arm").exists()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("observation=observation.wrist", "observation.wrist is stored as image; expected numbers: videos and images"),
        ("observation=observation.stat", "has no column 'observation.stat'; did you mean observation.state?"),
        ("done=next.done", "LeRobot numbers its episodes in episode_index; leave done out"),
    ],
)
def test_columns_that_cannot_be_read_are_refused(
    columns: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "a")
    line = refused(capsys, source, "--task", "arm", "--output_dir", tmp_path / "d", "--columns", columns)
    assert message in line, line


def test_a_dataset_that_is_not_there_is_told_with_its_download(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, "lerobot/pusht", "--format", "lerobot", "--task", "arm", "--output_dir", tmp_path / "d")
    assert line.startswith("lerobot/pusht: expected a file or folder, got none; `hf download lerobot/pusht --repo-type")
