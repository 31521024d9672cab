"""Divide a table with one row per step into episodes, while it is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import DataError
from .columns import ColumnMap
from .source import RawEpisode


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of a table.

    Attributes:
        file: where they are, for error messages.
        first: number of the first row within the file.
        columns: name -> array [rows, ...]; strings are arrays of objects.
    """

    file: str
    first: int
    columns: Mapping[str, np.ndarray]

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(next(iter(self.columns.values())))


def episodes(rows: Iterable[Rows], chosen: ColumnMap, notes: list[str]) -> Iterator[RawEpisode]:
    """Yield the episodes of a table. Holds one episode and one piece of the table in memory.

    Args:
        rows: all rows in order.
        chosen: the columns. Without `episode` and `ends`, every file is an episode.
        notes: receives a sentence about steps after the last end of an episode, which belong to an unfinished one and
            are left out.

    Raises:
        DataError: an episode's rows are not next to each other, or columns have the wrong types.
    """
    number, pieces = 0, list[dict[str, Any]]()
    file, key = "", None
    last: Any = None  # number of the episode of the last row, or its file
    ended = False
    seen: set[Any] = set()

    for part in rows:
        keys, ends = _keys(part, chosen), _ends(part, chosen)
        values = _values(part, chosen)
        begin = 0
        for row in range(part.count):
            begins = ended if ends is not None else last is not None and keys[row] != last
            if begins:
                _add(pieces, values, begin, row)
                yield _episode(pieces, file, number, key, chosen)
                number, pieces, begin = number + 1, [], row
            if not pieces and begin == row:
                file, key = part.file, keys[row] if chosen.episode else None
                if ends is None and keys[row] in seen:
                    raise DataError(
                        f"{part.file}: row {part.first + row}: expected the rows of an episode next to each other, got "
                        f"{chosen.episode} {keys[row]} again after another; sort the table by {chosen.episode}"
                    )
                seen.add(keys[row])
            last = keys[row]
            ended = ends is not None and bool(ends[row])
        _add(pieces, values, begin, part.count)

    if pieces and (ended or not chosen.ends):
        yield _episode(pieces, file, number, key, chosen)
    elif pieces:
        steps = sum(len(piece["actions"]) for piece in pieces)
        if number == 0:
            raise DataError(
                f"{file}: expected an episode to end, got no true value in {' or '.join(chosen.ends)} in {steps} rows; "
                "name a column that tells episodes apart with --columns episode=NAME, done=NAME or timeout=NAME"
            )
        notes.append(f"the last {steps} steps belong to an episode that does not end, and are left out")


def _keys(part: Rows, chosen: ColumnMap) -> list[Any]:
    """Return for each row the number or name of its episode, or its file."""
    if chosen.episode is None:
        return [part.file] * part.count
    values = part.columns[chosen.episode]
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or values.dtype.kind not in "iuUO":
        raise DataError(
            f"{part.file}: column {chosen.episode}: expected an integer or a string for each step, got {values.dtype} "
            f"{list(values.shape)}; convert it"
        )
    return list(values.tolist())


def _ends(part: Rows, chosen: ColumnMap) -> np.ndarray | None:
    """Return for each row whether it is the last of its episode; None if other columns tell."""
    if not chosen.ends:
        return None
    ends = np.zeros(part.count, bool)
    for name in chosen.ends:
        values = part.columns[name]
        if values.size != part.count or values.dtype.kind not in "biuf":
            raise DataError(
                f"{part.file}: column {name}: expected true or false for each step, got {values.dtype} "
                f"{list(values.shape)}"
            )
        values = values.reshape(-1)
        wrong = ~np.isin(values, (0, 1))
        if wrong.any():
            row = int(np.argmax(wrong))
            raise DataError(f"{part.file}: column {name}, row {part.first + row}: expected 0 or 1, got {values[row]}")
        ends |= values.astype(bool)
    return ends


def _values(part: Rows, chosen: ColumnMap) -> dict[str, Any]:
    """Return observations, actions, rewards and texts of the rows."""
    values: dict[str, Any] = {
        "observations": _joined(part, chosen.observation),
        "actions": _joined(part, chosen.action),
    }
    if chosen.reward is not None:
        rewards = part.columns[chosen.reward]
        values["rewards"] = rewards[:, 0] if rewards.ndim == 2 and rewards.shape[1] == 1 else rewards
    if chosen.text is not None:
        values["texts"] = part.columns[chosen.text]
    return values


def _joined(part: Rows, names: tuple[str, ...]) -> np.ndarray:
    arrays = [part.columns[name] for name in names]
    if len(arrays) == 1:
        return arrays[0]
    for name, array in zip(names, arrays, strict=True):
        if array.ndim > 2 or array.dtype.kind not in "biuf":
            raise DataError(
                f"{part.file}: column {name}: expected a number or a list of numbers for each step, which can be "
                f"joined with {', '.join(other for other in names if other != name)}, got {array.dtype} "
                f"{list(array.shape)}"
            )
    return np.concatenate([array.reshape(part.count, -1) for array in arrays], axis=1)


def _add(pieces: list[dict[str, Any]], values: Mapping[str, Any], begin: int, end: int) -> None:
    if end > begin:
        pieces.append({name: array[begin:end] for name, array in values.items()})


def _episode(pieces: list[dict[str, Any]], file: str, number: int, key: Any, chosen: ColumnMap) -> RawEpisode:
    where = f"{file}: episode {number}" + (f" ({chosen.episode} {key})" if chosen.episode else "")
    joined: dict[str, Any] = {}
    for name in pieces[0]:
        arrays = [piece[name] for piece in pieces]
        shapes = {array.shape[1:] for array in arrays}
        if len(shapes) > 1:
            raise DataError(
                f"{where}: expected {name} of one size, got {' and '.join(str(list(shape)) for shape in shapes)}"
            )
        joined[name] = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return RawEpisode(
        where, joined["observations"], joined["actions"], joined.get("rewards"), joined.get("texts"), key=key
    )
