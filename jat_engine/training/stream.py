"""Batches from data that is read as it is needed: for datasets that are too big to keep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from ..errors import DataError
from .dataset import TASK, Batch, gather
from .segments import Cutter, PieceSettings
from .sources import Source

_BUFFER = 256
"""Pieces of a task that the next one is drawn from."""


@dataclass(frozen=True)
class StreamedTask:
    """One task of a `TaskStream`.

    Attributes:
        source, settings: what is read, and how it is cut.
        batch_size: pieces in a batch.
        sampling_weight: how often a batch is of this task, relative to others.
        loss_weight, own_weight: as in `gather`.
    """

    source: Source
    settings: PieceSettings
    batch_size: int
    sampling_weight: float
    loss_weight: float
    own_weight: bool

    @property
    def name(self) -> str:
        return self.settings.task


class TaskStream(IterableDataset[Batch]):
    """Batches of one task each, without end; tasks are drawn by weight, pieces from the last few that were read.

    Processes, and workers of their loaders, read different rows.

    Args:
        rank, world_size: which of how many processes this is.
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
        pieces = [shuffle(self._pieces(task, share, num_shares), generator) for task in self.tasks]
        while True:
            drawn = int(generator.choice(len(self.tasks), p=weights / weights.sum()))
            task = self.tasks[drawn]
            yield {**join([next(pieces[drawn]) for _ in range(task.batch_size)]), TASK: task.name}

    def _pieces(self, task: StreamedTask, share: int, num_shares: int) -> Iterator[Batch]:
        """The pieces of a share of the rows, each a batch of one; from the beginning again when all were read."""
        options: dict[str, Any] = {"loss_weight": task.loss_weight, "own_weight": task.own_weight}
        options["image_processor"] = self.processor.image_processor
        cutter = Cutter(task.settings, self.processor)
        while True:
            num_pieces = num_rows = 0
            for number, rows in enumerate(task.source.read()):
                num_rows += rows.table.num_rows
                if number % num_shares != share or not rows.table.num_rows:
                    continue
                arrays = cutter.cut(rows)
                arrays["missions"] = cutter.missions
                for piece in range(len(arrays["piece_start"])):
                    yield gather(arrays, np.array([piece]), **options)
                    num_pieces += 1
            if not num_rows:
                raise DataError(f"{task.source.where}: expected at least one episode or text, got none")
            if not num_pieces:  # fewer rows than shares, or none of them of use
                if num_shares == 1:
                    raise DataError(f"{task.source.where}: expected texts of at least two tokens, got none")
                share, num_shares = 0, 1


def shuffle(pieces: Iterator[Batch], generator: np.random.Generator) -> Iterator[Batch]:
    """One of `_BUFFER` pieces at a time; another takes its place."""
    buffer: list[Batch] = []
    for piece in pieces:
        if len(buffer) < _BUFFER:
            buffer.append(piece)
            if len(buffer) < _BUFFER:
                continue
            piece = buffer.pop()
        chosen = int(generator.integers(len(buffer)))
        buffer[chosen], piece = piece, buffer[chosen]
        yield piece


def join(pieces: Sequence[Batch]) -> Batch:
    """Batches of one piece -> one batch, padded to the longest with each one's first step."""
    longest = max(piece["attention_mask"].shape[1] for piece in pieces)
    batch: Batch = {}
    for name in pieces[0]:
        if name == "pixel_values":
            batch[name] = torch.cat([piece[name] for piece in pieces])
            continue
        padded = []
        for piece in pieces:
            values = piece[name]  # [1, L, ...]
            missing = longest - values.shape[1]
            first = torch.zeros_like(values[:, :1]) if name == "attention_mask" else values[:, :1]
            padded.append(torch.cat([values, *[first] * missing], dim=1))
        batch[name] = torch.cat(padded)
    return batch
