"""Choose the segments of each batch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

_POOL = 50
"""Batches that are sorted by length together."""


class TaskBatchSampler(Sampler[list[int]]):
    """Sample batches of one task each; each batch's task is drawn by weight, until every segment has been used.

    A task whose segments run out before those of other tasks starts over in another order. The first epoch ends when
    every segment has been used; later epochs have the same number of batches of each task in another order, so that a
    run can be resumed at any step. Everything follows from the seed.

    Args:
        num_segments: segments of each task, which are numbered consecutively, task after task.
        batch_sizes: segments per batch, for each task.
        weights: how often a task is drawn, relative to the others.
        seed: of all random choices.
        num_processes: processes that take batches in turn; an epoch has equally many for each.
        same_task: give all processes batches of the same task at every step.
        lengths: steps of all segments, int64 [sum(num_segments)]: batches are then made of segments of similar length.
            None ignores lengths.
    """

    def __init__(
        self,
        num_segments: Sequence[int],
        batch_sizes: Sequence[int],
        weights: Sequence[float],
        *,
        seed: int = 0,
        num_processes: int = 1,
        same_task: bool = False,
        lengths: np.ndarray | None = None,
    ) -> None:
        self.num_segments = list(num_segments)
        self.batch_sizes = list(batch_sizes)
        self.weights = np.asarray(weights, np.float64) / np.sum(weights)
        self.lengths = lengths

        self.seed = seed
        self.epoch = 0
        self.drop_last = False  # accelerate asks

        self._first = np.cumsum([0, *self.num_segments])
        self._group = num_processes if same_task else 1
        draws = self._draw(num_processes // self._group)
        self._tasks = np.repeat(draws, self._group)  # [batches], task of each

    def __len__(self) -> int:
        return len(self._tasks)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches the next iteration gives; transformers' Trainer calls this."""
        self.epoch = epoch

    def tasks(self, epoch: int) -> np.ndarray:
        """Return the index of the task of each batch of an epoch, int64 [batches]."""
        if epoch == 0:
            return self._tasks
        return np.repeat(self._generator(epoch).permutation(self._tasks[:: self._group]), self._group)

    def __iter__(self) -> Iterator[list[int]]:
        epoch = self.epoch
        order = self._order if self.lengths is None else self._order_by_length
        orders = [order(task, epoch) for task in range(len(self.num_segments))]
        for task in self.tasks(epoch).tolist():
            yield [next(orders[task]) for _ in range(self.batch_sizes[task])]

    def _order(self, task: int, epoch: int) -> Iterator[int]:
        """Yield the segments of a task without end, each repetition in another order."""
        repetition = 0
        while True:
            order = self._generator(epoch, task, repetition).permutation(self.num_segments[task])
            yield from (order + self._first[task]).tolist()
            repetition += 1

    def _order_by_length(self, task: int, epoch: int) -> Iterator[int]:
        """Yield segments as `_order` does, with segments of similar length in each batch.

        `_POOL` batches at a time are sorted by length, cut into batches, and shuffled. Segments left at the end of
        a repetition go into the very next batch, so that every segment is used as early as without sorting.
        """
        assert self.lengths is not None, "__iter__ chooses"
        size = self.batch_sizes[task]
        segments = self._order(task, epoch)
        generator = self._generator(epoch, task, len(self.num_segments))
        rest = 0  # segments of the batch across the end of a repetition
        while True:
            yield from itertools.islice(segments, (size - rest) % size)
            count = max(0, self.num_segments[task] - (size - rest) % size)
            whole = count // size * size  # segments in whole batches
            for first in range(0, whole, size * _POOL):
                pool = np.fromiter(itertools.islice(segments, min(size * _POOL, whole - first)), np.int64)
                batches = pool[np.argsort(self.lengths[pool], kind="stable")].reshape(-1, size)
                yield from generator.permutation(batches).flatten().tolist()
            rest = count % size
            yield from itertools.islice(segments, rest)

    def _draw(self, multiple_of: int) -> np.ndarray:
        """Draw tasks by weight until each has come often enough to use all of its segments, int64 [draws]."""
        needed = -(-np.asarray(self.num_segments) // (np.asarray(self.batch_sizes) * self._group))
        generator = self._generator(0)
        drawn = np.zeros(0, np.int64)
        while True:
            size = max(1024, int(needed.sum()), len(drawn))  # twice as many each time
            drawn = np.concatenate((drawn, generator.choice(len(self.weights), size=size, p=self.weights)))
            last = [self._nth(drawn, task, int(count)) for task, count in enumerate(needed)]
            length = max(last) + 1
            length += -length % multiple_of
            if length <= len(drawn):
                return drawn[:length]

    @staticmethod
    def _nth(drawn: np.ndarray, task: int, count: int) -> int:
        """Return the index of the draw of `task` number `count`; `len(drawn)` if there are fewer."""
        places = np.flatnonzero(drawn == task)
        return int(places[count - 1]) if len(places) >= count else len(drawn)

    def _generator(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *key])


class InOrderBatchSampler(Sampler[list[int]]):
    """Give all segments of a dataset in order, equally many batches to every process; some batches come twice for that.

    Processes gather their losses after every batch, so a process without a batch would block the others.

    Args:
        num_segments: of the dataset.
        batch_size: segments per batch; the last batch may be smaller.
        num_processes: processes that take batches in turn.
    """

    def __init__(self, num_segments: int, batch_size: int, num_processes: int) -> None:
        starts = range(0, num_segments, batch_size)
        batches = [list(range(start, min(start + batch_size, num_segments))) for start in starts]
        needed = -(-len(batches) // num_processes) * num_processes
        self._batches = [batches[number % len(batches)] for number in range(needed)]
        self.drop_last = False  # accelerate asks

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)
