"""Measure the return of the random policy on a task, with the workers that collect its episodes."""

from __future__ import annotations

from pathlib import Path

from ..envs import Task, get_domain
from ..evaluation.random_policy import RANDOM_SEED, score
from .chunks import Attempt, Chunk, ChunkFolder
from .worker import Job

_FOLDER = "random"


class Measurement:
    """Keep track of the episodes that the random policy plays. Those of an interrupted collection are taken up.

    Args:
        task: the task.
        folder: of the task's unfinished episodes, which exists and is locked; receives a folder "random".
        num_episodes: episodes to play; with 0 nothing is done.
    """

    def __init__(self, task: Task, folder: Path, num_episodes: int) -> None:
        self._task, self._num_episodes = task, num_episodes
        self._attempts: dict[int, Attempt] = {}
        self._playing: set[int] = set()
        self._folder = folder / _FOLDER
        if num_episodes:
            played = ChunkFolder(self._folder, {"seed": RANDOM_SEED, "versions": {}})
            played.close()  # the task's folder is locked
            for chunk in played.chunks():
                self.add(chunk)

    @property
    def ready(self) -> bool:
        """True once all episodes are played."""
        return not self._playing and not self._missing()

    def _missing(self) -> list[int]:
        return [i for i in range(self._num_episodes) if i not in self._attempts and i not in self._playing]

    def next_job(self, num_workers: int) -> Job | None:
        """Return the job for an idle worker; None if all episodes are played or being played.

        Args:
            num_workers: workers that share the remaining episodes.
        """
        missing = self._missing()
        if not missing:
            return None
        first = missing[0]
        share = -(-len(missing) // (2 * num_workers))
        stop = first + 1
        while stop in missing and stop < first + min(share, get_domain(self._task.domain).job_episodes):
            stop += 1

        self._playing.update(range(first, stop))
        return Job(
            self._task,
            first,
            stop,
            folder=self._folder,
            seed=RANDOM_SEED,
            noise=0.0,
            keep_failures=True,
            is_measurement=True,
        )

    def add(self, chunk: Chunk) -> None:
        """Add the chunk of a finished job."""
        self._playing.difference_update(attempt.index for attempt in chunk.attempts)
        self._attempts.update((attempt.index, attempt) for attempt in chunk.attempts)

    def score(self) -> dict[str, float] | None:
        """Return "mean", "std" and "episodes" of the returns; None if none were asked for."""
        if not self._num_episodes:
            return None
        return score([self._attempts[index].return_ for index in range(self._num_episodes)])
