"""Read datasets that others have written: missing, doubled or changed files, other types, an unreachable hub."""

from __future__ import annotations

import decimal
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("datasets", reason="the extra train is not installed")

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from helpers.hub import silent_server
from helpers.training_data import KINDS, episode, png, table, tiny_config, write_split

from jat_engine import DataError, JatProcessor
from jat_engine.collect import collect
from jat_engine.datasets.collection import Collection
from jat_engine.datasets.sources import open_source
from jat_engine.envs import TASKS
from jat_engine.training.dataset import Segments
from jat_engine.training.prepare import prepare
from jat_engine.training.segments import SegmentSettings

HOPPER, BABYAI, PONG = KINDS
Change = Callable[[Path], Any]


def read(data: Path, task: str, cache: Path, length: int = 5) -> dict[str, torch.Tensor]:
    """Return all segments of a task's training split."""
    source = open_source(str(data), task, "train", task=TASKS.get(task))
    assert source is not None
    processor = JatProcessor.byte_level(tiny_config())
    settings = SegmentSettings.of(task, "train", length, tiny_config(), processor)
    segments = Segments(
        prepare(source, settings, processor, cache, task=TASKS.get(task)),
        task,
        image_processor=processor.image_processor,
    )
    batch = segments.gather(np.arange(len(segments)))
    return {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}


# ---- files ---------------------------------------------------------------------------------------------------------


def shard(folder: Path, number: int) -> Path:
    return folder / f"train-{number:05d}-of-00003.parquet"


def dead_link(folder: Path) -> None:
    shard(folder, 1).unlink()
    shard(folder, 1).symlink_to("nowhere")


def make_folder(folder: Path) -> None:
    shard(folder, 1).unlink()
    shard(folder, 1).mkdir()


def without_rewards(folder: Path) -> None:
    pq.write_table(pq.read_table(shard(folder, 1)).drop_columns(["rewards"]), shard(folder, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: shard(f, 1).unlink(), "expected 3 files, got 2, without train-00001-of-00003.parquet"),
        (lambda f: shard(f, 2).unlink(), "expected 3 files, got 2, without train-00002-of-00003.parquet"),
        (
            lambda f: shutil.copy(shard(f, 0), f / "train-00000-of-00002.parquet"),
            r"files of one set, got those of 2: 1 of 2 \(train-00000-of-00002.parquet\), 3 of 3",
        ),
        (
            lambda f: shutil.copy(shard(f, 0), f / "train-00000-of-00003 (copy).parquet"),
            r"00000, got train-00000-of-00003 \(copy\).parquet as well",
        ),
        (
            lambda f: shutil.copy(shard(f, 0), f / "train-more.parquet"),
            "train-more.parquet: expected only files named as",
        ),
        (lambda f: shutil.copy(shard(f, 0), shard(f, 1)), "00001-of-00003.*got the same file twice"),
        (lambda f: shard(f, 2).rename(f / "train-00007-of-00003.parquet"), "without train-00002-of-00003"),
        (lambda f: shard(f, 1).write_bytes(b""), "00001-of-00003.parquet: .* got an empty one"),
        (lambda f: shard(f, 1).write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
        (lambda f: shard(f, 1).write_bytes(shard(f, 1).read_bytes()[:300]), "cut off at 300 bytes"),
        (lambda f: shard(f, 1).write_bytes(b"PAR1" + bytes(90) + b"PAR1"), "00001-of-00003.parquet: .* cannot be read"),
        (lambda f: shard(f, 1).write_text("episode,reward\n"), "something else that begins with b'episode,reward"),
        (dead_link, "got a link to nowhere, which is not there"),
        (make_folder, "got no file but a folder"),
        (without_rewards, "00001-of-00003.parquet: column 'rewards' is missing"),
    ],
)
def test_files_that_are_missing_doubled_or_damaged_are_named_before_anything_is_read(
    change: Change, message: str, tmp_path: Path
) -> None:
    folder = tmp_path / HOPPER
    folder.mkdir()
    for number in range(3):
        pq.write_table(table([episode("continuous", 6, number)]), shard(folder, number))
    change(folder)
    with pytest.raises(DataError, match=message) as error:
        open_source(str(tmp_path), HOPPER, "train", task=TASKS.get(HOPPER))
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    "names",
    [
        ["train.parquet"],
        ["train-0.parquet", "train-1.parquet"],
        ["train-00001-of-00002.parquet", "train-00002-of-00002.parquet"],
        ["train-00000-of-00001-0a1b2c3d.parquet", "test-00000-of-00009.parquet", "._train-0.parquet"],
    ],
)
def test_names_of_other_writers_are_read(names: list[str], tmp_path: Path) -> None:
    (tmp_path / HOPPER).mkdir()
    for number, name in enumerate(names):
        pq.write_table(table([episode("continuous", 5, number)]), tmp_path / HOPPER / name)
    assert len(read(tmp_path, HOPPER, tmp_path / "cache")["rewards"]) == sum(name.startswith("train") for name in names)


