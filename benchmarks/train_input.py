"""Time bringing episodes to a training step, and the step itself; ours and the published way.

    jat-engine collect --tasks babyai-go-to-local metaworld-reach --num_episodes 300 --output_dir data
    python benchmarks/train_input.py --dataset data --tasks babyai-go-to-local metaworld-reach --out results.json

Rows of the tables, for each task:
  published, padded as read: rows of a `datasets` dataset are pieces; `JatProcessor` pads each to the longest length
      there can be, Trainer's default collation stacks them.
  published, padded before: the same, but rows were padded once and are read back as tensors (without images: padded
      frames are a hundred times their PNG files).
  ours: `TaskDataset`: one indexing operation for each column of a batch, padded to the longest piece of the batch.
  limit: a copy of the bytes of our batch, the least that handing over a batch can cost.
A training step is forward, backward and AdamW on a small model: of the published way with everything decoded and
the published attention, of ours as `JatTrainer` does it. Both in bfloat16 (autocast).

Prediction, before measuring: reading a padded piece as nested lists costs milliseconds a sample (0.1 us for each of
its numbers), a gathered one its copy. So input is 100 times faster for continuous and discrete tasks, and, decoding PNG
files being some 0.3 ms a frame, 10 to 50 times for images. A step of episodes that are shorter than the longest length
there can be is faster about in proportion, where all are that long by a third.
Measured (results/train_input.md): the published way is faster than predicted for few features, so input of continuous
tasks is 20 to 60 times faster; images are 60 times faster. Steps are as predicted, but for images: their convolutions,
which both sides have, are nearly all of it.

The two sides take turns in one run; figures are medians with 10th and 90th percentiles over repetitions.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import default_data_collator

from jat_engine import JatConfig, JatModel, JatProcessor
from jat_engine.bench.report import by_column, markdown
from jat_engine.datasets.schema import task_features
from jat_engine.datasets.sources import open_source
from jat_engine.envs import TASKS
from jat_engine.installation import cpu_name, versions
from jat_engine.training import recipe
from jat_engine.training.dataset import TASK, Segments, TaskDataset, as_batch, scale_frames
from jat_engine.training.prepare import prepare
from jat_engine.training.sampler import TaskBatchSampler
from jat_engine.training.segments import SegmentSettings

SMALL = {"hidden_size": 192, "num_layers": 4, "num_heads": 6, "max_continuous_size": 40, "vocab_size": 257}
BATCH_SIZES = {"continuous": 8, "discrete+text": 16, "image": 4}

Batches = Iterator[dict[str, Any]]


def episodes(dataset: Path, task: str, length: int, most: int) -> datasets.Dataset:
    """Return the first pieces of a task as rows in the published columns, rewards shifted, not padded."""
    rows: list[dict[str, Any]] = []
    features = task_features(TASKS[task])
    source = datasets.load_dataset(
        "parquet", data_files=str(dataset / task / "train-*.parquet"), split="train", features=features, streaming=True
    )
    for episode in source.decode(False):
        episode["rewards"] = [0.0, *episode["rewards"][:-1]]
        steps = len(episode["rewards"])
        for start in range(0, steps, length):
            rows.append({name: values[start : start + length] for name, values in episode.items()})
            if len(rows) == most:
                return datasets.Dataset.from_list(rows, features=features)
    return datasets.Dataset.from_list(rows, features=features)


def forever(loader: DataLoader) -> Batches:
    while True:
        yield from loader


def pad_rows(processor: Any, length: int, weight: float) -> Callable[[dict[str, list[Any]]], dict[str, Any]]:
    def transform(rows: dict[str, list[Any]]) -> dict[str, Any]:
        encoded = dict(processor(**rows, padding="max_length", max_length=2 * length))
        encoded["loss_weight"] = [[weight] * length] * len(encoded["attention_mask"])
        return encoded

    return transform


def sides(dataset: Path, task: str, config: JatConfig, most: int, cache: Path) -> dict[str, Batches]:
    """Return endless batches, by the name of the way they are made."""
    processor = JatProcessor.byte_level(config)
    length, weight = recipe.segment_length(task, config), recipe.loss_weight(task)
    size = BATCH_SIZES[TASKS[task].observation]
    rows = episodes(dataset, task, length, most)
    if len(rows) < size:
        raise SystemExit(f"{task}: expected at least the {size} pieces of a batch, got {len(rows)}; collect more")
    transform = pad_rows(processor, length, weight)
    options: dict[str, Any] = {"batch_size": size, "shuffle": True, "drop_last": True}

    made = {
        "published, padded as read": DataLoader(
            rows.with_transform(transform), collate_fn=default_data_collator, **options
        )
    }
    if TASKS[task].observation != "image":
        padded = rows.map(transform, batched=True, batch_size=16, remove_columns=rows.column_names).with_format("torch")
        made["published, padded before"] = DataLoader(padded, collate_fn=default_data_collator, **options)

    source = open_source(str(dataset), task, "train")
    assert source is not None
    folder = prepare(source, SegmentSettings.of(task, "train", length, config, processor), processor, cache)
    pieces = Segments(folder, task, loss_weight=weight, limit=len(rows))
    sampler = TaskBatchSampler([len(pieces)], [size], [1.0])
    made["ours"] = DataLoader(TaskDataset([pieces]), batch_sampler=sampler, collate_fn=as_batch)
    return {name: forever(loader) for name, loader in made.items()}


def tensors(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in batch.items() if name != TASK}


def measure(
    dataset: Path, task: str, config: JatConfig, arguments: argparse.Namespace, cache: Path
) -> list[dict[str, Any]]:
    batches = sides(dataset, task, config, arguments.pieces, cache)
    input_s: dict[str, list[float]] = {name: [] for name in [*batches, "limit"]}
    step_s: dict[str, list[float]] = {name: [] for name in ("published, padded before", "ours")}
    steps: dict[str, list[int]] = {name: [] for name in batches}
    models = {}
    for name in step_s:
        torch.manual_seed(0)
        model = JatModel(config)
        model.transformer.plain_attention = name != "ours"
        models[name] = model, torch.optim.AdamW(model.parameters())

    for repetition in range(arguments.repetitions + 1):
        for name, iterator in batches.items():
            began = time.perf_counter()
            for _ in range(arguments.batches):
                batch = next(iterator)
            seconds = (time.perf_counter() - began) / arguments.batches
            if repetition:  # the first warms up
                input_s[name].append(seconds)
                steps[name].append(int(batch["attention_mask"].sum()))
            if name == "ours":
                began = time.perf_counter()
                for value in tensors(batch).values():
                    value.clone()
                if repetition:
                    input_s["limit"].append(time.perf_counter() - began)
            side = "ours" if name == "ours" else "published, padded before"
            if name == "published, padded as read" and side in batches:
                continue
            model, optimizer = models[side]
            began = time.perf_counter()
            train_step(model, optimizer, tensors(batch), loss_only=name == "ours")
            if repetition:
                step_s[side].append(time.perf_counter() - began)

    size = BATCH_SIZES[TASKS[task].observation]
    mean_steps = float(np.mean([s for counts in steps.values() for s in counts]))  # the pieces are the same
    result = []
    for name, seconds in input_s.items():
        row: dict[str, Any] = {"task": task, "way": name, "ms a batch": spread(seconds, 1e3)}
        row["pieces/s"] = size / float(np.median(seconds))
        row["steps/s"] = mean_steps / float(np.median(seconds))
        row["times faster"] = float(np.median(input_s["published, padded as read"]) / np.median(seconds))
        side = "published, padded before" if name == "published, padded as read" and len(input_s) == 3 else name
        if step_s.get(side):
            row["training step, ms"] = spread(step_s[side], 1e3)
            row["step, times faster"] = float(np.median(step_s["published, padded before"]) / np.median(step_s[side]))
        result.append(row)
    return result


def train_step(model: Any, optimizer: Any, batch: dict[str, torch.Tensor], loss_only: bool) -> None:
    frames = batch.get("image_observations")
    if frames is not None and frames.dtype == torch.uint8:
        batch["image_observations"] = scale_frames(frames)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch, loss_only=loss_only).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def spread(seconds: list[float], unit: float) -> str:
    low, median, high = np.percentile(seconds, [10, 50, 90]) * unit
    return f"{median:.3g} ({low:.3g} to {high:.3g})"


def main() -> None:
    parser = argparse.ArgumentParser(description="Input of a training, and a small model's training step.")
    parser.add_argument("--dataset", type=Path, required=True, help="folder that jat-engine collect wrote")
    parser.add_argument("--tasks", nargs="+", required=True)
    parser.add_argument("--pieces", type=int, default=96, help="of each task, at most")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--batches", type=int, default=4, help="of input in a repetition; one of them is trained on")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True, help=".json; tables go into .md next to it")

    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    datasets.disable_progress_bars()
    config = JatConfig(**SMALL, bos_token_id=256, eos_token_id=256)
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        for task in arguments.tasks:
            measured = measure(arguments.dataset, task, config, arguments, Path(cache))
            print(markdown(by_column(measured)), flush=True)
            rows += measured

    machine = f"{cpu_name()}, {arguments.threads} threads, {platform.platform()}"
    report = {"machine": machine, "versions": versions(), "model": SMALL, "batch_sizes": BATCH_SIZES, "rows": rows}
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    note = f"{machine}. Model: {SMALL}; pieces in a batch: {BATCH_SIZES}. Median (10th to 90th percentile)."
    arguments.out.with_suffix(".md").write_text(f"{note}\n\n{markdown(by_column(rows))}\n")


if __name__ == "__main__":
    main()
