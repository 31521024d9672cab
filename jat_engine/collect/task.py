"""Follow the progress of one task, from the attempts still to be played to its finished dataset."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..atomic_io import locked, naming
from ..datasets.collection import Collection, choose_splits, digest
from ..datasets.parquet import ShardWriter, read_rows, schema
from ..datasets.schema import task_columns
from ..envs import Task, get_domain
from ..errors import DataError
from ..evaluation.random_policy import score
from .chunks import RESUME, Attempt, Chunk, ChunkFolder
from .experts import ExpertChoice, is_disturbed
from .measurement import Measurement
from .worker import Job

INCOMPLETE = ".incomplete"
"""Folder within the output folder that holds the chunks of unfinished tasks."""

_MIN_ATTEMPTS, _MIN_SUCCESS = 100, 1 / 20


class TooFewSuccessesError(DataError):
    """Too few attempts of a task succeed: it would take many times the wanted episodes, or never end."""


@dataclass(frozen=True)
class Progress:
    """State of a task, for progress bars.

    Attributes:
        task: its name.
        num_episodes: wanted episodes.
        episodes: kept episodes so far.
        attempts: played attempts so far.
        mean_return: of the kept episodes; NaN without any.
        success_rate: share of successes among the attempts before the first that is missing; None if the task does not
            define success, or none was played.
    """

    task: str
    num_episodes: int
    episodes: int
    attempts: int
    mean_return: float
    success_rate: float | None


class TaskProgress:
    """Keep track of a task's attempts: which are played, which are being played, and which job comes next.

    The dataset is the first `num_episodes` kept attempts in the order of seeds, in whatever order they were played.
    Chunks of an earlier, interrupted collection are taken up.

    Args:
        task: the task to play.
        output_dir: folder of the whole dataset.
        num_episodes: wanted episodes.
        test_fraction: share of the episodes in the test split.
        settings: everything that an attempt depends on, apart from its number.
        stored: the episodes of a finished, smaller collection; they are not played again.
        expert: a given expert; None for that of this package.
        random_episodes: episodes of the random policy to measure its return with; not for published tasks.

    Raises:
        DataError: see `ChunkFolder`; or the finished task is another than `stored`.
        TooFewSuccessesError: too few of the attempts played earlier succeeded.
    """

    def __init__(
        self,
        task: Task,
        output_dir: Path,
        *,
        num_episodes: int,
        test_fraction: float,
        settings: Mapping[str, Any],
        stored: Collection | None,
        expert: ExpertChoice | None = None,
        random_episodes: int = 0,
    ) -> None:
        self.task, self.num_episodes, self._test_fraction = task, num_episodes, test_fraction
        self._folder, self._settings, self._stored = output_dir / task.folder_name, dict(settings), stored
        self._chunks: dict[tuple[int, int], Chunk] = {}  # first and last attempt
        self._attempts: dict[int, Attempt] = {}
        self._playing: set[int] = set()

        self._choice, self._noise = expert, settings["noise"]
        self._expert = "" if stored is None else stored.expert
        self._first = 0 if stored is None else stored.attempts  # those before it are in `stored`
        # All attempts before `_next` are played; `_kept` and `_successes` count among them.
        self._next = self._first
        self._kept = 0 if stored is None else stored.num_episodes
        self._successes = (0 if stored is None else stored.successes) or 0

        self._cache = ChunkFolder(output_dir / INCOMPLETE / task.folder_name, settings)
        try:
            if Collection.read(self._folder) != stored:
                raise DataError(
                    f"{self._folder}: expected it as it was when this command began, got episodes that another process "
                    "has stored since; run the command again"
                )
            measured = {} if stored is None else stored.scores.get("random", {})
            needed = not task.is_published and measured.get("episodes") != random_episodes
            self._random = Measurement(task, self._cache.folder, random_episodes if needed else 0)
            for chunk in self._cache.chunks():
                self._add(chunk)
        except BaseException:
            self._cache.close()
            raise

    @property
    def name(self) -> str:
        """The task's name."""
        return self.task.name

    @property
    def complete(self) -> bool:
        """True once enough episodes are kept."""
        return self._kept >= self.num_episodes

    @property
    def ready(self) -> bool:
        """True once `finish` can be called: enough episodes are kept and no worker plays this task any more."""
        return self.complete and not self._playing and self._random.ready

    def next_job(self, num_workers: int) -> Job | None:
        """Return the job for an idle worker; None if the attempts being played should be enough.

        Args:
            num_workers: workers that share the remaining attempts.
        """
        return self._next_job(num_workers) or self._random.next_job(num_workers)

    def _next_job(self, num_workers: int) -> Job | None:
        if self.complete:
            return None

        # A gap that an interruption left comes first: without it the first episodes are not known.
        taken = self._attempts.keys() | self._playing
        first = self._next
        while first in taken:
            first += 1
        later = min((index for index in taken if index > first), default=None)
        if later is not None:
            stop = min(later, first + get_domain(self.task.domain).job_episodes)
        else:
            kept, played = self._totals()
            rate = max((kept + 1) / (played + 1), _MIN_SUCCESS)  # expected share of kept attempts
            missing = math.ceil((self.num_episodes - kept) / rate) - len(self._playing)
            if missing <= 0:
                return None
            share = math.ceil(missing / (2 * num_workers))  # smaller jobs towards the end, so that all end together
            stop = first + min(share, get_domain(self.task.domain).job_episodes)

        self._playing.update(range(first, stop))
        return Job(
            self.task,
            first,
            stop,
            folder=self._cache.folder,
            seed=self._settings["seed"],
            noise=self._settings["noise"],
            keep_failures=self._settings["keep_failures"],
            expert=self._choice,
        )

    def add(self, chunk: Chunk) -> None:
        """Add the chunk of a finished job.

        Raises:
            TooFewSuccessesError: of at least `_MIN_ATTEMPTS` attempts, a share of less than `_MIN_SUCCESS` is kept.
        """
        self._playing.difference_update(attempt.index for attempt in chunk.attempts)
        self._add(chunk)

    def add_measured(self, chunk: Chunk) -> None:
        """Add the chunk of a finished job of the random policy."""
        self._random.add(chunk)

    def _add(self, chunk: Chunk) -> None:
        self._chunks[chunk.attempts[0].index, chunk.attempts[-1].index] = chunk
        self._attempts.update((a.index, a) for a in chunk.attempts if a.index >= self._first)
        self._expert = chunk.expert
        while self._next in self._attempts and not self.complete:
            attempt = self._attempts[self._next]
            self._next += 1
            self._kept += attempt.kept
            self._successes += attempt.success is True
            if self._next >= _MIN_ATTEMPTS and self._kept < self._next * _MIN_SUCCESS:
                raise TooFewSuccessesError(
                    f"{self.task.name}: {self._kept} of the first {self._next} episodes succeeded, expected at least 1 "
                    f"in {round(1 / _MIN_SUCCESS)}"
                )

    def _totals(self) -> tuple[int, int]:
        """Return the numbers of kept and of played attempts, including those after a gap."""
        ahead = [attempt for index, attempt in self._attempts.items() if index >= self._next]
        return self._kept + sum(attempt.kept for attempt in ahead), self._next + len(ahead)

    def progress(self) -> Progress:
        """Return the state of the task."""
        kept, played = self._totals()
        returns = [attempt.return_ for attempt in self._attempts.values() if attempt.kept]
        returns += [] if self._stored is None else self._stored.returns
        return Progress(
            self.task.name,
            num_episodes=self.num_episodes,
            episodes=min(kept, self.num_episodes),
            attempts=played,
            mean_return=sum(returns) / len(returns) if returns else math.nan,
            success_rate=self._successes / self._next if self._next and self._known_success() else None,
        )

    def finish(self) -> Collection:
        """Write the task's dataset, replacing that of a smaller collection, and return its description."""
        assert self.ready, "a worker would write into a folder that is gone"
        with naming(self._folder, RESUME):
            return self._write()

    def _write(self) -> Collection:
        new = self._cache.folder / "new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()

        types = schema(task_columns(self.task))
        splits = choose_splits(self.num_episodes, self._test_fraction, self._settings["seed"])
        writers = {split: ShardWriter(new, split, types) for split in ("train", "test")}
        for split, row in zip(splits, self._rows(), strict=True):
            writers[split].append(row)

        collection = self._collection(splits, {split: writer.close() for split, writer in writers.items()})
        collection.write(new)
        replace_folder(self._folder, new)
        return collection

    def _rows(self) -> Iterator[pa.Table]:
        """Yield the rows of all kept attempts before `_next`, stored ones first, in the order of seeds."""
        if self._stored is not None:
            yield from self._stored.rows(self._folder)
        index = self._first
        for _, chunk in sorted(self._chunks.items(), key=lambda item: item[0]):
            kept = [attempt for attempt in chunk.attempts if attempt.kept]
            for attempt, row in zip(kept, read_rows(chunk.path), strict=True):
                if index <= attempt.index < self._next:  # a chunk can overlap what is stored, or another
                    index = attempt.index + 1
                    yield row

    def _collection(self, splits: list[str], files: Mapping[str, list[Path]]) -> Collection:
        kept = [self._attempts[i] for i in sorted(self._attempts) if i < self._next and self._attempts[i].kept]
        first, stored = self._settings["seed"], self._stored
        seeds = [*(stored.seeds if stored else []), *(first + attempt.index for attempt in kept)]
        returns = [*(stored.returns if stored else []), *(attempt.return_ for attempt in kept)]
        return Collection(
            task=self.task.name,
            settings=self._settings,
            expert=self._expert,
            test_fraction=self._test_fraction,
            attempts=self._next,
            successes=self._successes if self._known_success() else None,
            seeds=seeds,
            returns=returns,
            lengths=[*(stored.lengths if stored else []), *(attempt.length for attempt in kept)],
            splits=splits,
            files={split: [path.name for path in paths] for split, paths in files.items()},
            sha256=digest(path for paths in files.values() for path in paths),
            file_sha256={path.name: digest([path]) for paths in files.values() for path in paths},
            task_rule=None if self.task.is_published else self.task.rule,
            scores=self._scores(seeds, returns),
        )

    def _scores(self, seeds: list[int], returns: list[float]) -> dict[str, dict[str, float]]:
        """Return the measured scores of the random policy and of the expert, the latter without noise if it can be."""
        scores = {} if self._stored is None else dict(self._stored.scores)
        if (measured := self._random.score()) is not None:
            scores["random"] = measured
        if self._choice is None or not self._choice.is_random:
            calm = [value for seed, value in zip(seeds, returns, strict=True) if not is_disturbed(seed, self._noise)]
            scores["expert"] = score(calm or returns)
        return scores

    def remove(self) -> None:
        """Remove the chunks, after `finish` has written their episodes to the dataset."""
        self._cache.remove()

    def _known_success(self) -> bool:
        """Return True if the task defines success."""
        return self.task.success is not None

    def close(self) -> None:
        """Unlock the task. Its chunks stay, for the next call to take up."""
        self._cache.close()


def replace_folder(folder: Path, new: Path) -> None:
    """Replace `folder` by `new`. `restore_folder` undoes a replacement that was interrupted between its two renames.

    Args:
        folder: may exist.
        new: a folder on the same file system.
    """
    old = new.with_name("old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.replace(old)
    new.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def restore_folder(folder: Path) -> None:
    """Undo a replacement of `folder` that was interrupted after its first rename; else do nothing."""
    incomplete = folder.parent / INCOMPLETE / folder.name
    old = incomplete / "old"
    if old.exists() and not folder.exists():
        with locked(incomplete):  # another process may be between the two renames
            if old.exists() and not folder.exists():
                old.replace(folder)
