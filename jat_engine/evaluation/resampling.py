"""Stratified bootstrap of the scores of several tasks: each task's episodes are resampled among themselves.

A repetition is an array of counts: how often each episode was drawn. Estimates of many repetitions are computed from
their counts at once, without sorting again. Sums do not depend on the number of threads: equal scores give equal bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

_CHUNK = 250_000
"""Largest number of counts in memory at once (2 MB, which stay in the processor's cache)."""


@dataclass(frozen=True)
class Pool:
    """Scores of all tasks as one array.

    Attributes:
        values: float64 [N], the episodes of the first task, then those of the second, and so on.
        sizes: int64 [T], number of episodes of each task; at least 1.
    """

    values: np.ndarray
    sizes: np.ndarray
    _order: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_order", np.argsort(self.values, kind="stable"))

    @classmethod
    def of(cls, scores: Iterable[np.ndarray]) -> Pool | None:
        """Return the scores of tasks, one array per task, without tasks that have none; None if no task has any."""
        arrays = [np.asarray(task, np.float64) for task in scores]
        arrays = [task for task in arrays if task.size]
        if not arrays:
            return None
        return cls(np.concatenate(arrays), np.array([task.size for task in arrays], np.int64))

    @property
    def num_tasks(self) -> int:
        """Number of tasks, T."""
        return len(self.sizes)

    @property
    def num_episodes(self) -> int:
        """Number of episodes of all tasks, N."""
        return len(self.values)

    @property
    def starts(self) -> np.ndarray:
        """Index of each task's first episode, int64 [T]."""
        return np.asarray(np.cumsum(self.sizes) - self.sizes, np.int64)

    @property
    def once(self) -> np.ndarray:
        """Counts of the scores themselves, int64 [1, N]."""
        return np.ones((1, self.num_episodes), np.int64)

    def counts(
        self, resamples: int, rng: np.random.Generator, rows: int | None = None, fewer: int = 0
    ) -> Iterator[np.ndarray]:
        """Draw the repetitions of a bootstrap, and yield their counts in parts.

        Args:
            resamples: number of repetitions, R.
            rng: generator of the draws. They do not depend on `rows`.
            rows: repetitions in each part; None for a number that suits the memory.
            fewer: by how much the draws of a task are fewer than its episodes.

        Yields:
            int64 [rows, N], in all [R, N]. Counts of a task's episodes sum to the number of its draws.
        """
        number, rows = self.num_episodes, self.rows if rows is None else rows
        highs, offsets = (np.repeat(column, self.sizes - fewer) for column in (self.sizes, self.starts))
        for first in range(0, resamples, rows):
            part = min(rows, resamples - first)
            drawn = rng.integers(highs, size=(part, len(highs)))
            drawn += offsets + np.arange(part)[:, None] * number
            yield np.bincount(drawn.ravel(), minlength=part * number).reshape(part, number)

    @property
    def rows(self) -> int:
        """Repetitions that suit the memory."""
        return max(1, _CHUNK // self.num_episodes)

    def task_means(self, counts: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
        """Return the mean of each task in each repetition, float64 [R, T].

        Args:
            counts: [R, N].
            values: what to average, float64 [N]; None for the scores.
        """
        sums = np.add.reduceat(counts * (self.values if values is None else values), self.starts, axis=1)
        return np.asarray(sums / self._draws(counts), np.float64)

    def interquartile_means(self, counts: np.ndarray) -> np.ndarray:
        """Return the interquartile mean of each repetition, float64 [R].

        Every task has the same weight. floor(N / 4) of N episodes' weight is cut at each end.
        """
        number = self.num_episodes
        cut = number // 4
        total = np.clip(self._cumulative(counts), cut, number - cut)
        kept = np.subtract(total[:, 1:], total[:, :-1])
        kept *= self.values[self._order][1:]
        first = (total[:, 0] - cut) * self.values[self._order[0]]
        return np.asarray((first + kept.sum(axis=1)) / (number - 2 * cut), np.float64)

    def shares_above(self, counts: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
        """Return the share of the weight above each of K thresholds in each repetition, float64 [R, K]."""
        number = self.num_episodes
        below = np.pad(self._cumulative(counts), ((0, 0), (1, 0)))
        places = np.searchsorted(self.values[self._order], thresholds, side="right")
        return np.asarray((number - below[:, places]) / number, np.float64)

    def _cumulative(self, counts: np.ndarray) -> np.ndarray:
        """Return the weight up to each episode in the order of the scores, float64 [R, N]; in all N.

        With equal numbers of episodes each has weight 1, and all sums are exact.
        """
        weights = np.repeat(self.num_episodes / self.num_tasks / self._draws(counts), self.sizes)
        return np.cumsum(counts[:, self._order] * weights[self._order], axis=1)

    def _draws(self, counts: np.ndarray) -> np.ndarray:
        """Return the number of draws of each task, int64 [T], which all repetitions have in common."""
        return np.asarray(np.add.reduceat(counts[0], self.starts), np.int64)

    def improvements(self, counts: np.ndarray, other: Pool, other_counts: np.ndarray) -> np.ndarray:
        """Return the probability that an episode of `other` has the higher score, averaged over tasks, float64 [R].

        Args:
            counts: [R, N] of this pool.
            other: scores of another agent, for the same tasks.
            other_counts: [R, M] of `other`.
        """
        total = np.zeros(len(counts))
        ends, other_ends = np.cumsum(self.sizes)[:-1], np.cumsum(other.sizes)[:-1]
        for mine, drawn, theirs, other_drawn in zip(
            np.split(self.values, ends),
            np.split(counts, ends, axis=1),
            np.split(other.values, other_ends),
            np.split(other_counts, other_ends, axis=1),
            strict=True,
        ):
            order = np.argsort(mine, kind="stable")
            below = np.pad(np.cumsum(drawn[:, order], axis=1), ((0, 0), (1, 0)))
            left, right = (np.searchsorted(mine[order], theirs, side=side) for side in ("left", "right"))
            wins = (below[:, left] + below[:, right]) * other_drawn  # twice, so that ties count half
            total += wins.sum(axis=1) / (2 * len(mine) * len(theirs))
        return np.asarray(total / self.num_tasks, np.float64)


def bootstrap(
    pool: Pool, estimate: Callable[[np.ndarray], np.ndarray], resamples: int, seed: int, fewer: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return estimates of the scores themselves, and those of all repetitions.

    Args:
        pool: the scores.
        estimate: function from counts [R, N] to K estimates of each repetition, [R, K].
        resamples: number of repetitions.
        seed: seed of the draws.
        fewer: by how much the draws of a task are fewer than its episodes.

    Returns:
        float64 [K] and float64 [resamples, K].
    """
    rng = np.random.default_rng(seed)
    repeated = [estimate(counts) for counts in pool.counts(resamples, rng, fewer=fewer)]
    return estimate(pool.once)[0], np.concatenate(repeated)