def test_files_of_no_split_are_named(tmp_path: Path) -> None:
    path = write_split(tmp_path, HOPPER, "train", [episode("continuous", 6, 0)])
    path.rename(path.with_name("episodes.parquet"))
    with pytest.raises(DataError, match=r"expected files named train-\*.parquet, got episodes.parquet"):
        open_source(str(tmp_path), HOPPER, "train", task=TASKS.get(HOPPER))
    assert open_source(str(tmp_path), HOPPER, "test", task=TASKS.get(HOPPER)) is None


# ---- collection.json -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("collected") / "d"
    collect(["mujoco-pendulum"], folder, num_episodes=4, num_workers=1)
    return folder


def other_values(folder: Path) -> None:
    path = folder / "train-00000-of-00001.parquet"
    rows = pq.read_table(path)
    rewards = pa.array([[0.0] * 1000] * len(rows), rows["rewards"].type)
    pq.write_table(rows.set_column(2, "rewards", rewards), path)


def fewer_rows(folder: Path) -> None:
    path = folder / "train-00000-of-00001.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)


def earlier_version(folder: Path) -> None:
    described = json.loads((folder / "collection.json").read_text())
    del described["file_sha256"]
    (folder / "collection.json").write_text(json.dumps(described))
    other_values(folder)


@pytest.mark.parametrize(
    ("split", "change", "message"),
    [
        ("train", other_values, r"train-00000-of-00001.parquet: expected SHA-256 .* got .*: copy it again; if you"),
        ("train", fewer_rows, "expected the 3 episodes of collection.json, got 2"),
        ("train", earlier_version, "expected files of SHA-256 .* got others"),
        (
            "train",
            lambda f: (f / "train-00000-of-00001.parquet").unlink(),
            "train-00000-of-00001.parquet: expected this",
        ),
        ("test", lambda f: (f / "test-00000-of-00001.parquet").unlink(), "test-00000-of-00001.parquet: expected this"),
        (
            "test",
            lambda f: (f / "test-00000-of-00001.parquet").rename(f / "test.parquet"),
            "test-00000-of-00001.parquet: expected this file",
        ),
        (
            "train",
            lambda f: (f / "collection.json").write_text("[1]"),
            "collection.json: expected what `jat-engine coll",
        ),
    ],
)
def test_files_that_are_not_those_collected_are_named(
    split: str, change: Change, message: str, collected: Path, tmp_path: Path
) -> None:
    shutil.copytree(collected, tmp_path / "d")
    change(tmp_path / "d" / "mujoco-pendulum")
    for streaming in (False, True):
        with pytest.raises(DataError, match=message):  # noqa: PT012 (a stream is checked when it is opened)
            source = open_source(str(tmp_path / "d"), "mujoco-pendulum", split, streaming=streaming)
            assert source is not None
            assert not streaming, "a stream is checked when it is opened"
            next(iter(source.read()))


def test_episodes_that_were_changed_are_not_extended(collected: Path, tmp_path: Path) -> None:
    shutil.copytree(collected, tmp_path / "d")
    other_values(tmp_path / "d" / "mujoco-pendulum")
    with pytest.raises(DataError, match=r"train-00000-of-00001.parquet: expected SHA-256"):
        collect(["mujoco-pendulum"], tmp_path / "d", num_episodes=5, num_workers=1)
    stored = Collection.read(tmp_path / "d" / "mujoco-pendulum")
    assert stored is not None
    assert stored.num_episodes == 4
    (tmp_path / "d" / "mujoco-pendulum" / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"test-00000-of-00001.parquet: expected this file"):
        collect(["mujoco-pendulum"], tmp_path / "d", num_episodes=4, num_workers=1)


