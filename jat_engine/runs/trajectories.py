"""Save the episodes of an evaluation in the columns of the published dataset, one Parquet file each."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..atomic_io import naming, remove_temporaries, temporary_path
from ..datasets.episode_columns import EpisodeColumns
from ..datasets.schema import check_episode
from ..envs import Task
from .recording import reason_of

if TYPE_CHECKING:
    import gymnasium

    from .records import Episode

METADATA = "jat_engine."
"""Beginning of the keys that `TrajectoryRecorder` adds to a file's metadata."""


class TrajectoryRecorder:
    """Save an episode: observations, the actions that were executed, and rewards.

    `jat-engine train --dataset <folder of the tasks' folders>` trains on the files, and
    `datasets.load_dataset("parquet", data_files=...)` reads them.

    The file's metadata has "jat_engine." before "task", "index", "seed", "return" (the sum of the rewards before they
    were rounded to float32), "length", "success", "capped" and "digest", see `Episode`; "" stands for None.

    Args:
        task: the task.
        index: of the episode, from 0.
        seed: of the episode.
        path: Parquet file to write; see `episode_path`.

    Attributes:
        error: why there is no file, in one line; "" if nothing has failed.
    """

    def __init__(self, task: Task, index: int, seed: int, path: Path) -> None:
        self.error = ""
        self._task, self._index, self._seed, self._path = task, index, seed, path
        self._columns: EpisodeColumns | None = None

    def begin(self, env: gymnasium.Env[Any, Any]) -> None:
        """Begin an episode."""
        with self._keeping_errors():
            remove_temporaries(self._path)  # of a process that was killed while it wrote this episode
            self._columns = EpisodeColumns(self._task, encode_images=True)

    def step(self, observation: dict[str, Any], action: Any, reward: float, env: gymnasium.Env[Any, Any]) -> None:
        """Keep a step."""
        if self._columns is not None:
            with self._keeping_errors():
                self._columns.observe(observation)
                self._columns.act(action, reward)

    def finish(self, episode: Episode) -> None:
        """Write the file."""
        columns, self._columns = self._columns, None
        if columns is not None:
            with self._keeping_errors():
                self._write(columns, episode)

    def abandon(self) -> None:
        """Drop the steps."""
        self._columns = None

    def _write(self, columns: EpisodeColumns, episode: Episode) -> None:
        from ..datasets.parquet import RowWriter, episode_row

        source = f"{self._task.name}: episode {self._index} with seed {self._seed}"
        row = episode_row(check_episode(columns.columns(), source=source, task=self._task))
        described = {
            "task": episode.task,
            "index": episode.index,
            "seed": episode.seed,
            "return": episode.return_,
            "length": episode.length,
            "success": episode.success,
            "capped": episode.capped,
            "digest": episode.digest,
        }
        metadata = {METADATA + key: "" if value is None else str(value) for key, value in described.items()}

        temporary = temporary_path(self._path)
        with naming(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                writer = RowWriter(temporary, row.schema)
                writer.append(row)
                writer.close(metadata)
                temporary.replace(self._path)
            finally:
                temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _keeping_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of the disk, or of an environment whose numbers cannot be stored: any class
            self.error = self.error or f"no trajectory of {self._task.name}, episode {self._index}: {reason_of(error)}"
            self.abandon()


def first_difference(saved: Path, now: Path) -> str:
    """Compare two trajectories of an episode.

    Args:
        saved: the file of a run.
        now: the file of the same episode, which was played again.

    Returns:
        The first step that differs and its columns, such as "in step 17 (rewards)"; "" if both are equal.
    """
    from ..datasets.parquet import read_rows

    try:
        rows = [next(read_rows(path)).to_pydict() for path in (saved, now)]
    except (OSError, ValueError, StopIteration) as error:  # ArrowInvalid
        return f"because it cannot be read ({reason_of(error)})"
    before, after = ({name: values[0] for name, values in row.items()} for row in rows)
    if before.keys() != after.keys():
        return f"in its columns ({', '.join(sorted(before.keys() ^ after.keys()))})"
    for step in range(max(len(values) for row in (before, after) for values in row.values())):
        columns = [name for name in before if before[name][step : step + 1] != after[name][step : step + 1]]
        if columns:
            return f"in step {step + 1} ({', '.join(columns)})"
    return ""


def check_trajectories(field: str = "--save_trajectories") -> None:
    """Check that trajectories can be written here.

    Args:
        field: the flag, for the message.

    Raises:
        ImportError: pyarrow is not installed; the message says how to install it.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise ImportError(f"{field}: expected pyarrow, which is not installed here; pip install 'jat-engine[train]'")
