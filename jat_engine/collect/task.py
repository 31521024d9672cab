"""`Unfinished`: a task on its way, from the attempts that are still to be played to the folder of its dataset."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..atomic_io import locked
from ..datasets.collection import Collection, choose_splits, digest
from ..datasets.parquet import ShardWriter, read_rows, schema
from ..datasets.schema import task_columns
from ..envs import Task
from ..errors import DataError
from .chunks import Attempt, Chunk, ChunkFolder
from .worker import Job

INCOMPLETE = ".incomplete"

_JOB_EPISODES = {"atari": 1, "babyai": 32, "metaworld": 16, "mujoco": 4}
"""At most, per domain: some seconds of play, which is what an interruption costs."""

_MIN_ATTEMPTS, _MIN_SUCCESS = 100, 1 / 20


class TooFewSuccessesError(DataError):
    """A task would take many times the episodes that are asked for, or never end."""


@dataclass(frozen=True)
class Progress:
    """How far a task is.

    Attributes:
        task: its name.
        num_episodes: that are wanted.
        episodes: that there are.
        attempts: that were played for them.
        mean_return: of the episodes; NaN without any.
        success_rate: of the attempts, as far as all before them are played; None where there is no notion of it.
    """

    task: str
    num_episodes: int
    episodes: int
    attempts: int
    mean_return: float
    success_rate: float | None


class Unfinished:
    """The attempts of a task: played, being played, still to be played.

    The dataset is the first `num_episodes` kept attempts in the order of seeds, whoever played them and when.

    Args:
        task: what is played.
        output_dir: of the whole dataset.
        num_episodes: that are wanted.
        settings: what the episodes depend on.
        stored: the episodes that are there already; they are not played again.

    Raises:
        DataError: see `ChunkFolder`.
        TooFewSuccessesError: among what was played before.
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
    ) -> None:
        self.task, self.num_episodes, self._test_fraction = task, num_episodes, test_fraction
        self._folder, self._settings, self._stored = output_dir / task.name, dict(settings), stored
        self._chunks: dict[tuple[int, int], Chunk] = {}  # first and last attempt
        self._attempts: dict[int, Attempt] = {}
        self._playing: set[int] = set()
        self._expert = "" if stored is None else stored.expert
        self._first = 0 if stored is None else stored.attempts  # those before it are in `stored`
        # All attempts before `_next` are played; these two count among them.
        self._next = self._first
        self._kept = 0 if stored is None else stored.num_episodes
        self._successes = (0 if stored is None else stored.successes) or 0
        self._cache = ChunkFolder(output_dir / INCOMPLETE / task.name, settings)
        try:
            for chunk in self._cache.chunks():
                self._add(chunk)
        except BaseException:
            self._cache.close()
            raise

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def complete(self) -> bool:
        """There are enough episodes."""
        return self._kept >= self.num_episodes

    @property
    def ready(self) -> bool:
        """`finish` can be called: nobody plays for this task any more."""
        return self.complete and not self._playing

    def next_job(self, players: int) -> Job | None:
        """What to play next if one of so many players is idle; None if what is being played should do."""
        if self.complete:
            return None
        taken = self._attempts.keys() | self._playing
        first = self._next
        while first in taken:
            first += 1
        later = min((index for index in taken if index > first), default=None)
        if later is not None:  # a hole that an interruption left: the first episodes are not known without it
            stop = min(later, first + _JOB_EPISODES[self.task.domain])
        else:
            kept, played = self._totals()
            rate = max((kept + 1) / (played + 1), _MIN_SUCCESS)  # of attempts that are kept
            missing = math.ceil((self.num_episodes - kept) / rate) - len(self._playing)
            if missing <= 0:
                return None
            share = math.ceil(missing / (2 * players))  # jobs get smaller towards the end, so that nobody waits long
            stop = first + min(share, _JOB_EPISODES[self.task.domain])
        self._playing.update(range(first, stop))
        return Job(
            self.task.name,
            first,
            stop,
            folder=self._cache.folder,
            seed=self._settings["seed"],
            noise=self._settings["noise"],
            keep_failures=self._settings["keep_failures"],
        )

    def add(self, chunk: Chunk) -> None:
        """Take what a job played.

        Raises:
            TooFewSuccessesError: of `_MIN_ATTEMPTS` attempts or more, fewer than `_MIN_SUCCESS` are kept.
        """
        self._playing.difference_update(attempt.index for attempt in chunk.attempts)
        self._add(chunk)

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
        """Kept and played attempts, those included that lie behind a hole."""
        ahead = [attempt for index, attempt in self._attempts.items() if index >= self._next]
        return self._kept + sum(attempt.kept for attempt in ahead), self._next + len(ahead)

    def progress(self) -> Progress:
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
        """Write the task's folder, in the place of one that may be there."""
        assert self.ready, "a player would write into a folder that is gone"
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
        seed, stored = self._settings["seed"], self._stored
        return Collection(
            task=self.task.name,
            settings=self._settings,
            expert=self._expert,
            test_fraction=self._test_fraction,
            attempts=self._next,
            successes=self._successes if self._known_success() else None,
            seeds=[*(stored.seeds if stored else []), *(seed + attempt.index for attempt in kept)],
            returns=[*(stored.returns if stored else []), *(attempt.return_ for attempt in kept)],
            lengths=[*(stored.lengths if stored else []), *(attempt.length for attempt in kept)],
            splits=splits,
            files={split: [path.name for path in paths] for split, paths in files.items()},
            sha256=digest(path for paths in files.values() for path in paths),
        )

    def remove(self) -> None:
        """What was played is stored elsewhere now."""
        self._cache.remove()

    def _known_success(self) -> bool:
        """Whether the task has a notion of success."""
        if self._stored is not None and self._stored.successes is not None:
            return True
        return any(attempt.success is not None for attempt in self._attempts.values())

    def close(self) -> None:
        """Leave what was played for the next time."""
        self._cache.close()


def replace_folder(folder: Path, new: Path) -> None:
    """Rename `new` to `folder`. If this is interrupted between two renames, `restore_folder` makes up for it."""
    old = new.with_name("old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.replace(old)
    new.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def restore_folder(folder: Path) -> None:
    """A replacement that was interrupted after the first rename is taken back."""
    incomplete = folder.parent / INCOMPLETE / folder.name
    old = incomplete / "old"
    if old.exists() and not folder.exists():
        with locked(incomplete):  # unless another process is between the two just now
            if old.exists() and not folder.exists():
                old.replace(folder)