# ---- types ---------------------------------------------------------------------------------------------------------


def replaced(rows: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return rows.set_column(rows.column_names.index(name), name, values)


def as_type(name: str, kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    return lambda rows: replaced(rows, name, pa.array(rows[name].to_pylist(), kind))


def dictionary_texts(rows: pa.Table) -> pa.Table:
    texts = pa.array([text for texts in rows["text_observations"].to_pylist() for text in texts]).dictionary_encode()
    return replaced(rows, "text_observations", pa.ListArray.from_arrays([0, 6, 12], texts))


def array_2d(rows: pa.Table) -> pa.Table:
    kinds = {name: datasets.List(datasets.List(datasets.Value("float32"))) for name in rows.column_names}
    kinds |= {"continuous_observations": datasets.Array2D((6, 11), "float32")}
    kinds |= {"rewards": datasets.List(datasets.Value("float32"))}
    columns = {name: rows[name].to_pylist() for name in rows.column_names}
    return datasets.Dataset.from_dict(columns, datasets.Features(kinds)).with_format("arrow")[:]


def bytes_only(rows: pa.Table) -> pa.Table:
    files = [[image["bytes"] for image in episode] for episode in rows["image_observations"].to_pylist()]
    return replaced(rows, "image_observations", pa.array(files, pa.list_(pa.large_binary())))


def pixels(scale: Callable[[np.ndarray], np.ndarray]) -> Callable[[pa.Table], pa.Table]:
    def change(rows: pa.Table) -> pa.Table:
        frames = [scale(np.stack(episode("image", 6, seed)["image_observations"])).tolist() for seed in (0, 1)]
        return replaced(rows, "image_observations", pa.array(frames))

    return change


floats = pa.float32()


@pytest.mark.parametrize(
    ("task", "change"),
    [
        (HOPPER, as_type("continuous_observations", pa.large_list(pa.large_list(floats)))),
        (HOPPER, as_type("continuous_observations", pa.list_(pa.list_(floats, 11), 6))),
        (HOPPER, as_type("continuous_observations", pa.list_view(pa.list_view(floats)))),
        (HOPPER, as_type("rewards", pa.list_(pa.float64()))),
        (HOPPER, array_2d),
        (HOPPER, lambda rows: rows.append_column("info", pa.array([{"seed": 1}] * 2))),
        (BABYAI, as_type("discrete_observations", pa.list_(pa.list_(pa.uint8())))),
        (BABYAI, as_type("discrete_actions", pa.list_(pa.int32()))),
        (BABYAI, as_type("text_observations", pa.large_list(pa.large_string()))),
        (BABYAI, as_type("text_observations", pa.list_(pa.string_view()))),
        (BABYAI, dictionary_texts),
        (PONG, bytes_only),
        (PONG, pixels(lambda frames: frames)),
        (PONG, pixels(lambda frames: frames / 127.5 - 1)),
    ],
)
def test_other_types_have_the_same_values(task: str, change: Any, tmp_path: Path) -> None:
    path = write_split(tmp_path, task, "train", [episode(KINDS[task], 6, seed) for seed in (0, 1)])
    expected = read(tmp_path, task, tmp_path / "cache")
    pq.write_table(change(pq.read_table(path)), path)
    got = read(tmp_path, task, tmp_path / "cache2")
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.equal(got[name], values), name


def column(name: str, values: Any) -> Callable[[pa.Table], pa.Table]:
    return lambda rows: replaced(rows, name, pa.array(values))


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        (HOPPER, column("rewards", [[True] * 6] * 2), "column rewards: .* float32 for each step, got list<.*bool>"),
        (HOPPER, column("rewards", [[decimal.Decimal("1.5")] * 6] * 2), "column rewards: .* got list<.*decimal128"),
        (HOPPER, column("rewards", [[np.datetime64(0, "s")] * 6] * 2), "column rewards: .* got list<.*timestamp"),
        (HOPPER, column("rewards", [["1"] * 6] * 2), "column rewards: .* got list<.*string>"),
        (HOPPER, column("rewards", [None, None]), "column rewards: .* got null"),
        (HOPPER, column("rewards", [1.0, 2.0]), "column rewards: .* got double"),
        (HOPPER, column("continuous_observations", [[1.0] * 6] * 2), "each a list of float32, got list<"),
        (HOPPER, column("continuous_observations", [[{"x": 1.0}] * 6] * 2), "got list<.*struct<x: double>>; join its"),
        (
            HOPPER,
            lambda rows: pa.table([*rows.columns, rows["rewards"]], [*rows.column_names, "rewards"]),
            "column rewards: expected it once, got it 2 times",
        ),
        (HOPPER, lambda rows: rows.rename_columns({"rewards": "reward"}), "'rewards' is missing: .*; got .*, reward$"),
        (BABYAI, column("text_observations", ["go"] * 2), "column text_observations: .* got string"),
        (BABYAI, column("discrete_actions", [[1.0] * 6] * 2), "column discrete_actions: .* got list<.*double>"),
        (
            BABYAI,
            lambda rows: replaced(rows, "discrete_actions", pa.array([[2**64 - 1] * 6] * 2, pa.list_(pa.uint64()))),
            "row 0: column discrete_actions, step 0: expected an integer below 2.63, got 18446744073709551615",
        ),
        (PONG, column("image_observations", [["a.png"] * 6] * 2), "store the bytes of the files, not their paths"),
        (PONG, column("image_observations", [[{"bytes": None, "path": "a.png"}] * 6] * 2), "files at a `path` are not"),
        (
            PONG,
            column("image_observations", [[png(np.zeros((84, 84, 4), np.uint8))["bytes"][:50]] * 6] * 2),
            "row 0, s",
        ),
        (PONG, pixels(lambda frames: frames / 255), "column image_observations: .* got floats of 0 to 1;"),
        (PONG, pixels(lambda frames: frames.astype(float)), "column image_observations: .* got floats of 0 to 255"),
        (PONG, pixels(lambda frames: frames.astype(int) - 1), "column image_observations: .* integers of -1 to 254"),
        (PONG, pixels(lambda frames: frames[:, :80]), r"got frames of shape \[80, 84, 4\]"),
    ],
)
def test_types_that_cannot_be_read_are_named(task: str, change: Any, message: str, tmp_path: Path) -> None:
    path = write_split(tmp_path, task, "train", [episode(KINDS[task], 6, seed) for seed in (0, 1)])
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path, task, tmp_path / "cache")
    assert str(error.value).startswith(str(path))


