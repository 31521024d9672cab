"""Write arrays to `<folder>/<name>.npy` row by row, and map them into memory afterwards."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.lib import format as npy


class GrowingArray:
    """Write a .npy file whose number of rows is known only when it is closed.

    Args:
        path: the file; an existing one is overwritten.
        dtype: of the elements; appended rows are converted to it.
        row_shape: shape of one row, without the first dimension.
    """

    def __init__(self, path: Path, dtype: Any, row_shape: tuple[int, ...]) -> None:
        self.dtype = np.dtype(dtype)
        self.row_shape = row_shape
        self.num_rows = 0
        self._file = path.open("wb+")
        self._header_bytes = self._write_header()

    def append(self, rows: np.ndarray) -> None:
        """Append rows [n, *row_shape]."""
        assert rows.shape[1:] == self.row_shape, f"rows of shape {rows.shape[1:]}, expected {self.row_shape}"
        self._file.write(np.ascontiguousarray(rows, self.dtype).data)
        self.num_rows += len(rows)

    def close(self) -> None:
        """Write the final shape into the header and close the file. A second call does nothing."""
        if not self._file.closed:
            self._file.seek(0)
            end = self._write_header()
            assert end == self._header_bytes, "numpy leaves room in the header for the first dimension to grow"
            self._file.close()

    def _write_header(self) -> int:
        shape = (self.num_rows, *self.row_shape)
        fields = {"descr": npy.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(self._file, fields)
        return self._file.tell()


class ArrayFolder:
    """Create the arrays of a folder as their first rows arrive, and close them all on leaving the `with` block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._arrays: dict[str, GrowingArray] = {}

    def append(self, name: str, rows: np.ndarray) -> None:
        """Append rows to an array, which its first rows create.

        Args:
            name: of the array, and of its file without ".npy".
            rows: [n, ...]; the first ones set dtype and shape.
        """
        if name not in self._arrays:
            self._arrays[name] = GrowingArray(self.folder / f"{name}.npy", rows.dtype, rows.shape[1:])
        self._arrays[name].append(rows)

    def num_rows(self, name: str) -> int:
        """Return the number of rows appended to `name` so far."""
        return self._arrays[name].num_rows if name in self._arrays else 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for array in self._arrays.values():
            array.close()


def map_array(folder: Path, name: str) -> np.ndarray:
    """Map an array of a folder into memory.

    Args:
        folder: written by `ArrayFolder`.
        name: of the array.

    Returns:
        The array, read-only; its pages are read from disk on first use.
    """
    # A plain array over the mapping: indexing a memmap costs Python for each result.
    array: np.ndarray = np.load(folder / f"{name}.npy", mmap_mode="r").view(np.ndarray)
    return array
