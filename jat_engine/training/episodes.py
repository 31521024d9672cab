"""Read rows of a table as episodes: each column of all of them is one checked array."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import FRAME_SHAPE
from ..datasets.arrow import NotUtf8Error, check_header, is_bytes, is_list, plain, strings
from ..datasets.schema import TOKENIZED_COLUMNS, check_episode
from ..datasets.sources import Rows
from ..errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

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


class _FramesError(Exception):
    """Frames that are stored as numbers are wrong; the message says what came."""


def read_episodes(rows: Rows) -> Episodes:
    """Read and check the published columns of some rows, and those of a tokenized dataset.

    Whole columns are checked at once; single episodes are examined only to say what is wrong.

    Args:
        rows: rows with one kind of observation, one of action, and rewards.

    Raises:
        DataError: a column is missing, columns of an episode differ in length, an episode is empty, steps differ in
            width, or values are of another type, null, NaN or infinite.
    """
    names = check_header(rows.table.schema, source=rows.where)
    try:
        read = {name: _read_column(rows.table[name], name) for name in names}
        lengths = read["rewards"][0]
        if any(not np.array_equal(other, lengths) for other, _ in read.values()) or not lengths.all():
            raise _WrongError("lengths of columns")
    except NotUtf8Error as error:
        raise DataError(f"{rows.where}: rows from {rows.first}: {error}") from None
    except _FramesError as error:
        raise DataError(
            f"{rows.where}: rows from {rows.first}: column image_observations: expected {FRAME_SHAPE} or "
            f"{(FRAME_SHAPE[2], *FRAME_SHAPE[:2])} as integers of 0 to 255, or as the processor's floats of -1 to 1, "
            f"got {error}; store frames as uint8"
        ) from None
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
        texts = plain(values)
        if texts.null_count:
            raise _WrongError(name)
        return lengths, np.array(strings(texts, f"column {name}"), object)
    if name == "image_observations":
        return lengths, _images(values, name)
    return lengths, _numbers(values, name)


def _unnest(array: Any, name: str) -> tuple[np.ndarray, Any]:
    """Return the length of each list of a list array, int64 [lists], and all their elements."""
    import pyarrow.compute as pc

    array = plain(array)
    if not is_list(array.type) or array.null_count:
        raise _WrongError(name)
    return pc.list_value_length(array).to_numpy(zero_copy_only=False).astype(np.int64), array.flatten()


def _numbers(values: pa.Array, name: str) -> np.ndarray:
    values = plain(values)
    if values.null_count:
        raise _WrongError(name)
    array: np.ndarray = values.to_numpy(zero_copy_only=False)
    if name in _INT and array.dtype == np.uint64 and (array > np.iinfo(np.int64).max).any():  # would become negative
        raise _WrongError(name)
    with np.errstate(over="ignore"):
        array = array.astype(np.int64 if name in _INT else np.float32)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise _WrongError(name)
    if name == "loss_weight" and (array < 0).any():  # would maximise the loss
        raise _WrongError(name)
    return array


def _images(values: Any, name: str) -> np.ndarray:
    import pyarrow as pa

    values = plain(values)
    if pa.types.is_struct(values.type):
        values = values.field("bytes")
    elif not is_bytes(values.type):
        return _frames(values, name)
    files = np.empty(len(values), object)
    files[:] = values.to_pylist()
    return files


def _frames(values: Any, name: str) -> np.ndarray:
    """Return frames that are stored as numbers, as in a tokenized dataset, as uint8 [steps, 84, 84, 4].

    They may be integers of 0 to 255 or the processor's floats in [-1, 1], with the four pictures first or last.
    """
    shape = [len(values)]
    while is_list((values := plain(values)).type):
        widths, values = _unnest(values, name)
        if not len(widths) or (widths != widths[0]).any():
            raise _FramesError("lists of other sizes")
        shape.append(int(widths[0]))

    height, width, planes = FRAME_SHAPE
    if values.null_count:
        raise _FramesError("missing values")
    if shape[1:] not in ([height, width, planes], [planes, height, width]):
        raise _FramesError(f"frames of shape {shape[1:]}")

    frames: np.ndarray = values.to_numpy(zero_copy_only=False).reshape(shape)
    low, high = frames.min(), frames.max()
    if frames.dtype.kind == "f":
        # Frames of [0, 1] would pass for bright ones of [-1, 1]; no game has pictures without a single dark pixel.
        if not (low >= -1 and high <= 1) or low >= 0:
            raise _FramesError(f"floats of {low:g} to {high:g}")
        frames = np.rint((frames * 0.5 + 0.5) * 255)
    elif low < 0 or high > 255:
        raise _FramesError(f"integers of {low} to {high}")
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

        where = f"{episodes.at(number)}: image_observations"
        if not data:
            raise DataError(
                f"{where}: expected the bytes of a PNG file, got none; files at a `path` are not read: store the bytes"
            )
        try:
            with Image.open(io.BytesIO(data)) as image:
                frame = np.asarray(image)
        except UnidentifiedImageError:  # its own message has an address
            raise DataError(f"{where}: expected a PNG file, got {len(data)} bytes of something else") from None
        except Exception as error:  # Pillow raises SyntaxError, ValueError, struct.error and others for damaged files
            raise DataError(f"{where}: expected a PNG file, got {error}") from None

        if frame.shape != FRAME_SHAPE or frame.dtype != np.uint8:
            raise DataError(
                f"{episodes.at(number)}: image_observations: expected an RGBA image of {FRAME_SHAPE[:2]}, "
                f"got {frame.dtype} of shape {frame.shape}"
            )
        yield frame