def test_captions_whose_image_is_not_one_are_named(tmp_path: Path) -> None:
    (tmp_path / "captions").mkdir()
    rows = pa.table({"text": ["a caption"] * 2, "images": [png(np.zeros((9, 9, 4), np.uint8)), {"bytes": b"<html>"}]})
    pq.write_table(rows, tmp_path / "captions" / "train-0.parquet")
    with pytest.raises(DataError, match=r"train-0.parquet: row 1: images: expected the file of an image, got 6 bytes"):
        read(tmp_path, "captions", tmp_path / "cache", length=9)


# ---- names of datasets and tasks -----------------------------------------------------------------------------------


def test_a_task_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    path = write_split(tmp_path / "d", HOPPER, "train", [episode("continuous", 6, 0)])
    with pytest.raises(DataError, match="the tasks there are mujoco-hopper"):
        open_source(str(tmp_path / "d"), "mujoco-ant", "train", task=TASKS.get("mujoco-ant"))
    with pytest.raises(DataError, match=f"got that of a task; name {tmp_path / 'd'}$"):
        open_source(str(path.parent), HOPPER, "train", task=TASKS.get(HOPPER))
    with pytest.raises(DataError, match=f", a file; name the folder .* such as {tmp_path / 'd'}$"):
        open_source(str(path), HOPPER, "train", task=TASKS.get(HOPPER))
    with pytest.raises(DataError, match=r"expected a folder .* got '.*/dd' \(folders there: d\)"):
        open_source(str(tmp_path / "dd"), HOPPER, "train", task=TASKS.get(HOPPER))
    (tmp_path / "d/.incomplete/mujoco-ant").mkdir(parents=True)
    with pytest.raises(DataError, match="finish it with `jat-engine collect --tasks mujoco-ant --output_dir"):
        open_source(str(tmp_path / "d"), "mujoco-ant", "train", task=TASKS.get("mujoco-ant"))
    card = f"configs:\n- config_name: {HOPPER}\n  data_files: {HOPPER}/*.parquet\n"
    (tmp_path / "d" / "README.md").write_text(f"---\n{card}---\n")
    with pytest.raises(DataError, match="expected a task that it has, got oscar; it has mujoco-hopper"):
        open_source(str(tmp_path / "d"), "oscar", "train")


