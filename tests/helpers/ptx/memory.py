"""Memories of a GPU: global memory is this process's own, with the bounds of each tensor a kernel may use."""

from __future__ import annotations

import bisect
import ctypes
from collections.abc import Iterable

import numpy as np

from .values import UNSIGNED, Array

_BASE = 4096
_ADDRESS_SPACE = (1 << 47) - 2 * _BASE
_BYTES = np.ctypeslib.as_array((ctypes.c_uint8 * _ADDRESS_SPACE).from_address(_BASE))
_WHOLE = {bits: _BYTES.view(dtype) for bits, dtype in UNSIGNED.items()}
"""All of this process's memory, in elements of so many bits. Only addresses that were checked may be used."""


class AccessError(AssertionError):
    """A kernel read or wrote memory it must not."""


class GlobalMemory:
    """The tensors a launch may use.

    Args:
        allocations: address and bytes of each. Those that overlap count as one.
        written: addresses, in words of 4 bytes and sorted, that earlier kernels of the same step wrote. A kernel must
            not read them before `griddepcontrol.wait`.
    """

    def __init__(self, allocations: Iterable[tuple[int, int]], written: Array | None = None) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, size in sorted(allocations):
            if self._ends and start < self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], start + size)
            elif size:
                self._starts.append(start)
                self._ends.append(start + size)
        self._written = np.empty(0, np.int64) if written is None else written
        self.stored: list[Array] = []
        """Addresses of the words this launch wrote."""

    def load(self, address: Array, bits: int, count: int, early: bool) -> Array:
        """Return [N, count] elements of `bits` bits at N addresses. early: before griddepcontrol.wait."""
        self._check(address, bits // 8 * count, "read")
        if early and self._written.size:
            words = (address[:, None] + np.arange(0, max(4, bits // 8 * count), 4)) // 4
            if np.isin(words, self._written).any():
                raise AccessError("it reads before griddepcontrol.wait what an earlier kernel of the step wrote")
        return _WHOLE[bits][self._index(address, bits, count)]

    def store(self, address: Array, values: Array, early: bool) -> None:
        """Write [N, count] elements at N addresses."""
        bits, count = values.dtype.itemsize * 8, values.shape[1]
        if early:
            raise AccessError("it writes before griddepcontrol.wait")
        self._check(address, bits // 8 * count, "written")
        _WHOLE[bits][self._index(address, bits, count)] = values
        self.stored.append(((address[:, None] + np.arange(0, max(4, bits // 8 * count), 4)) // 4).ravel())

    def _index(self, address: Array, bits: int, count: int) -> Array:
        return ((address - _BASE) // (bits // 8))[:, None] + np.arange(count)

    def _check(self, address: Array, size: int, what: str) -> None:
        if address.size == 0:
            return
        low, high = int(address.min()), int(address.max())
        place = bisect.bisect_right(self._starts, low) - 1
        if place < 0 or high + size > self._ends[place]:
            places = np.searchsorted(np.array(self._starts, np.int64), address, "right") - 1
            outside = (places < 0) | (address + size > np.array(self._ends, np.int64)[places])
            if outside.any():
                wrong, last = int(address[outside][0]), int(places[outside][0])
                behind = f", {wrong - self._ends[last]} bytes behind the end of one" if last >= 0 else ""
                raise AccessError(f"{int(outside.sum())} of {address.size} addresses {what} are in no tensor{behind}")
        if (address % size).any():
            raise AccessError(f"an address {what} is not a multiple of {size} bytes")


class SharedMemory:
    """Shared memory of B blocks, with the last writer of each word, to find reads that no barrier orders.

    Args:
        num_blocks: B.
        size: bytes of a block.
    """

    def __init__(self, num_blocks: int, size: int) -> None:
        self.size = size
        room = -(-size // 16) * 16
        self._bytes = np.full((num_blocks, room), 0xFF, np.uint8)  # NaN in every format
        self._views = {bits: self._bytes.view(dtype) for bits, dtype in UNSIGNED.items()}
        # Of each word: interval between barriers, and the warp, of the last write and of the last read.
        self._write_time, self._write_warp = (np.full((num_blocks, room // 4), -1, np.int32) for _ in range(2))
        self._read_time, self._read_warp = (np.full((num_blocks, room // 4), -1, np.int32) for _ in range(2))
        self.time = 0

    def select(self, blocks: Array) -> SharedMemory:
        """Return a copy of some blocks' memory."""
        chosen = SharedMemory.__new__(SharedMemory)
        chosen.size, chosen.time = self.size, self.time
        chosen._bytes = self._bytes[blocks].copy()
        chosen._views = {bits: chosen._bytes.view(dtype) for bits, dtype in UNSIGNED.items()}
        for name in ("_write_time", "_write_warp", "_read_time", "_read_warp"):
            setattr(chosen, name, getattr(self, name)[blocks].copy())
        return chosen

    def load(self, block: Array, address: Array, bits: int, count: int, warp: Array) -> Array:
        """Return [N, count] elements at N addresses, read by threads of these blocks and warps."""
        self._check(address, bits // 8 * count)
        self._note_read(block, address, bits // 8 * count, warp)
        index = (address // (bits // 8))[:, None] + np.arange(count)
        return self._views[bits][block[:, None], index]

    def store(self, block: Array, address: Array, values: Array, warp: Array) -> None:
        """Write [N, count] elements at N addresses."""
        bits, count = values.dtype.itemsize * 8, values.shape[1]
        self._check(address, bits // 8 * count)
        self._note_write(block, address, bits // 8 * count, warp)
        index = (address // (bits // 8))[:, None] + np.arange(count)
        self._views[bits][block[:, None], index] = values

    def gather(self, index: Array, bits: int) -> Array:
        """Return elements of every block: `index` counts elements of `bits` bits, [...] -> [B, ...]."""
        if index.size and (int(index.min()) < 0 or (int(index.max()) + 1) * (bits // 8) > self.size):
            raise AccessError(f"a matrix lies outside of the {self.size} bytes of shared memory")
        words = index * (bits // 8) // 4
        self._read_time[:, words] = self.time
        self._read_warp[:, words] = -2
        return self._views[bits][:, index]

    def note_matrix_read(self) -> None:
        """Check that no warp has written since the last barrier: wgmma reads for four warps at once.

        Raises:
            AccessError: one has.
        """
        if (self._write_time == self.time).any():
            raise AccessError("wgmma reads shared memory that was written with no barrier between")

    def _check(self, address: Array, size: int) -> None:
        if address.size == 0:
            return
        low, high = int(address.min()), int(address.max())
        if low < 0 or high + size > self.size:
            raise AccessError(f"address {high if low >= 0 else low} is outside of {self.size} bytes of shared memory")
        if (address % size).any():
            raise AccessError(f"an address in shared memory is not a multiple of {size} bytes")

    def _note_read(self, block: Array, address: Array, size: int, warp: Array) -> None:
        words = (address // 4)[:, None] + np.arange(max(1, size // 4))
        block, warp = block[:, None], warp[:, None]
        if ((self._write_time[block, words] == self.time) & (self._write_warp[block, words] != warp)).any():
            raise AccessError("it reads shared memory that another warp wrote, with no barrier between")
        # -2: several warps.
        seen = (self._read_time[block, words] == self.time) & (self._read_warp[block, words] != warp)
        self._read_time[block, words] = self.time
        self._read_warp[block, words] = np.where(seen, -2, warp)
        # Of several warps that read a word at once, the last was noted.
        others = self._read_warp[block, words] != warp
        if others.any():
            self._read_warp[np.broadcast_to(block, words.shape)[others], words[others]] = -2

    def _note_write(self, block: Array, address: Array, size: int, warp: Array) -> None:
        words = (address // 4)[:, None] + np.arange(max(1, size // 4))
        block, warp = block[:, None], warp[:, None]
        if ((self._read_time[block, words] == self.time) & (self._read_warp[block, words] != warp)).any():
            raise AccessError("it overwrites shared memory that another warp has read, with no barrier between")
        self._write_time[block, words] = self.time
        self._write_warp[block, words] = warp
