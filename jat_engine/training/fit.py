"""Check that a model is large enough for the observations and actions of its tasks, before data is prepared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..config import JatConfig
from ..envs import Task
from ..observation import Limits


@dataclass(frozen=True)
class Sizes:
    """Sizes of a task.

    Attributes:
        numbers: of a continuous observation; 0 for others.
        integers: of a discrete observation, without a mission; 0 for others.
        values: of a continuous action; 0 for others.
        largest: largest integer of an observation or action; 0 if it is not known.
    """

    numbers: int = 0
    integers: int = 0
    values: int = 0
    largest: int = 0


def check_fit(tasks: Mapping[str, Task | None], dataset: Path, config: JatConfig) -> None:
    """Check that a model takes the observations and actions of all tasks.

    Args:
        tasks: tasks by name; None for text datasets, which fit.
        dataset: folder of the data, of which the first episode of a task tells its sizes if its environment does not.
        config: of the model.

    Raises:
        ValueError: a task is too large; the message has the sizes and the field of the configuration.
    """
    for name, task in tasks.items():
        sizes = None if task is None or task.is_published else _sizes(task, dataset)
        if task is None or sizes is None:
            continue
        limits = Limits.of(config)
        integers = limits.num_integers(with_text=task.observation == "discrete+text")
        # What is counted, its size, the limit, and the field that limits it and may have to hold more.
        for what, size, limit, field in (
            ("numbers of an observation", sizes.numbers, limits.num_numbers, "max_continuous_size"),
            ("values of an action", sizes.values, limits.max_continuous_size, "max_continuous_size"),
            ("integers of an observation", sizes.integers, integers, "max_discrete_value"),
            ("as the largest integer", sizes.largest, limits.vocab_size - 1, "vocab_size"),
        ):
            if size > limit:
                now = getattr(config, field)
                raise ValueError(
                    f"--tasks {name}: expected at most {limit} {what} ({field} of the model: {now}), got {size}; "
                    f"--from_scratch --config_overrides {field}={now + size - limit} trains a new model with room, and "
                    "gymnasium.wrappers.FilterObservation or TransformObservation make an observation smaller"
                )


def _sizes(task: Task, dataset: Path) -> Sizes | None:
    """Return the sizes of a task by its adapter, or else by its first stored episode; None without one."""
    adapter = task.adapter
    if adapter is None:
        return _stored_sizes(dataset / task.folder_name)
    integers, largest = 0, 0
    if adapter.observation in ("discrete", "discrete+text"):
        integers = adapter.size
        largest = int(np.max(adapter.observation_space()["discrete_observation"].nvec)) - 1  # type: ignore[attr-defined]
    return Sizes(
        numbers=adapter.size if adapter.observation == "continuous" else 0,
        integers=integers,
        values=adapter.num_actions if adapter.action == "continuous" else 0,
        largest=max(largest, adapter.num_actions - 1 if adapter.action == "discrete" else 0),
    )


def _stored_sizes(folder: Path) -> Sizes | None:
    import pyarrow.parquet as pq

    from ..datasets.shards import find_shards

    files = find_shards(folder, "train") if folder.is_dir() else []
    if not files:
        return None
    with pq.ParquetFile(files[0]) as parquet:
        there = [name for name in _SIZED if name in parquet.schema_arrow.names]
        rows = next(parquet.iter_batches(batch_size=1, columns=there), None)
    if rows is None or not rows.num_rows:
        return None

    def width(column: str) -> int:
        episode = rows.column(column)[0].as_py() if column in there else None
        return len(episode[0]) if episode and isinstance(episode[0], list) else 0

    return Sizes(*map(width, _SIZED))


_SIZED = ("continuous_observations", "discrete_observations", "continuous_actions")
"""Columns with several values a step, in the order of the fields of `Sizes`."""
