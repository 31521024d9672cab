"""Read npz files whose arrays have one entry per step, in pieces. Nothing is unpickled."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError, one_line
from ...zip_damage import ZIP_DAMAGE
from .columns import choose_columns
from .source import RawEpisode, Source
from .steps import Rows, episodes

_PIECE_BYTES = 16_000_000
"""Bytes of a piece's rows, of all its arrays."""

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
"""Version of an array's header -> function that reads it. Other versions have named fields."""


def open_npz(path: Path, columns: Mapping[str, tuple[str, ...]]) -> Source:
    """Open an npz file, or a folder of them, whose arrays have one entry per step.

    Args:
        path: the file; or a folder, whose *.npz files are read in the order of their names.
        columns: the return value of `parse_columns`.

    Raises:
        DataError: there is no such file, it is not an npz file, arrays are missing, or have different lengths.
    """
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path}: expected *.npz files with one entry per step, got none")
    names = _names(files[0])
    chosen = choose_columns(columns, names, source=str(files[0]), file_per_episode=path.is_dir())
    for file in files:
        _lengths(file, chosen.used)
    notes: list[str] = []

    def rows() -> Iterator[Rows]:
        for file in files:
            yield from _read(file, chosen.used)

    def read() -> Iterator[RawEpisode]:
        return episodes(rows(), chosen, notes)

    return Source(
        "npz",
        str(path),
        f"the arrays of `{path.name}`",
        read,
        chosen.by_use,
        [f"array {name}" for name in names if name not in chosen.used],
        notes,
    )


def _names(path: Path) -> list[str]:
    """Return the names of the arrays of a file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except ZIP_DAMAGE as error:
        raise DataError(f"{path}: expected an npz file of numpy.savez, got one that cannot be read: {error}") from None


class _Array:
    """An array of an npz file that is read from its begin on.

    Args:
        archive: the file.
        name: of the array.
        where: the file, for error messages.
    """

    def __init__(self, archive: zipfile.ZipFile, name: str, where: str) -> None:
        self._where = f"{where}: array {name}"
        try:
            self._file = archive.open(f"{name}.npy")
            version = np.lib.format.read_magic(self._file)
            self.shape, fortran, self.dtype = _HEADERS[version](self._file)
        except KeyError:
            raise DataError(f"{self._where} is missing, or has fields; save arrays of numbers or strings") from None
        except ZIP_DAMAGE as error:
            raise self._damaged(error) from None
        if self.dtype.hasobject:
            raise DataError(
                f"{self._where}: expected numbers or strings, got pickled objects, which are not loaded, since they "
                "can run code; save it as an array of numbers, without dtype=object"
            )
        if not self.shape:
            raise DataError(f"{self._where}: expected an entry for each step, got a single value")
        self._whole: np.ndarray | None = None
        if fortran and len(self.shape) > 1:  # steps are not next to each other in the file
            flat = self._bytes(int(np.prod(self.shape)))
            self._whole = flat.reshape(self.shape, order="F")
        self._row = 0

    @property
    def row_bytes(self) -> int:
        """Bytes of one entry."""
        return max(1, self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64)))

    def read(self, count: int) -> np.ndarray:
        """Return the next `count` entries."""
        begin, self._row = self._row, self._row + count
        if self._whole is not None:
            return self._whole[begin : self._row]
        values = self._bytes(count * int(np.prod(self.shape[1:], dtype=np.int64)))
        return values.reshape(count, *self.shape[1:])

    def _bytes(self, count: int) -> np.ndarray:
        try:
            data = self._file.read(count * self.dtype.itemsize)
        except ZIP_DAMAGE as error:
            raise self._damaged(error) from None
        if len(data) != count * self.dtype.itemsize:
            raise DataError(f"{self._where}: expected {self.shape}, got a file that ends before; copy it again")
        return np.frombuffer(data, self.dtype)

    def _damaged(self, error: Exception) -> DataError:
        words = one_line(error)
        return DataError(
            f"{self._where}: expected an array, got a damaged one: {words}; copy or download the file again"
        )

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _open(path: Path, names: list[str], stack: ExitStack) -> dict[str, _Array]:
    try:
        archive = stack.enter_context(zipfile.ZipFile(path))
    except ZIP_DAMAGE as error:
        raise DataError(f"{path}: expected an npz file of numpy.savez, got one that cannot be read: {error}") from None
    arrays: dict[str, _Array] = {}
    for name in names:
        arrays[name] = _Array(archive, name, str(path))
        stack.callback(arrays[name].close)
    return arrays


def _lengths(path: Path, names: list[str]) -> None:
    """Check that all arrays have as many entries."""
    with ExitStack() as stack:
        lengths = {name: array.shape[0] for name, array in _open(path, names, stack).items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError(
            f"{path}: expected as many entries in every array, one for each step, got {listed}; the observation after "
            "the last action does not belong here"
        )


def _read(path: Path, names: list[str]) -> Iterator[Rows]:
    with ExitStack() as stack:
        arrays: dict[str, Any] = _open(path, names, stack)
        total = next(iter(arrays.values())).shape[0]
        count = max(1, _PIECE_BYTES // sum(array.row_bytes for array in arrays.values()))
        for first in range(0, total, count):
            rows = min(count, total - first)
            columns = {name: array.read(rows) for name, array in arrays.items()}
            for name, values in columns.items():
                if values.dtype.kind in "US":
                    columns[name] = values.astype(str).astype(object)
            yield Rows(str(path), first, columns)
