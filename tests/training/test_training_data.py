"""Test the way from files to batches: cutting, caching, checking and sampling."""

from __future__ import annotations

import io
import itertools
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("datasets", reason="the extra train is not installed")

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from helpers import training_data
from helpers.training_data import KINDS, LENGTHS, episode, table, tiny_config, write_split
from PIL import Image

from jat_engine import JatProcessor
from jat_engine.datasets.sources import open_source
from jat_engine.envs import TASKS, Task, UnknownTaskError, find_tasks
from jat_engine.errors import DataError
from jat_engine.training import recipe
from jat_engine.training.dataset import Segments, TaskDataset, scale_frames
from jat_engine.training.prepare import prepare
from jat_engine.training.sampler import TaskBatchSampler
from jat_engine.training.segments import SegmentSettings
from jat_engine.training.stream import StreamedTask, TaskStream

STEPS = 5


@pytest.fixture(scope="module")
def processor() -> Any:
    return JatProcessor.byte_level(tiny_config())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training_data.write_dataset(tmp_path_factory.mktemp("data"))


def make_segments(
    data: Path, task: str, root: Path, processor: Any, length: int = STEPS, split: str = "train"
) -> Segments:
    source = open_source(str(data), task, split, task=TASKS.get(task))
    assert source is not None
    settings = SegmentSettings.of(task, split, length, tiny_config(), processor)
    return Segments(prepare(source, settings, processor, root, task=TASKS.get(task)), task, loss_weight=3.0)


