"""Describe a task's stored episodes in the `collection.json` of their folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..atomic_io import write_json
from ..envs import TASKS, Score, Task
from ..errors import DataError
from .parquet import read_rows

FILE_NAME = "collection.json"

_CHANGED = (
    "a file was changed or replaced after it was collected: copy it again; if you changed it yourself, delete "
    f"{FILE_NAME}, without which it is not compared"
)


@dataclass(frozen=True)
class Collection:
    """A finished task. Lists have one entry per stored episode, in the order of seeds, or of the imported source.

    Attributes:
        task: its name.
        settings: everything that the episodes depend on: seed, noise, keep_failures, and versions of packages. Of
            imported episodes: "import" (see `imported`), the seed of the splits, and versions.
        expert: description of the expert, or of the imported source.
        test_fraction: as in `collect`.
        attempts: episodes played, up to the last that is stored; of imported episodes, those that were read.
        successes: successful attempts; None if the task does not define success.
        seeds: seed of each episode; empty if they are not known.
        returns: sum of unclipped rewards of each episode.
        lengths: steps of each episode.
        splits: "train" or "test" for each episode.
        files: split -> names of its files.
        sha256: of all files concatenated, train before test.
        file_sha256: name of each file -> its own; empty in descriptions of earlier versions.
        task_rule: `Task.rule` of a task that is not published; None for published ones.
        scores: "random" and "expert" -> "mean" and "std" of measured returns, the latter of the policy that was
            collected. Published tasks have no "random", nor "expert" in descriptions of earlier versions.
    """

    task: str
    settings: dict[str, Any]
    expert: str
    test_fraction: float
    attempts: int
    successes: int | None
    seeds: list[int]
    returns: list[float]
    lengths: list[int]
    splits: list[str]
    files: dict[str, list[str]]
    sha256: str
    file_sha256: dict[str, str] = field(default_factory=dict)
    task_rule: dict[str, Any] | None = None
    scores: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def num_episodes(self) -> int:
        """Stored episodes, both splits together."""
        return len(self.lengths)

    @property
    def imported(self) -> dict[str, Any] | None:
        """Source of imported episodes: "format", "source", "columns", "dropped", "has_rewards"; None if played here."""
        return self.settings.get("import")

    @property
    def steps(self) -> int:
        """Steps of all stored episodes."""
        return sum(self.lengths)

    @property
    def success_rate(self) -> float | None:
        """Share of all attempts that succeeded; None if the task does not define success."""
        return None if self.successes is None else self.successes / self.attempts

    @classmethod
    def read(cls, folder: Path) -> Collection | None:
        """Read the description of the task in `folder`; None if it has no `collection.json`.

        Raises:
            DataError: the file is damaged.
        """
        path = folder / FILE_NAME
        if not path.exists():
            return None
        try:
            values = {
                "file_sha256": {},
                "task_rule": None,
                "scores": {},
                **json.loads(path.read_text(encoding="utf-8")),
            }
            read = cls(**{field.name: values[field.name] for field in fields(cls)})
            seeds = read.seeds or read.lengths if read.imported else read.seeds
            lengths = {len(column) for column in (seeds, read.returns, read.lengths, read.splits)}
            if len(lengths) != 1 or not isinstance(read.settings["versions"], dict):
                raise ValueError("lists of different lengths, or settings without versions")
            for names in read.files.values():
                if not all((folder / name).parent == folder for name in names):
                    raise ValueError("files of another folder")
            return read
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path}: expected what `jat-engine collect` writes, got {type(error).__name__}: {error}; delete "
                f"{folder} to collect the task again"
            ) from None

    def as_task(self) -> Task:
        """Return the task of the episodes, with their demonstrator: the published one, or one of the stored rule.

        One that is not published has no maker.
        """
        if self.task in TASKS:
            return TASKS[self.task].with_scores(None, Score.from_json(self.scores.get("expert")))
        return stored_task(self.task, self.task_rule or {}, self.scores)

    def write(self, folder: Path) -> None:
        """Write `collection.json` to a task's folder, atomically."""
        write_json(folder / FILE_NAME, asdict(self), indent=2)

    def check_names(self, folder: Path, split: str, rows: Mapping[str, int]) -> None:
        """Check the names of a split's files, and their number of episodes.

        Args:
            folder: of the task.
            split: "train" or "test".
            rows: name of each file that is there -> its number of rows.

        Raises:
            DataError: a file is missing or too many, or there are more or fewer episodes than the description says.
        """
        expected = self.files.get(split, [])
        for name in expected:
            if name not in rows:
                raise DataError(
                    f"{folder / name}: expected this file, which {FILE_NAME} lists, got none; copy it again"
                )
        for name in rows:
            if name not in expected:
                raise DataError(
                    f"{folder / name}: expected only the files that {FILE_NAME} lists, got another; move it away, or "
                    f"delete {FILE_NAME} if you added it yourself"
                )
        if sum(rows.values()) != self.splits.count(split):
            raise DataError(
                f"{folder}: {split}: expected the {self.splits.count(split)} episodes of {FILE_NAME}, got "
                f"{sum(rows.values())}; {_CHANGED}"
            )

    def check_contents(self, folder: Path, names: Sequence[str]) -> None:
        """Compare files with the hashes that were written with them. Reads all of them.

        Args:
            folder: of the task.
            names: of the files. Descriptions of earlier versions have one hash for the files of all splits together.

        Raises:
            DataError: names the first file that is not as it was written.
        """
        if not self.file_sha256:
            files = [folder / name for names in self.files.values() for name in names]
            if all(path.exists() for path in files) and digest(files) != self.sha256:
                raise DataError(
                    f"{folder}: expected files of SHA-256 {self.sha256} ({FILE_NAME}), got others; {_CHANGED}"
                )
            return
        for name in names:
            if name in self.file_sha256 and (got := digest([folder / name])) != self.file_sha256[name]:
                raise DataError(
                    f"{folder / name}: expected SHA-256 {self.file_sha256[name][:16]}... ({FILE_NAME}), got "
                    f"{got[:16]}...; {_CHANGED}"
                )

    def rows(self, folder: Path) -> Iterator[pa.Table]:
        """Yield the stored episodes in the order of seeds, each a table of one row.

        Args:
            folder: of the task.

        Raises:
            DataError: a split's files have fewer episodes than the description says.
        """
        splits = {split: _rows(folder, names) for split, names in self.files.items()}
        for split in self.splits:
            row = next(splits[split], None)
            if row is None:
                raise DataError(
                    f"{folder}: expected {self.splits.count(split)} episodes in {', '.join(self.files[split])}, got "
                    "fewer; delete the folder to collect the task again"
                )
            yield row


