"""Rows of a table -> steps: every column of all episodes as one array, checked."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import FRAME_SHAPE
from ..errors import DataError
from .sources import Rows

if TYPE_CHECKING:
    import pyarrow as pa

OBSERVATIONS = ("continuous_observations", "discrete_observations", "image_observations")
ACTIONS = ("continuous_actions", "discrete_actions")
_FLOAT = ("continuous_observations", "continuous_actions", "rewards", "loss_weight")
_INT = ("discrete_observations", "discrete_actions", "attention_mask")
_NESTED = ("continuous_observations", "continuous_actions", "discrete_observations")
_COLUMNS = (*OBSERVATIONS, "text_observations", *ACTIONS, "rewards", "attention_mask", "loss_weight")


@dataclass(frozen=True)
class Steps:
    """Episodes one after the other.

    Attributes:
        lengths: [episodes], steps of each.
        columns: name -> [steps, ...]; float32, int64 or str; images are [steps] PNG files as `bytes`.
        rows: where they are from, for messages.
    """

    lengths: np.ndarray
    columns: dict[str, np.ndarray]
    rows: Rows

    def at(self, step: int) -> str:
        """Where a step is, in words."""
        ends = np.cumsum(self.lengths)
        episode = int(np.searchsorted(ends, step, side="right"))
        start = int(ends[episode] - self.lengths[episode])
        return f"{self.rows.where}: row {self.rows.first + episode}, step {step - start}"


def read_steps(rows: Rows) -> Steps:
    """The published columns of some rows.

    Raises:
        DataError: a column is missing, columns of an episode differ in length, an episode is empty, steps differ in
            width, or values are of another type, null, NaN or infinite.
    """
    names = [name for name in _COLUMNS if name in rows.table.column_names]
    _check_columns(names, rows)
    lengths: np.ndarray | None = None
    columns: dict[str, np.ndarray] = {}
    for name in names:
        column_lengths, column = _read_column(name, rows)
        if lengths is None:
            lengths = column_lengths
            if (lengths == 0).any():
                row = rows.first + int(np.argmin(lengths))
                raise DataError(f"{rows.where}: row {row}: {name}: expected at least one step, got an empty episode")
        elif not np.array_equal(column_lengths, lengths):
            row = int(np.argmax(column_lengths != lengths))
            raise DataError(
                f"{rows.where}: row {rows.first + row}: {name}: expected {lengths[row]} steps, as {names[0]} has, "
                f"got {column_lengths[row]}"
            )
        columns[name] = column
    assert lengths is not None  # rewards are among the columns
    steps = Steps(lengths, columns, rows)
    for name in columns:
        if columns[name].dtype.kind == "f" and not (finite := np.isfinite(columns[name])).all():
            step = int(np.argmin(finite.reshape(len(finite), -1).all(axis=1)))
            raise DataError(f"{steps.at(step)}: {name}: expected finite numbers, got NaN or infinity")
    return steps


def _check_columns(names: list[str], rows: Rows) -> None:
    found = ", ".join(rows.table.column_names)
    for group in (OBSERVATIONS, ACTIONS):
        if len([name for name in names if name in group]) != 1:
            raise DataError(f"{rows.where}: expected one of the columns {', '.join(group)}, got {found}")
    if "rewards" not in names:
        raise DataError(f"{rows.where}: rewards: expected this column, got {found}")


def _read_column(name: str, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Steps of each row, and all steps' values."""
    lengths, values = _unnest(rows.table[name], name, rows, rows.first, "row")
    if name in _NESTED:
        widths, values = _unnest(values, name, rows, 0, "step")
        if len(widths) and (widths != widths[0]).any():
            step = int(np.argmax(widths != widths[0]))
            row = rows.first + int(np.searchsorted(np.cumsum(lengths), step, side="right"))
            raise DataError(
                f"{rows.where}: row {row}: {name}: expected steps of one width, {widths[0]}, got {widths[step]}"
            )
        return lengths, _numbers(values, name, rows).reshape(len(widths), -1)
    if name == "text_observations":
        if values.null_count or not _is_text(values):
            raise DataError(f"{rows.where}: {name}: expected strings, got {values.type}")
        return lengths, np.array(values.to_pylist(), object)
    if name == "image_observations":
        return lengths, _images(values, name, rows)
    return lengths, _numbers(values, name, rows)


def _unnest(array: Any, name: str, rows: Rows, first: int, unit: str) -> tuple[np.ndarray, Any]:
    """A list array -> length of each list, and all their elements."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if not any(check(array.type) for check in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)):
        raise DataError(f"{rows.where}: {name}: expected lists, got {array.type}")
    if array.null_count:
        missing = int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))
        raise DataError(f"{rows.where}: {name}: {unit} {first + missing}: expected a list, got null")
    lengths = pc.list_value_length(array).to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths, array.flatten()


def _numbers(values: pa.Array, name: str, rows: Rows) -> np.ndarray:
    import pyarrow as pa

    if values.null_count:
        raise DataError(f"{rows.where}: rows from {rows.first}: {name}: expected numbers, got null")
    is_int = pa.types.is_integer(values.type) or pa.types.is_boolean(values.type)
    if not (is_int or (name in _FLOAT and pa.types.is_floating(values.type))):
        kind = "integers" if name in _INT else "numbers"
        raise DataError(f"{rows.where}: {name}: expected {kind}, got {values.type}")
    array: np.ndarray = values.to_numpy(zero_copy_only=False)
    return array.astype(np.float32 if name in _FLOAT else np.int64)


def _is_text(values: pa.Array) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(values.type) or pa.types.is_large_string(values.type))


def _images(values: pa.Array, name: str, rows: Rows) -> np.ndarray:
    import pyarrow as pa

    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    if not pa.types.is_struct(values.type) or values.type.get_field_index("bytes") < 0:
        raise DataError(f"{rows.where}: {name}: expected images, got {values.type}")
    files = np.empty(len(values), object)
    files[:] = values.field("bytes").to_pylist()
    return files


def decode_frames(steps: Steps) -> Iterator[np.ndarray]:
    """The frames of `image_observations`, uint8 [84, 84, 4].

    Raises:
        DataError: an image cannot be read or is of another size or mode.
    """
    from PIL import Image, UnidentifiedImageError

    for number, data in enumerate(steps.columns["image_observations"]):
        try:
            with Image.open(io.BytesIO(data)) as image:
                frame = np.asarray(image)
        except (UnidentifiedImageError, OSError, TypeError) as error:
            raise DataError(f"{steps.at(number)}: image_observations: expected a PNG file, got {error}") from None
        if frame.shape != FRAME_SHAPE or frame.dtype != np.uint8:
            raise DataError(
                f"{steps.at(number)}: image_observations: expected an RGBA image of {FRAME_SHAPE[:2]}, "
                f"got {frame.dtype} of shape {frame.shape}"
            )
        yield frame
