"""Read rows of a table as episodes: each column of all of them is one checked array."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import FRAME_SHAPE
from ..datasets.schema import RL_COLUMNS, check_columns, check_episode
from ..errors import DataError
from .sources import Rows

if TYPE_CHECKING:
    import pyarrow as pa

TOKENIZED_COLUMNS = ("attention_mask", "loss_weight")
"""Columns of a tokenized dataset in addition to the published ones."""

_NESTED = ("continuous_observations", "continuous_actions", "discrete_observations")
_INT = ("discrete_observations", "discrete_actions", "attention_mask")


@dataclass(frozen=True)
class Episodes:
    """Consecutive episodes, one after the other in each column.

    Attributes:
        lengths: int64 [episodes], steps of each.
        columns: name -> [steps, ...]; float32, int64 or str; images are [steps] PNG files as `bytes`, or uint8
            [steps, 84, 84, 4].
        rows: the rows they were read from.
    """

    lengths: np.ndarray
    columns: dict[str, np.ndarray]
    rows: Rows

    def at(self, step: int) -> str:
        """Return the place of a step, counted through all episodes, for error messages: file, row and step."""
        ends = np.cumsum(self.lengths)
        episode = int(np.searchsorted(ends, step, side="right"))
        start = int(ends[episode] - self.lengths[episode])
        return f"{self.rows.where}: row {self.rows.first + episode}, step {step - start}"


class _WrongError(Exception):
    """Some value of a column is wrong. `check_episode` finds out which."""


def read_episodes(rows: Rows) -> Episodes:
    """Read and check the published columns of some rows, and those of a tokenized dataset.

    Whole columns are checked at once; single episodes are examined only to say what is wrong.

    Args:
        rows: rows with one kind of observation, one of action, and rewards.

    Raises:
        DataError: a column is missing, columns of an episode differ in length, an episode is empty, steps differ in
            width, or values are of another type, null, NaN or infinite.
    """
    extra = [name for name in TOKENIZED_COLUMNS if name in rows.table.column_names]
    names = [name for name in rows.table.column_names if name in RL_COLUMNS]
    names = [*check_columns(names, source=rows.where), *extra]
    try:
        read = {name: _read_column(rows.table[name], name) for name in names}
        lengths = read["rewards"][0]
        if any(not np.array_equal(other, lengths) for other, _ in read.values()) or not lengths.all():
            raise _WrongError("lengths of columns")
    except _WrongError as error:
        _explain(rows, names)
        raise DataError(
            f"{rows.where}: rows from {rows.first}: expected well-formed columns, got wrong {error}"
        ) from None
    return Episodes(lengths, {name: values for name, (_, values) in read.items()}, rows)


def _explain(rows: Rows, names: list[str]) -> None:
    """Raise `DataError` for the first episode that is wrong."""
    sizes: dict[str, int] = {}
    for row, episode in enumerate(rows.table.select(names).to_pylist()):
        where = f"{rows.where}: row {rows.first + row}"
        steps = len(episode["rewards"] or ())

        # Missing values, and columns that `check_episode` does not know.
        for name in names:
            if episode[name] is None:
                raise DataError(f"{where}: column {name}: expected a list, got no value")
            if name in TOKENIZED_COLUMNS and len(episode[name]) != steps:
                raise DataError(
                    f"{where}: column {name}: expected {steps} steps, as rewards has, got {len(episode[name])}"
                )

        columns = {name: episode[name] for name in names if name not in TOKENIZED_COLUMNS}
        if "image_observations" in columns:  # decoded later, one by one; here their number counts
            columns["image_observations"] = np.zeros((len(columns["image_observations"]), *FRAME_SHAPE), np.uint8)
        checked = check_episode(columns, source=rows.where, row=rows.first + row)

        for name in set(checked).intersection(_NESTED):
            size = checked[name].shape[1]
            if size != sizes.setdefault(name, size):
                raise DataError(
                    f"{where}: column {name}: expected {sizes[name]} values a step, as in the rows before, got {size}"
                )

        for step, weight in enumerate(episode.get("loss_weight", ())):
            if not (isinstance(weight, int | float) and math.isfinite(weight) and weight >= 0):
                raise DataError(
                    f"{where}: column loss_weight, step {step}: expected a finite number of at least 0, got {weight!r}"
                )


def _read_column(column: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps of each row, int64 [rows], and the values of all steps, [steps, ...]."""
    lengths, values = _unnest(column, name)
    if name in _NESTED:
        widths, values = _unnest(values, name)
        if len(widths) and ((widths != widths[0]).any() or widths[0] == 0):
            raise _WrongError(name)
        return lengths, _numbers(values, name).reshape(len(widths), -1)

    if name == "text_observations":
        if values.null_count or str(values.type) not in ("string", "large_string"):
            raise _WrongError(name)
        return lengths, np.array(values.to_pylist(), object)
    if name == "image_observations":
        return lengths, _images(values, name)
    return lengths, _numbers(values, name)


