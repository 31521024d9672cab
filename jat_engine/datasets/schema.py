"""Define the published columns of a dataset, and check episodes before they are written or trained on.

A row is an episode, and each of its columns has one entry per step. `rewards[t]` is the reward of `actions[t]`; the
observation after the last action is not stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..envs import Task
from ..envs.kinds import Action, Observation
from ..errors import DataError
from .frames import EncodedFrames

if TYPE_CHECKING:
    import datasets

OBSERVATION_COLUMNS: dict[Observation, tuple[str, ...]] = {
    "continuous": ("continuous_observations",),
    "discrete": ("discrete_observations",),
    "discrete+text": ("text_observations", "discrete_observations"),
    "image": ("image_observations",),
}
"""Kind of observation -> its columns."""

_OBSERVED = {name for names in OBSERVATION_COLUMNS.values() for name in names}

ACTION_COLUMNS: dict[Action, tuple[str, ...]] = {
    "continuous": ("continuous_actions",),
    "discrete": ("discrete_actions",),
}
"""Kind of action -> its columns."""

RL_COLUMNS = (
    "continuous_observations",
    "text_observations",
    "discrete_observations",
    "image_observations",
    "continuous_actions",
    "discrete_actions",
    "rewards",
)
"""Every column that a row of an RL task can have."""

TOKENIZED_COLUMNS = ("attention_mask", "loss_weight")
"""Columns of a tokenized dataset in addition to those of RL tasks."""

TEXT_COLUMNS = ("images", "text")
"""The columns of caption datasets; text datasets have only `text`."""

FRAMES_SHAPE = (84, 84, 4)  # config.FRAME_SHAPE; importing that brings transformers, which takes seconds

_TYPES: dict[str, tuple[int, str, str]] = {
    # dimensions, first of which is the steps; dtype; in words
    "continuous_observations": (2, "float32", "numbers [steps, size]"),
    "discrete_observations": (2, "int64", "integers [steps, size]"),
    "image_observations": (4, "uint8", "frames [steps, 84, 84, 4]"),
    "continuous_actions": (2, "float32", "numbers [steps, size]"),
    "discrete_actions": (1, "int64", "integers [steps]"),
    "rewards": (1, "float32", "numbers [steps]"),
}


def task_columns(task: Task) -> tuple[str, ...]:
    """Return the columns of a task, in stored order."""
    return (*OBSERVATION_COLUMNS[task.observation], *ACTION_COLUMNS[task.action], "rewards")


def task_features(task: Task) -> datasets.Features:
    """Return the columns of a task with their types, as in the published dataset."""
    from datasets import Features

    return Features.from_dict(features_dict(task_columns(task)))


def features_dict(names: Iterable[str]) -> dict[str, Any]:
    """Return the types of RL columns in the JSON form that all versions of `datasets` read."""
    return {name: _feature(name) for name in names}


def _feature(name: str) -> dict[str, Any]:
    if name == "text_observations":
        return _sequence({"dtype": "string", "_type": "Value"})
    if name == "image_observations":
        return _sequence({"_type": "Image"})
    dimensions, dtype, _ = _TYPES[name]
    feature: dict[str, Any] = {"dtype": dtype, "_type": "Value"}
    for _ in range(dimensions):
        feature = _sequence(feature)
    return feature


def _sequence(feature: dict[str, Any]) -> dict[str, Any]:
    return {"feature": feature, "_type": "Sequence"}


def check_columns(
    names: Iterable[str], *, source: str, task: Task | None = None, others: Sequence[str] = ()
) -> tuple[str, ...]:
    """Check the names of an RL dataset's columns.

    Args:
        names: the dataset's columns.
        source: the file or dataset, for error messages.
        task: the task whose columns are required; None accepts any one kind of observation and of action.
        others: columns that are not used, to name where one is missing that they may have been meant for.

    Returns:
        The columns, in stored order.

    Raises:
        DataError: columns are missing, unknown, or of several kinds.
    """
    given = list(names)
    unknown = [name for name in given if name not in RL_COLUMNS]
    if unknown:
        raise DataError(f"{source}: column {unknown[0]!r}: expected only {', '.join(RL_COLUMNS)}; rename or remove it")

    if task is not None:
        expected: tuple[str, ...] = task_columns(task)
    else:
        observations = _one_of("observation", OBSERVATION_COLUMNS, given, source, others)
        expected = (*observations, *_one_of("action", ACTION_COLUMNS, given, source, others), "rewards")

    missing = [name for name in expected if name not in given]
    surplus = [name for name in given if name not in expected]
    if missing or surplus:
        name = (missing or surplus)[0]
        what = "is missing" if missing else "does not belong to them"
        whose = f" of {task.name}" if task else ""
        raise DataError(
            f"{source}: column {name!r} {what}: expected the columns{whose} {', '.join(expected)}; "
            f"got {', '.join([*given, *others]) or 'none'}"
        )
    return expected


def kinds_of(columns: Sequence[str]) -> tuple[Observation, Action]:
    """Return the kinds of observation and action whose columns these are.

    Args:
        columns: the return value of `check_columns`.
    """
    observation = next(kind for kind, of in OBSERVATION_COLUMNS.items() if set(of) == set(columns) & _OBSERVED)
    action = next(kind for kind, of in ACTION_COLUMNS.items() if set(of) <= set(columns))
    return observation, action


def check_belong(names: Iterable[str], task: Task, *, source: str) -> None:
    """Check that a dataset has no column of another kind than a task, such as other actions or texts.

    Columns may be missing here, such as missions in tokenized data.

    Args:
        names: the dataset's columns.
        task: the task.
        source: the file or dataset, for the error message.

    Raises:
        DataError: names the column.
    """
    expected = task_columns(task)
    for name in names:
        if name in (*RL_COLUMNS, *TEXT_COLUMNS) and name not in expected:
            raise DataError(f"{source}: column {name!r}: expected the columns of {task.name}, {', '.join(expected)}")


def _one_of(
    what: str, kinds: Mapping[Any, tuple[str, ...]], given: list[str], source: str, unused: Sequence[str]
) -> tuple[str, ...]:
    """Return the columns of the only kind that `given` has; of two that fit, the one with more columns.

    Raises:
        DataError: `given` has no kind completely, or columns of two.
    """
    fitting = [columns for columns in kinds.values() if set(columns) <= set(given)]
    largest = max(fitting, key=len, default=())
    others = [name for columns in kinds.values() for name in columns if name in given and name not in largest]
    if not largest or others:
        choices = " or ".join(" + ".join(columns) for columns in kinds.values())
        got = [name for columns in kinds.values() for name in columns if name in given]
        more = f" (other columns: {', '.join(unused)})" if unused and not largest else ""
        raise DataError(
            f"{source}: {what} columns: expected {choices}; got {', '.join(dict.fromkeys(got)) or 'none of them'}{more}"
        )
    return largest


def check_episode(
    columns: Mapping[str, Any], *, source: str, row: int | None = None, task: Task | None = None
) -> dict[str, Any]:
    """Check one row of an RL dataset and return it in the dtypes of `features_dict`.

    Args:
        columns: name -> array or nested list, time first; images as uint8 [steps, 84, 84, 4] or `EncodedFrames`; texts
            as strings.
        source: the file or dataset, for error messages.
        row: number of the row in the source, for error messages.
        task: as in `check_columns`.

    Returns:
        Columns in stored order: float32 [L, X], int64 [L, X] or [L], uint8 [L, 84, 84, 4]; texts as L strings. Arrays
        of the right dtype, and `EncodedFrames`, are returned without a copy.

    Raises:
        DataError: wrong columns; no steps; columns of different lengths; steps of different sizes; NaN or infinity;
            negative integers; another dtype or shape. Names source, row, column and step.

    Example:
        >>> from jat_engine.datasets.schema import check_episode
        >>> columns = {
        ...     "continuous_observations": [[0.0, 1.0], [1.0, 0.0]],
        ...     "continuous_actions": [[0.5], [-0.5]],
        ...     "rewards": [1, 0],
        ... }
        >>> check_episode(columns, source="example")["rewards"]
        array([1., 0.], dtype=float32)
    """
    where = source if row is None else f"{source}: row {row}"
    names = check_columns(columns, source=where, task=task)
    episode: dict[str, Any] = {}
    for name in names:
        values = columns[name]
        check = _texts if name == "text_observations" else _numbers
        episode[name] = check(values, name, f"{where}: column {name}")

    lengths = {name: len(values) for name, values in episode.items()}
    if min(lengths.values()) != max(lengths.values()):
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError(f"{where}: expected the same number of steps in every column, got {listed}")

    if task is not None and "discrete_observations" in names and task.domain == "babyai":
        size = episode["discrete_observations"].shape[1]
        if size != _BABYAI_SIZE:
            raise DataError(
                f"{where}: column discrete_observations: expected {_BABYAI_SIZE} integers a step (the direction and "
                f"7 x 7 x 3 of the view), got {size}"
            )
    return episode


_BABYAI_SIZE = 148


def _texts(values: Any, name: str, where: str) -> list[str]:
    if isinstance(values, str) or not hasattr(values, "__len__"):
        raise DataError(f"{where}: expected a list with a string for each step, got {type(values).__name__}")
    texts = list(values)
    if not texts:
        raise DataError(f"{where}: expected at least one step, got none; leave the episode out")
    for step, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"{where}, step {step}: expected a string, got {type(text).__name__}")
    return texts


def _numbers(values: Any, name: str, where: str) -> np.ndarray | EncodedFrames:
    dimensions, dtype, words = _TYPES[name]
    if not hasattr(values, "__len__"):
        raise DataError(f"{where}: expected {words}, got {type(values).__name__}")
    if len(values) == 0:
        raise DataError(f"{where}: expected at least one step, got none; leave the episode out")
    if name == "image_observations" and isinstance(values, EncodedFrames):
        return values  # checked before they were encoded

    try:
        array = np.asarray(values)
    except ValueError:  # numpy: "inhomogeneous shape"
        array = np.empty(0, object)
    if array.dtype == object:
        _explain(values, dimensions, words, where)
    _check_dtype(array, dtype, words, where)
    if array.ndim != dimensions or 0 in array.shape:
        raise DataError(f"{where}: expected {words}, got shape {list(array.shape)}")

    if name == "image_observations":
        if array.shape[1:] != FRAMES_SHAPE:
            raise DataError(f"{where}: expected {words}, got shape {list(array.shape)}")
        return array
    if dtype == "float32":
        with np.errstate(over="ignore"):
            array = array.astype(np.float32, copy=False)
        _check_all(np.isfinite(array), array, "a finite number", where)
    else:
        if array.dtype == np.uint64:
            _check_all(array <= np.uint64(2**63 - 1), array, "an integer below 2^63", where)
        array = array.astype(np.int64, copy=False)
        _check_all(array >= 0, array, "an integer of at least 0", where)
    return array


def _check_dtype(array: np.ndarray, dtype: str, words: str, where: str) -> None:
    kinds = {"float32": "fiu", "int64": "iu", "uint8": "u"}[dtype]
    if array.dtype.kind not in kinds or (dtype == "uint8" and array.dtype != np.uint8):
        raise DataError(f"{where}: expected {words} as {dtype}, got {array.dtype}")


def _check_all(good: np.ndarray, array: np.ndarray, expected: str, where: str) -> None:
    if not good.all():
        index = np.unravel_index(int(np.argmin(good)), good.shape)
        element = f" (element {int(index[1])})" if len(index) > 1 else ""
        raise DataError(
            f"{where}, step {int(index[0])}{element}: expected {expected}, got {array[index]}; repair the episode or "
            "leave it out"
        )


def _explain(values: Any, dimensions: int, words: str, where: str) -> None:
    """Raise `DataError` for the first step that keeps `values` from being one array of numbers."""
    first: tuple[int, ...] | None = None
    for step, value in enumerate(values):
        try:
            array = np.asarray(value)
        except ValueError:
            array = np.empty(0, object)
        if array.dtype == object:
            got = "no value" if value is None else "missing values or rows of different sizes"
            raise DataError(f"{where}, step {step}: expected {words}, got {got}; repair the episode or leave it out")
        first = first if first is not None else array.shape
        if array.shape != first:
            raise DataError(
                f"{where}, step {step}: expected shape {list(first)} as in step 0, got {list(array.shape)}; every step "
                "of an episode has the same size"
            )
    raise DataError(f"{where}: expected {words}, got values of mixed types")