def test_a_damaged_folder_of_save_to_disk_is_named(tmp_path: Path) -> None:
    saved = datasets.Dataset.from_dict({"text": ["a"]})
    saved.save_to_disk(str(tmp_path / "oscar"))
    next((tmp_path / "oscar").glob("*.arrow")).unlink()
    with pytest.raises(DataError, match=r"oscar: expected a whole folder of `save_to_disk`: .*arrow"):
        open_source(str(tmp_path), "oscar", "train")


@pytest.fixture
def silent_hub() -> Iterator[str]:
    with silent_server() as address:
        yield address


@pytest.mark.parametrize("hub", ["silent", "refusing", "offline"])
def test_a_forgotten_dataset_is_told_without_a_network(hub: str, silent_hub: str, tmp_path: Path) -> None:
    """The hub is asked once: `datasets` alone asks six times and waits 23 s in between."""
    address = {"silent": silent_hub, "refusing": "http://127.0.0.1:9", "offline": "http://127.0.0.1:9"}[hub]
    environment = {
        **os.environ,
        "HF_ENDPOINT": address,
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": str(int(hub == "offline")),
    }
    code = (
        "from jat_engine.datasets import remote\n"
        "from jat_engine.datasets.sources import open_source\n"
        "remote._REACH_SECONDS = 0.5\n"
        "try: open_source('jat-project/jat-dataset', 'mujoco-ant', 'train')\n"
        "except ValueError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert "there is no such folder, the hub cannot be reached" in result.stdout
    assert "name a folder that `jat-engine collect` wrote" in result.stdout
    assert "Retrying" not in result.stderr
    assert result.stdout.count("\n") == 1


def test_a_dataset_in_the_cache_is_read_without_a_network(tmp_path: Path) -> None:
    """Write the cache as `datasets` does after it has loaded a dataset of the hub."""
    path = write_split(tmp_path, HOPPER, "train", [episode("continuous", 6, 0)])
    datasets.load_dataset("parquet", data_files={"train": str(path)}, cache_dir=str(tmp_path / "c"))
    info = next((tmp_path / "c").rglob("dataset_info.json"))
    cached = tmp_path / "cache" / "owner___name" / HOPPER / "0.0.0" / "hash"
    cached.mkdir(parents=True)
    shutil.copy(next(info.parent.glob("*.arrow")), cached / "name-train.arrow")
    described = {**json.loads(info.read_text()), "config_name": HOPPER, "dataset_name": "name"}
    (cached / "dataset_info.json").write_text(json.dumps(described))

    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    code = (
        "from jat_engine.datasets.sources import open_source\n"
        f"def task(name, split): return open_source('owner/name', name, split, cache_dir={str(tmp_path / 'cache')!r})\n"
        f"print(sum(rows.table.num_rows for rows in task({HOPPER!r}, 'train').read()), task({HOPPER!r}, 'test'))\n"
        "try: task('mujoco-ant', 'train')\n"
        "except ValueError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    rows, message = result.stdout.splitlines()
    assert rows == "1 None"
    assert "the cache of `datasets` has of it only 'mujoco-hopper'" in message


def test_files_that_changed_since_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read folders with a card, and one of `save_to_disk`, which `datasets` knows by a hash of the first time."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    card = "configs:\n- config_name: oscar\n  data_files:\n  - split: train\n    path: texts.EXT\n"
    for kind in ("parquet", "jsonl", "saved"):
        folder = tmp_path / kind
        folder.mkdir()
        seen = []
        for text in ("abcdefgh", "stuvwxyz"):
            rows = datasets.Dataset.from_dict({"text": [text]})
            if kind == "saved":
                shutil.rmtree(folder / "oscar", ignore_errors=True)
                rows.save_to_disk(str(folder / "oscar"))
            else:
                (folder / "README.md").write_text(f"---\n{card.replace('EXT', kind)}---\n")
                path = folder / f"texts.{kind}"
                rows.to_parquet(path) if kind == "parquet" else path.write_text(json.dumps({"text": text}) + "\n")
            seen.append(read(folder, "oscar", tmp_path / f"cache-{kind}")["input_ids"][0, 0].item())
        assert seen[0] != seen[1], kind