def _unnest(array: Any, name: str) -> tuple[np.ndarray, Any]:
    """Return the length of each list of a list array, int64 [lists], and all their elements."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if not _is_list(array) or array.null_count:
        raise _WrongError(name)
    return pc.list_value_length(array).to_numpy(zero_copy_only=False).astype(np.int64), array.flatten()


def _is_list(array: Any) -> bool:
    import pyarrow as pa

    return any(check(array.type) for check in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _numbers(values: pa.Array, name: str) -> np.ndarray:
    import pyarrow as pa

    whole = pa.types.is_integer(values.type) or (name == "attention_mask" and pa.types.is_boolean(values.type))
    if values.null_count or not (whole or (name not in _INT and pa.types.is_floating(values.type))):
        raise _WrongError(name)
    array: np.ndarray = values.to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore"):
        array = array.astype(np.int64 if name in _INT else np.float32)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise _WrongError(name)
    if name == "loss_weight" and (array < 0).any():  # would maximise the loss
        raise _WrongError(name)
    return array


def _images(values: Any, name: str) -> np.ndarray:
    import pyarrow as pa

    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    if pa.types.is_struct(values.type) and values.type.get_field_index("bytes") >= 0:
        files = np.empty(len(values), object)
        files[:] = values.field("bytes").to_pylist()
        return files
    return _frames(values, name)


def _frames(values: Any, name: str) -> np.ndarray:
    """Return frames that are stored as numbers, as in a tokenized dataset, as uint8 [steps, 84, 84, 4].

    They may be uint8 or the processor's floats in [-1, 1], with the four pictures first or last.
    """
    shape = [len(values)]
    while _is_list(values):
        widths, values = _unnest(values, name)
        if not len(widths) or (widths != widths[0]).any():
            raise _WrongError(name)
        shape.append(int(widths[0]))

    height, width, planes = FRAME_SHAPE
    if values.null_count or shape[1:] not in ([height, width, planes], [planes, height, width]):
        raise _WrongError(name)

    frames: np.ndarray = values.to_numpy(zero_copy_only=False).reshape(shape)
    if frames.dtype.kind not in "fui" or (frames.dtype.kind == "f" and not np.isfinite(frames).all()):
        raise _WrongError(name)
    if frames.dtype.kind == "f":
        frames = np.rint((frames * 0.5 + 0.5) * 255)
    if frames.min() < 0 or frames.max() > 255:
        raise _WrongError(name)
    return (frames if shape[1] == height else frames.transpose(0, 2, 3, 1)).astype(np.uint8)


def decode_frames(episodes: Episodes) -> Iterator[np.ndarray]:
    """Yield the frame of each step's `image_observations`, uint8 [84, 84, 4].

    Args:
        episodes: of a task with images.

    Raises:
        DataError: an image cannot be read, or has another size or mode.
    """
    from PIL import Image, UnidentifiedImageError

    for number, data in enumerate(episodes.columns["image_observations"]):
        if isinstance(data, np.ndarray):
            yield data
            continue

        try:
            with Image.open(io.BytesIO(data)) as image:
                frame = np.asarray(image)
        except UnidentifiedImageError:  # its own message has an address
            got = "no value" if data is None else f"{len(data)} bytes of something else"
            raise DataError(f"{episodes.at(number)}: image_observations: expected a PNG file, got {got}") from None
        except OSError as error:
            raise DataError(f"{episodes.at(number)}: image_observations: expected a PNG file, got {error}") from None

        if frame.shape != FRAME_SHAPE or frame.dtype != np.uint8:
            raise DataError(
                f"{episodes.at(number)}: image_observations: expected an RGBA image of {FRAME_SHAPE[:2]}, "
                f"got {frame.dtype} of shape {frame.shape}"
            )
        yield frame