@pytest.mark.versions
@pytest.mark.parametrize("task", KINDS)
def test_segments_are_those_of_the_processor(task: str, data: Path, tmp_path: Path, processor: Any) -> None:
    """Compare tensors: rewards shifted, remainders kept, the first step as padding."""
    number = list(KINDS).index(task)
    episodes = [episode(KINDS[task], n, 100 * number + i) for i, n in enumerate(LENGTHS[task])]
    fields = {name: [e[name] for e in episodes] for name in episodes[0]}
    fields["rewards"] = [[0.0, *e["rewards"][:-1].tolist()] for e in episodes]
    expected = processor(
        **fields, truncation="preserve", padding="max_length", max_length=2 * STEPS, return_tensors="pt"
    )
    segments = make_segments(data, task, tmp_path, processor)
    assert len(segments) == sum(-(-n // STEPS) for n in LENGTHS[task])
    batch = TaskDataset([segments]).__getitems__(range(len(segments)))
    assert batch.pop("task") == task
    assert (batch.pop("loss_weight") == 3).all()
    if "image_observations" in batch:
        assert batch["image_observations"].dtype == torch.uint8
        batch["image_observations"] = scale_frames(batch["image_observations"])
    assert set(batch) == set(expected)
    for name, values in batch.items():
        assert values.dtype == expected[name].dtype, name
        assert torch.equal(values, expected[name]), name


def test_planes_are_stored_once(data: Path, tmp_path: Path, processor: Any) -> None:
    segments = make_segments(data, "atari-pong", tmp_path, processor)
    assert len(np.load(segments.folder / "planes.npy", mmap_mode="r")) == sum(LENGTHS["atari-pong"])


def test_a_batch_is_as_long_as_its_longest_segment(data: Path, tmp_path: Path, processor: Any) -> None:
    segments = make_segments(data, "mujoco-hopper", tmp_path, processor)  # 30, 12, 25 and 7 steps in fives
    lengths = [5] * 6 + [5, 5, 2] + [5] * 5 + [5, 2]
    for numbers, longest in (([8], 2), ([8, 15], 2), ([0, 8], 5)):
        batch = segments.gather(np.array(numbers))
        assert batch["rewards"].shape == (len(numbers), longest)
        assert batch["attention_mask"].sum(1).tolist() == [lengths[n] for n in numbers]


def test_prepared_once_and_again_when_anything_changes(data: Path, tmp_path: Path, processor: Any) -> None:
    first = make_segments(data, "mujoco-hopper", tmp_path, processor)
    written = (first.folder / "rewards.npy").stat().st_mtime_ns
    assert make_segments(data, "mujoco-hopper", tmp_path, processor).folder == first.folder
    assert (first.folder / "rewards.npy").stat().st_mtime_ns == written
    assert make_segments(data, "mujoco-hopper", tmp_path, processor, length=4).folder != first.folder
    other = write_split(tmp_path / "other", "mujoco-hopper", "train", [episode("continuous", 9, 1)])
    changed = make_segments(tmp_path / "other", "mujoco-hopper", tmp_path, processor)
    pq.write_table(table([episode("continuous", 9, 2), episode("continuous", 9, 3)]), other)
    assert len(make_segments(tmp_path / "other", "mujoco-hopper", tmp_path, processor)) == 2 * len(changed)


def test_workers_map_the_files_themselves(data: Path, tmp_path: Path, processor: Any) -> None:
    segments = make_segments(data, "atari-pong", tmp_path, processor)
    batch = segments.gather(np.arange(2))
    copied = pickle.dumps(segments)
    assert len(copied) < 10_000
    assert torch.equal(pickle.loads(copied).gather(np.arange(2))["image_observations"], batch["image_observations"])


# ---- other sources -------------------------------------------------------------------------------------------------


def test_folders_of_save_to_disk_and_of_datasets_give_the_same_segments(
    data: Path, tmp_path: Path, processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    train = datasets.Dataset.from_parquet(
        str(data / "babyai-go-to-local/train-00000-of-00001.parquet"), cache_dir=str(tmp_path / "hf")
    )
    datasets.DatasetDict({"train": train}).save_to_disk(tmp_path / "saved/babyai-go-to-local")
    hub = tmp_path / "hub"  # as a dataset on the hub: its card says where the files of a task are
    (hub / "data").mkdir(parents=True)
    train.to_parquet(hub / "data/go.parquet")
    card = "configs:\n- config_name: babyai-go-to-local\n  data_files:\n  - split: train\n    path: data/go.parquet\n"
    (hub / "README.md").write_text(f"---\n{card}---\n")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    expected = make_segments(data, "babyai-go-to-local", tmp_path / "a", processor)
    for number, folder in enumerate((tmp_path / "saved", hub)):
        segments = make_segments(folder, "babyai-go-to-local", tmp_path / f"b{number}", processor)
        assert len(segments) == len(expected)
        everything = np.arange(len(segments))
        for name, values in segments.gather(everything).items():
            assert torch.equal(values, expected.gather(everything)[name]), name
        for streaming in (False, True):
            assert (
                open_source(
                    str(folder), "babyai-go-to-local", "test", task=TASKS.get("babyai-go-to-local"), streaming=streaming
                )
                is None
            )


def test_tokenized_rows_are_segments_already(tmp_path: Path, processor: Any) -> None:
    given = episode("continuous", 6, 0)
    rows = table([given, given])
    rows = rows.append_column("attention_mask", pa.array([[1, 1, 1, 1, 0, 0], [1] * 6], pa.list_(pa.int64())))
    rows = rows.append_column("loss_weight", pa.array([[7.0] * 6] * 2, pa.list_(pa.float32())))
    path = tmp_path / "data/mujoco-hopper/train-0.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(rows, path)
    segments = make_segments(tmp_path / "data", "mujoco-hopper", tmp_path, processor, length=6)
    batch = segments.gather(np.arange(2))
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0], [1] * 6]
    assert (batch["loss_weight"] == 7).all()
    assert np.array_equal(batch["rewards"][1], given["rewards"])  # shifted when they were tokenized
    segments.options["own_weight"] = False
    assert (segments.gather(np.arange(2))["loss_weight"] == 3).all()


@pytest.mark.parametrize("scaled", [False, True])
def test_tokenized_frames(scaled: bool, tmp_path: Path, processor: Any) -> None:
    """Read frames stored as numbers instead of files: uint8, or floats of the processor."""
    given = episode("image", 3, 0)
    frames = np.stack(given["image_observations"])
    expected = processor(
        image_observations=[frames], discrete_actions=[given["discrete_actions"]], return_tensors="pt"
    )["image_observations"]
    numbers = expected[0].tolist() if scaled else frames.tolist()
    rows = table([{name: values for name, values in given.items() if name != "image_observations"}])
    rows = rows.append_column("image_observations", pa.array([numbers]))
    rows = rows.append_column("attention_mask", pa.array([[1, 1, 1]]))
    path = tmp_path / "data/atari-pong/train-0.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(rows, path)
    batch = make_segments(tmp_path / "data", "atari-pong", tmp_path, processor).gather(np.arange(1))
    assert torch.equal(scale_frames(batch["image_observations"]), expected)


def test_texts_and_captions(tmp_path: Path, processor: Any) -> None:
    data = tmp_path / "data"
    for name in ("wikipedia", "captions"):
        (data / name).mkdir(parents=True)
    texts = ["abcdefg", "x", "hi there"]
    pq.write_table(pa.table({"text": texts}), data / "wikipedia/train-0.parquet")
    segments = make_segments(data, "wikipedia", tmp_path, processor, length=6)
    batch = segments.gather(np.arange(len(segments)))  # "g" and "x" are one token, which predicts nothing
    decoded = [
        processor.tokenizer.decode(ids[mask.bool()])
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert decoded == ["abcdef", "hi the", "re"]
    assert "loss_weight" not in batch
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    rgba = np.dstack((picture, np.full((40, 50), 255, np.uint8)))
    images = [training_data.png(rgba), training_data.png(rgba[:, ::-1])]
    pq.write_table(pa.table({"text": ["a long caption", "b"], "images": images}), data / "captions/train-0.parquet")
    captions = make_segments(data, "captions", tmp_path, processor, length=4 + 5)  # 4 patches
    batch = Segments(captions.folder, "captions", image_processor=processor.image_processor).gather(np.arange(1))
    assert len(captions) == 1
    assert processor.tokenizer.decode(batch["input_ids"][0]) == "a lon"
    assert torch.equal(batch["pixel_values"], processor(images=[picture], return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "P", "1", "I;16", "RGBA"])
def test_images_of_captions_are_those_of_the_processor(mode: str, tmp_path: Path, processor: Any) -> None:
    pixels = np.linspace(0, 65535, 40 * 50).reshape(40, 50)
    grey = Image.fromarray((pixels / 257).astype(np.uint8))
    image = Image.fromarray(pixels.astype(np.uint16)) if mode == "I;16" else grey.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "TIFF")
    batch = _captions(tmp_path, processor, buffer.getvalue()).gather(np.arange(1))
    assert torch.equal(batch["pixel_values"], processor(images=[image], return_tensors="pt")["pixel_values"])


def test_damaged_images_of_captions(tmp_path: Path, processor: Any) -> None:
    file = training_data.png(np.random.default_rng(0).integers(0, 256, (40, 50, 4), dtype=np.uint8))["bytes"]
    captions = _captions(tmp_path / "cut", processor, file[: len(file) // 2])
    with pytest.raises(DataError, match=r"images: caption 0 .*: expected the file of an image, got \d+ bytes: "):
        captions.gather(np.arange(1))

    buffer = io.BytesIO()
    Image.fromarray(np.ones((4, 4), np.float32)).save(buffer, "TIFF")
    with pytest.raises(DataError, match=r"row 0: images: expected an image of 8 or 16 bits per channel, got mode 'F'"):
        _captions(tmp_path / "floats", processor, buffer.getvalue())


def _captions(folder: Path, processor: Any, file: bytes) -> Segments:
    (folder / "data/captions").mkdir(parents=True)
    rows = pa.table({"text": ["a caption"], "images": [{"bytes": file, "path": None}]})
    pq.write_table(rows, folder / "data/captions/train-0.parquet")
    prepared = make_segments(folder / "data", "captions", folder, processor, length=4 + 5).folder
    return Segments(prepared, "captions", image_processor=processor.image_processor)


# ---- prepared data -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "empty", "removed", "info cut", "info removed"])
def test_prepared_data_that_is_damaged_is_prepared_again(damage: str, tmp_path: Path, processor: Any) -> None:
    write_split(tmp_path / "data", "mujoco-hopper", "train", [episode("continuous", 6, seed) for seed in (0, 1)])
    before = make_segments(tmp_path / "data", "mujoco-hopper", tmp_path / "cache", processor)
    expected = before.gather(np.arange(2))["rewards"].clone()
    file = before.folder / ("pieces.json" if "info" in damage else "rewards.npy")
    if "removed" in damage:
        file.unlink()
    else:
        os.truncate(file, 0 if damage == "empty" else file.stat().st_size // 2)

    again = make_segments(tmp_path / "data", "mujoco-hopper", tmp_path / "cache", processor)
    assert torch.equal(again.gather(np.arange(2))["rewards"], expected)
    assert list((tmp_path / "cache").glob(".*")) == []


def test_a_text_dataset_in_a_deeper_folder(tmp_path: Path, processor: Any) -> None:
    (tmp_path / "data/texts/en").mkdir(parents=True)
    pq.write_table(pa.table({"text": ["abcdefg"]}), tmp_path / "data/texts/en/train-0.parquet")
    assert len(make_segments(tmp_path / "data", "texts/en", tmp_path / "cache", processor, length=8)) == 1


# ---- data that is wrong --------------------------------------------------------------------------------------------


def _without(rows: pa.Table, name: str) -> pa.Table:
    return rows.drop_columns([name])


def _replace(rows: pa.Table, name: str, row: int, values: Any) -> pa.Table:
    column = rows[name].to_pylist()
    column[row] = values
    kind = rows[name].type
    return rows.set_column(rows.column_names.index(name), name, pa.array(column, kind))


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("mujoco-hopper", lambda t: _without(t, "rewards"), "column 'rewards' is missing"),
        ("mujoco-hopper", lambda t: _without(t, "continuous_actions"), "action columns: expected continuous_actions"),
        (
            "mujoco-hopper",
            lambda t: t.append_column("text", pa.array(["a"] * 2)),
            "column 'text': expected the columns of",
        ),
        (
            "mujoco-hopper",
            lambda t: t.rename_columns({"continuous_actions": "discrete_actions"}),
            "column 'discrete_actions': expected the columns of mujoco-hopper, continuous_observations",
        ),
        ("mujoco-hopper", lambda t: _replace(t, "rewards", 1, [1.0, 2.0]), "row 1.*same number of steps"),
        ("mujoco-hopper", lambda t: _replace(t, "rewards", 1, []), "row 1.*rewards.*at least one step, got none"),
        ("mujoco-hopper", lambda t: _replace(t, "rewards", 1, None), "row 1: column rewards: expected a list"),
        ("mujoco-hopper", lambda t: _replace(t, "rewards", 0, [0.0] * 5 + [np.nan]), "row 0.*rewards, step 5.*finite"),
        (
            "mujoco-hopper",
            lambda t: _replace(t, "continuous_observations", 1, [[0.0] * 11] * 3 + [[0.0] * 10] * 3),
            "row 1.*continuous_observations, step 3.*11.*got \\[10\\]",
        ),
        (
            "mujoco-hopper",
            lambda t: _replace(t, "continuous_observations", 1, [[0.0] * 10] * 6),
            "row 1: column continuous_observations: expected 11 values a step, as in the rows before, got 10",
        ),
        (
            "mujoco-hopper",
            lambda t: t.append_column("loss_weight", pa.array([[1.0] * 6, [1.0] * 5 + [np.nan]])),
            "row 1: column loss_weight, step 5: expected a finite number of at least 0, got nan",
        ),
        (
            "mujoco-hopper",
            lambda t: t.append_column("loss_weight", pa.array([[1.0] * 6, [-1.0] * 6])),
            "row 1: column loss_weight, step 0: expected a finite number of at least 0, got -1.0",
        ),
        ("babyai-go-to-local", lambda t: _replace(t, "discrete_actions", 1, [0, 0, 0, 0, 0, 257]), "step 5.*0 to 256"),
        ("babyai-go-to-local", lambda t: _replace(t, "text_observations", 0, [None] * 6), "row 0.*expected a string"),
        (
            "atari-pong",
            lambda t: _replace(t, "image_observations", 0, [{"bytes": b"no"}] * 6),
            "step 0.*got 2 bytes",
        ),
        (
            "atari-pong",
            lambda t: _replace(t, "image_observations", 0, [None] * 6),
            "step 0.*image_observations: expected the bytes of a PNG file, got none",
        ),
    ],
)
def test_wrong_data_is_named_and_nothing_is_left(
    task: str, change: Any, message: str, tmp_path: Path, processor: Any
) -> None:
    path = write_split(tmp_path / "data", task, "train", [episode(KINDS[task], 6, seed) for seed in (0, 1)])
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(DataError, match=message) as error:
        make_segments(tmp_path / "data", task, tmp_path / "cache", processor)
    assert str(path) in str(error.value)
    assert list((tmp_path / "cache").glob("*")) == []


def test_episodes_of_another_width(tmp_path: Path, processor: Any) -> None:
    narrow = episode("continuous", 6, 0)
    narrow["continuous_observations"] = narrow["continuous_observations"][:, :5]
    path = write_split(tmp_path / "data", "mujoco-hopper", "train", [episode("continuous", 6, 0)])
    path.rename(path.with_name("train-00000-of-00002.parquet"))
    pq.write_table(table([narrow]), tmp_path / "data/mujoco-hopper/train-00001-of-00002.parquet")
    with pytest.raises(DataError, match=r"00001-of-00002.*continuous_observations \[11\].*got.*\[5\]"):
        make_segments(tmp_path / "data", "mujoco-hopper", tmp_path / "cache", processor)


def test_a_file_that_is_cut_off(tmp_path: Path, processor: Any) -> None:
    path = write_split(tmp_path / "data", "mujoco-hopper", "train", [episode("continuous", 6, 0)])
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"train-00000-of-00001.parquet"):
        make_segments(tmp_path / "data", "mujoco-hopper", tmp_path / "cache", processor)
    assert list((tmp_path / "cache").glob("*")) == []


# ---- order of batches ----------------------------------------------------------------------------------------------


def test_an_epoch_uses_every_segment_and_draws_tasks_by_weight() -> None:
    sizes, batches, weights = [4000, 100, 7], [4, 2, 3], [3.0, 1.0, 1.0]
    sampler = TaskBatchSampler(sizes, batches, weights, seed=1, num_processes=8)
    drawn = list(sampler)
    assert len(drawn) == len(sampler)
    assert len(sampler) % 8 == 0
    edges = np.cumsum([0, *sizes])
    tasks = np.array([int(np.searchsorted(edges, batch[0], side="right")) - 1 for batch in drawn])
    for batch, task in zip(drawn, tasks, strict=True):
        assert len(batch) == batches[task]
        assert all(edges[task] <= segment < edges[task + 1] for segment in batch)
    assert {segment for batch in drawn for segment in batch} == set(range(edges[-1]))
    counts = np.bincount(tasks)
    assert abs(counts[0] / len(tasks) - 0.6) < 0.05
    # A task that ran out starts over only when all its segments were used.
    rounds = [segment for batch, task in zip(drawn, tasks, strict=True) if task == 2 for segment in batch]
    for begin in range(0, len(rounds) - 6, 7):
        assert sorted(rounds[begin : begin + 7]) == list(range(4100, 4107))
    assert rounds[:7] != rounds[7:14]


def test_epochs_differ_and_repeat_themselves() -> None:
    sampler = TaskBatchSampler([40, 9], [4, 2], [1.0, 2.0], seed=3)
    first = list(sampler)
    assert list(TaskBatchSampler([40, 9], [4, 2], [1.0, 2.0], seed=3)) == first
    assert list(TaskBatchSampler([40, 9], [4, 2], [1.0, 2.0], seed=4)) != first
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    assert len(second) == len(first)
    assert {segment for batch in second for segment in batch} == set(range(49))
    sampler.set_epoch(0)
    assert list(sampler) == first


@pytest.mark.parametrize(("num_segments", "batch_size"), [(1000, 7), (5, 7), (7, 7), (64, 1), (20, 7)])
def test_batches_of_similar_lengths_use_every_segment_as_early(num_segments: int, batch_size: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 100, num_segments)
    sampler = TaskBatchSampler([num_segments], [batch_size], [1.0], seed=3, lengths=lengths)
    plain = TaskBatchSampler([num_segments], [batch_size], [1.0], seed=3)
    batches = list(sampler)
    assert len(batches) == len(plain) == -(-num_segments // batch_size)
    assert all(len(batch) == batch_size for batch in batches)
    assert {segment for batch in batches for segment in batch} == set(range(num_segments))
    assert list(sampler) == batches
    # Many repetitions: each segment as often as any other.
    segments = list(itertools.islice(sampler._order_by_length(0, 0), num_segments * 6))
    assert set(np.bincount(segments)) == {6}
    if num_segments == 1000:
        spread = np.mean([np.ptp(lengths[batch]) for batch in batches])
        assert spread < 0.2 * np.mean([np.ptp(lengths[batch]) for batch in plain])


@pytest.mark.parametrize("epoch", [0, 3])
def test_processes_can_be_kept_on_one_task(epoch: int) -> None:
    sampler = TaskBatchSampler([40, 90], [4, 2], [1.0, 2.0], seed=3, num_processes=4, same_task=True)
    sampler.set_epoch(epoch)
    tasks = [int(batch[0] >= 40) for batch in sampler]
    steps = np.array(tasks).reshape(-1, 4)
    assert (steps == steps[:, :1]).all()
    assert set(steps[:, 0]) == {0, 1}
    assert {segment for batch in sampler for segment in batch} == set(range(130))


# ---- streams -------------------------------------------------------------------------------------------------------


def make_stream(data: Path, processor: Any, tasks: Any, **options: Any) -> TaskStream:
    streamed = []
    for task, weight in tasks.items():
        source = open_source(str(data), task, "train", task=TASKS.get(task), streaming=True)
        assert source is not None
        settings = SegmentSettings.of(task, "train", STEPS, tiny_config(), processor)
        streamed.append(StreamedTask(source, settings, 3, weight, loss_weight=3.0, own_weight=True))
    return TaskStream(streamed, processor, seed=1, **options)


def rows_of(batch: dict[str, Any]) -> list[bytes]:
    """Return the rewards of each segment without padding, which identify it."""
    pairs = zip(batch["rewards"], batch["attention_mask"].bool(), strict=True)
    return [rewards[mask].numpy().tobytes() for rewards, mask in pairs]


@pytest.mark.versions
@pytest.mark.parametrize("task", KINDS)
def test_a_stream_has_the_same_segments(task: str, data: Path, tmp_path: Path, processor: Any) -> None:
    segments = make_segments(data, task, tmp_path, processor)
    expected = {row: n for n in range(len(segments)) for row in rows_of(segments.gather(np.array([n])))}
    seen = set()
    for batch, _ in zip(make_stream(data, processor, {task: 1.0}), range(150), strict=False):
        assert batch.pop("task") == task
        numbers = [expected[row] for row in rows_of(batch)]
        seen |= set(numbers)
        same = segments.gather(np.array(numbers))
        assert batch.keys() == same.keys()
        assert all(torch.equal(batch[name], values) for name, values in same.items())
    assert seen == set(range(len(segments)))


def test_a_stream_draws_tasks_by_weight_and_repeats_itself(data: Path, processor: Any) -> None:
    tasks = {"mujoco-hopper": 3.0, "babyai-go-to-local": 1.0}
    first = [batch for batch, _ in zip(make_stream(data, processor, tasks), range(200), strict=False)]
    again = [batch for batch, _ in zip(make_stream(data, processor, tasks), range(200), strict=False)]
    assert [rows_of(a) for a in first] == [rows_of(b) for b in again]
    assert abs(sum(batch["task"] == "mujoco-hopper" for batch in first) / 200 - 0.75) < 0.1


def test_processes_stream_different_rows(tmp_path: Path, processor: Any) -> None:
    for shard in range(2):  # rows are shared out as they are read: at most a file at once
        path = write_split(tmp_path / str(shard), "mujoco-hopper", "train", [episode("continuous", 5, shard)])
        (tmp_path / "data/mujoco-hopper").mkdir(parents=True, exist_ok=True)
        path.rename(tmp_path / f"data/mujoco-hopper/train-{shard}.parquet")
    seen = []
    for rank in range(2):
        stream = make_stream(tmp_path / "data", processor, {"mujoco-hopper": 1.0}, rank=rank, world_size=2)
        seen.append({row for batch, _ in zip(stream, range(20), strict=False) for row in rows_of(batch)})
    assert len(seen[0]) == len(seen[1]) == 1
    assert seen[0] != seen[1]


# ---- the recipe ----------------------------------------------------------------------------------------------------


def test_published_numbers() -> None:
    tasks = ("mujoco-ant", "metaworld-reach", "mujoco-pendulum", "mujoco-doublependulum", "atari-pong", "babyai-go-to")
    assert [recipe.loss_weight(TASKS.get(task)) for task in tasks] == [10, 50, 50, 20, 1, 1]
    assert [recipe.sampling_weight(TASKS.get(task)) for task in ("oscar", "atari-pong")] == [10, 1]
    config = tiny_config()
    config.max_position_embeddings = 512
    assert [recipe.segment_length(TASKS.get(task), config) for task in ("atari-pong", "mujoco-ant", "oscar")] == [
        32,
        256,
        512,
    ]


def test_overrides() -> None:
    tasks = {"mujoco-ant": TASKS["mujoco-ant"], "mujoco-hopper": TASKS["mujoco-hopper"], "oscar": None}
    chosen = recipe.overrides("--loss_weights", ["mujoco-ant=2", "mujoco=5.5"], tasks, float)
    assert chosen == {"mujoco-ant": 2.0, "mujoco-hopper": 5.5}
    for given, message in (
        ("mujoco", "--loss_weights: expected task=number"),
        ("atari=2", "expected a task or domain that is trained, got 'atari'"),
        ("oscar=x", "oscar: expected a number above 0, got 'x'"),
        ("oscar=0", "oscar: expected a number above 0, got '0'"),
    ):
        with pytest.raises(ValueError, match=message):
            recipe.overrides("--loss_weights", [given], tasks, float)


def test_names_of_tasks_and_texts() -> None:
    def find(name: str) -> list[Task]:
        return find_tasks([name])

    chosen = recipe.choose(["oscar", "text:my-books", "mujoco-ant", "mujoco"], find)
    assert list(chosen)[:3] == ["oscar", "my-books", "mujoco-ant"]
    assert [chosen["oscar"], chosen["mujoco-ant"]] == [None, TASKS["mujoco-ant"]]
    assert len(recipe.choose(["all"], find)) == 157
    with pytest.raises(UnknownTaskError, match=r"mujoco-hoper.*did you mean mujoco-hopper.*text:NAME"):
        recipe.choose(["mujoco-hoper"], find)