def _rows(folder: Path, names: list[str]) -> Iterator[pa.Table]:
    for name in names:
        yield from read_rows(folder / name)


def digest(files: Iterable[Path]) -> str:
    """Return the SHA-256 of the concatenated files, in hexadecimal."""
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    return total.hexdigest()


def choose_splits(count: int, test_fraction: float, seed: int) -> list[str]:
    """Choose the split of each episode.

    Most test episodes stay test episodes when `count` grows, since an episode's place in the permutation hardly moves.

    Args:
        count: number of episodes.
        test_fraction: share of test episodes. Of two or more episodes at least one is of each split, unless it is 0.
        seed: of the choice.

    Returns:
        "train" or "test" for each episode.
    """
    tests = 0 if count < 2 or test_fraction == 0 else min(max(round(count * test_fraction), 1), count - 1)
    order = np.argsort(np.random.default_rng(seed).random(count), kind="stable")
    splits = np.full(count, "train")
    splits[order[count - tests :]] = "test"
    return [str(split) for split in splits]


def stored_task(name: str, rule: Mapping[str, Any], scores: Mapping[str, Any]) -> Task:
    """Return a task as a dataset or a checkpoint describes it. It has no maker, so that it cannot be played.

    Args:
        name: its name.
        rule: `Task.rule`; the adapter in it is not restored.
        scores: "random" and "expert" -> "mean" and "std", the latter of the demonstrator.
    """
    return Task(
        name=name,
        maker=None,
        observation=rule.get("observation", "continuous"),
        action=rule.get("action", "continuous"),
        context_window=int(rule.get("context_window", 256)),
        random=Score.from_json(scores.get("random")),
        demonstrator=Score.from_json(scores.get("expert")),
        module=rule.get("module"),
    )
