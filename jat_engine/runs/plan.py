"""The episodes of a run: which there are, in which order they are played, and which have to be played again."""

from __future__ import annotations

import csv
import functools
import importlib.resources
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

MAX_DEATHS = 4
"""Times that a process may end while it plays an episode, before the episode counts as failed: once among others,
then alone."""

_UNKNOWN_LENGTH = 1000.0
"""Expected steps of an episode of a task that no length is known of."""


@dataclass(frozen=True)
class Item:
    """An episode to play.

    Attributes:
        task: name of the task.
        index: of the episode, from 0.
        seed: of the environment and of the sampling.
    """

    task: str
    index: int
    seed: int


class WorkQueue:
    """Episodes that wait to be played.

    A slot goes on with the task that it has played, whose environment it has; making one takes as long as many steps.
    Otherwise it is given the task with the most expected steps left for each slot that plays it, so that no long one
    is begun last.

    An episode whose process ended may have been the cause. From then on it is played alone in a process, so that it
    takes no others with it, and counts as failed at the `MAX_DEATHS`th time.

    Args:
        items: episodes to play; those of a task are played in this order.
        length: returns the expected steps of an episode of a task.
    """

    def __init__(self, items: Iterable[Item], length: Callable[[str], float]) -> None:
        self._length = length
        self._waiting: dict[str, deque[Item]] = {}
        self._lengths: dict[str, float] = {}
        self._running: dict[str, int] = {}
        self._ended: dict[str, tuple[int, int]] = {}
        self._suspects: deque[Item] = deque()
        self._deaths: dict[Item, int] = {}
        self.add(items)

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values())) + len(self._suspects)

    def add(self, items: Iterable[Item]) -> None:
        """Add episodes to play."""
        for item in items:
            if item.task not in self._waiting:
                self._waiting[item.task] = deque()
                self._lengths[item.task] = self._length(item.task)
                self._running[item.task] = 0
            self._waiting[item.task].append(item)

    def take(self, last_task: str | None = None, is_free: bool = True) -> Item | None:
        """Return the next episode for a slot; None if there is none for it.

        Args:
            last_task: the task that the slot played before.
            is_free: the slot's process plays nothing else. Only such a process is given an episode that must be alone.
        """
        if is_free and self._suspects:
            item = self._suspects.popleft()
        elif last_task is not None and self._waiting.get(last_task):
            item = self._waiting[last_task].popleft()
        else:
            task = max(self._waiting, key=self._steps_left, default=None)
            if task is None or not self._waiting[task]:
                return None
            item = self._waiting[task].popleft()
        self._running[item.task] += 1
        return item

    def _steps_left(self, task: str) -> float:
        """Return the expected steps that are left of a task, for each slot that would play it."""
        return len(self._waiting[task]) * self._lengths[task] / (1 + self._running[task])

    @property
    def expected_steps(self) -> float:
        """Expected steps that are left; of an episode that is being played, half of it."""
        return sum(
            (len(self._waiting[task]) + self._running[task] / 2) * length for task, length in self._lengths.items()
        ) + sum(self._lengths[item.task] for item in self._suspects)

    def note_end(self, item: Item, steps: int | None = None) -> None:
        """Note that an episode is no longer played.

        Args:
            item: the episode.
            steps: its length, if it has ended: the next ones of the task are expected to be as long as those before.
        """
        self._running[item.task] -= 1
        if steps is not None:
            ended, total = self._ended.get(item.task, (0, 0))
            self._ended[item.task] = ended + 1, total + steps
            self._lengths[item.task] = (total + steps) / (ended + 1)

    def is_suspect(self, item: Item) -> bool:
        """Return True if an episode is to be played alone in its process."""
        return item in self._deaths

    def give_back(self, items: Iterable[Item]) -> None:
        """Put episodes back that were not played, such as those of a machine that is gone."""
        for item in items:
            self.note_end(item)
            (self._suspects if self.is_suspect(item) else self._waiting[item.task]).appendleft(item)

    def note_death(self, items: Iterable[Item]) -> list[Item]:
        """Put the episodes back that a process played when it ended.

        Returns:
            Those that have failed, because that has happened `MAX_DEATHS` times.
        """
        failed = []
        for item in items:
            self.note_end(item)
            self._deaths[item] = self._deaths.get(item, 0) + 1
            if self._deaths[item] >= MAX_DEATHS:
                failed.append(item)
            else:
                self._suspects.append(item)
        return failed


def plan_items(counts: Mapping[str, int], seed: int) -> list[Item]:
    """Return the first episodes of tasks; episode i has the seed `seed + i`.

    Args:
        counts: name of the task -> episodes.
        seed: of episode 0.
    """
    return [Item(task, index, seed + index) for task, count in counts.items() for index in range(count)]


def expected_length(task: str, played: Mapping[str, float], max_steps: int | None) -> float:
    """Return the expected steps of a task's episodes.

    Args:
        task: name of the task.
        played: mean lengths of episodes that this agent has played, by task; they are preferred.
        max_steps: after so many an episode is stopped.
    """
    length = played.get(task) or shipped_lengths().get(task, _UNKNOWN_LENGTH)
    return length if max_steps is None else min(length, max_steps)


@functools.cache
def shipped_lengths() -> Mapping[str, float]:
    """Return the mean steps of the published tasks' episodes, played by the random policy."""
    file = importlib.resources.files(__package__).joinpath("expected_lengths.csv")
    with file.open(encoding="utf-8") as lines:
        return {row["task"]: float(row["steps"]) for row in csv.DictReader(lines)}
