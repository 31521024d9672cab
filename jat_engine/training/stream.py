"""Make batches from data that is read while training, for datasets that are too large to store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from ..datasets.sources import Source
from ..envs import Task
from ..errors import DataError
from .dataset import TASK, Batch, gather
from .segments import START, Cutter, SegmentSettings

_BUFFER = 256
"""Segments of a task that are held, and from which the next one is drawn."""


@dataclass(frozen=True)
class StreamedTask:
    """One task of a `TaskStream`.

    Attributes:
        source: the rows to read.
        settings: how to cut them into segments.
        batch_size: segments per batch.
        sampling_weight: how often batches of this task are drawn, relative to other tasks.
        loss_weight, own_weight: as in `gather`.
        task: the RL task, whose columns the rows must have; None takes any columns.
    """

    source: Source
    settings: SegmentSettings
    batch_size: int
    sampling_weight: float
    loss_weight: float
    own_weight: bool
    task: Task | None = None

    @property
    def name(self) -> str:
        """The task's name."""
        return self.settings.task


class TaskStream(IterableDataset[Batch]):
    """Yield batches of one task each, without end.

    Tasks are drawn by weight, and segments from the last `_BUFFER` that were read. Processes, and the workers of their
    loaders, read different rows.

    Args:
        tasks: the tasks to draw from.
        processor: a `JatProcessor`; encodes missions and texts and prepares images.
        seed: of all random choices.
        rank: number of this process.
        world_size: number of processes.
    """

    def __init__(
        self, tasks: Sequence[StreamedTask], processor: Any, *, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.tasks = list(tasks)
        self.processor = processor
        self.seed = seed
        self.rank = rank
        self.world_size = world_size

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        num_workers, number = (worker.num_workers, worker.id) if worker is not None else (1, 0)
        share, num_shares = self.rank * num_workers + number, self.world_size * num_workers
        generator = np.random.default_rng([self.seed, share])
        weights = np.array([task.sampling_weight for task in self.tasks])
        segments = [shuffle(self._segments(task, share, num_shares), generator) for task in self.tasks]
        while True:
            drawn = int(generator.choice(len(self.tasks), p=weights / weights.sum()))
            task = self.tasks[drawn]
            yield {**join([next(segments[drawn]) for _ in range(task.batch_size)]), TASK: task.name}

    def _segments(self, task: StreamedTask, share: int, num_shares: int) -> Iterator[Batch]:
        """Yield the segments of every `num_shares`-th read, each a batch of one, over and over.

        Raises:
            DataError: the source is empty, or none of its texts has two tokens.
        """
        options: dict[str, Any] = {"loss_weight": task.loss_weight, "own_weight": task.own_weight}
        options["image_processor"] = self.processor.image_processor
        cutter = Cutter(task.settings, self.processor, task.task)
        while True:
            num_segments = num_rows = 0
            for number, rows in enumerate(task.source.read()):
                num_rows += rows.table.num_rows
                if number % num_shares != share or not rows.table.num_rows:
                    continue
                arrays = cutter.cut(rows)
                arrays["missions"] = cutter.missions
                for segment in range(len(arrays[START])):
                    yield gather(arrays, np.array([segment]), **options)
                    num_segments += 1

            if not num_rows:
                raise DataError(f"{task.source.where}: expected at least one episode or text, got none")
            if not num_segments:  # fewer reads than shares, or only texts that are too short
                if num_shares == 1:
                    raise DataError(f"{task.source.where}: expected texts of at least two tokens, got none")
                share, num_shares = 0, 1


def shuffle(segments: Iterator[Batch], generator: np.random.Generator) -> Iterator[Batch]:
    """Yield segments in random order: each is drawn from `_BUFFER` held ones and replaced by the next.

    Args:
        segments: without end.
        generator: draws them.
    """
    buffer: list[Batch] = []
    for segment in segments:
        if len(buffer) < _BUFFER:
            buffer.append(segment)
            if len(buffer) < _BUFFER:
                continue
            segment = buffer.pop()
        chosen = int(generator.integers(len(buffer)))
        buffer[chosen], segment = segment, buffer[chosen]
        yield segment


def join(segments: Sequence[Batch]) -> Batch:
    """Join batches of one segment into one batch, padded to the longest with the first step of each.

    Args:
        segments: B batches with the same columns, [1, L, ...] each; L may differ.

    Returns:
        The columns, [B, longest L, ...]; `attention_mask` is 0 where a step is padding.
    """
    longest = max(segment["attention_mask"].shape[1] for segment in segments)
    batch: Batch = {}
    for name in segments[0]:
        if name == "pixel_values":
            batch[name] = torch.cat([segment[name] for segment in segments])
            continue

        padded = []
        for segment in segments:
            values = segment[name]  # [1, L, ...]
            missing = longest - values.shape[1]
            first = torch.zeros_like(values[:, :1]) if name == "attention_mask" else values[:, :1]
            padded.append(torch.cat([values, *[first] * missing], dim=1))
        batch[name] = torch.cat(padded)
    return batch
