"""Which pieces make which batch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

_POOL = 50
"""Batches within which pieces are put in order of their lengths."""


class TaskBatchSampler(Sampler[list[int]]):
    """Batches of one task each; every batch's task is drawn by weight, until every piece has been used.

    A task whose pieces are used up before others are begins anew in another order. An epoch is as long as the first
    draw makes it; later ones have the same number of batches of each task in another order, so that a run can be
    resumed at any step. Everything follows from the seed.

    Args:
        num_pieces: of each task; pieces are numbered one task after the other.
        batch_sizes: pieces in a batch of each task.
        weights: how often a task is drawn, relative to the others.
        num_processes: which take batches in turn; an epoch has as many for each.
        same_task: at every step all processes get batches of the same task.
        lengths: of all pieces; batches are then made of pieces of similar lengths. None for any lengths.
    """

    def __init__(
        self,
        num_pieces: Sequence[int],
        batch_sizes: Sequence[int],
        weights: Sequence[float],
        *,
        seed: int = 0,
        num_processes: int = 1,
        same_task: bool = False,
        lengths: np.ndarray | None = None,
    ) -> None:
        self.num_pieces = list(num_pieces)
        self.batch_sizes = list(batch_sizes)
        self.weights = np.asarray(weights, np.float64) / np.sum(weights)
        self.lengths = lengths
        self.seed = seed
        self.epoch = 0
        self.drop_last = False  # accelerate asks
        self._first = np.cumsum([0, *self.num_pieces])
        self._group = num_processes if same_task else 1
        draws = self._draw(num_processes // self._group)
        self._tasks = np.repeat(draws, self._group)  # [batches], task of each

    def __len__(self) -> int:
        return len(self._tasks)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def tasks(self, epoch: int) -> np.ndarray:
        """[batches], the task of each batch of an epoch."""
        if epoch == 0:
            return self._tasks
        return np.repeat(self._generator(epoch).permutation(self._tasks[:: self._group]), self._group)

    def __iter__(self) -> Iterator[list[int]]:
        epoch = self.epoch
        order = self._order if self.lengths is None else self._order_by_length
        orders = [order(task, epoch) for task in range(len(self.num_pieces))]
        for task in self.tasks(epoch).tolist():
            yield [next(orders[task]) for _ in range(self.batch_sizes[task])]

    def _order(self, task: int, epoch: int) -> Iterator[int]:
        """The pieces of a task, shuffled, again and again."""
        repetition = 0
        while True:
            order = self._generator(epoch, task, repetition).permutation(self.num_pieces[task])
            yield from (order + self._first[task]).tolist()
            repetition += 1

    def _order_by_length(self, task: int, epoch: int) -> Iterator[int]:
        """`_order`, in which the pieces of a batch have similar lengths: 50 batches are sorted, cut, and shuffled.

        What is left of all pieces is in the very next batch, so that every piece is used as early as without sorting.
        """
        assert self.lengths is not None, "__iter__ chooses"
        size = self.batch_sizes[task]
        pieces = self._order(task, epoch)
        generator = self._generator(epoch, task, len(self.num_pieces))
        rest = 0  # pieces of the batch across the end of a repetition
        while True:
            yield from itertools.islice(pieces, (size - rest) % size)
            count = max(0, self.num_pieces[task] - (size - rest) % size)
            for first in range(0, count // size * size, size * _POOL):
                pool = np.fromiter(itertools.islice(pieces, min(size * _POOL, count // size * size - first)), np.int64)
                batches = pool[np.argsort(self.lengths[pool], kind="stable")].reshape(-1, size)
                yield from generator.permutation(batches).flatten().tolist()
            rest = count % size
            yield from itertools.islice(pieces, rest)

    def _draw(self, multiple_of: int) -> np.ndarray:
        # Draws until all are used.
        needed = -(-np.asarray(self.num_pieces) // (np.asarray(self.batch_sizes) * self._group))
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
        """Where `task` has been drawn `count` times; behind the end if it has not."""
        places = np.flatnonzero(drawn == task)
        return int(places[count - 1]) if len(places) >= count else len(drawn)

    def _generator(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *key])


class InOrderBatchSampler(Sampler[list[int]]):
    """All pieces of a dataset in order, the same number of batches for every process: some come twice for that.

    Processes gather their losses after every batch, so one that had none would keep the others waiting.
    """

    def __init__(self, num_pieces: int, batch_size: int, num_processes: int) -> None:
        starts = range(0, num_pieces, batch_size)
        batches = [list(range(start, min(start + batch_size, num_pieces))) for start in starts]
        needed = -(-len(batches) // num_processes) * num_processes
        self._batches = [batches[number % len(batches)] for number in range(needed)]
        self.drop_last = False  # accelerate asks

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)
