"""Memories of a GPU: global memory is this process's own, with the bounds of each tensor a kernel may use."""

from __future__ import annotations

import bisect
import ctypes
from collections.abc import Iterable, Sequence

import numpy as np

from .values import UNSIGNED, Array

_BASE = 4096
_ADDRESS_SPACE = (1 << 47) - 2 * _BASE
_BYTES = np.ctypeslib.as_array((ctypes.c_uint8 * _ADDRESS_SPACE).from_address(_BASE))
_WHOLE = {bits: _BYTES.view(dtype) for bits, dtype in UNSIGNED.items()}
"""All of this process's memory, in elements of so many bits. Only addresses that were checked may be used."""


THREADS_OF_BLOCK = 1024
"""Most threads of a block: numbers of threads count so many a block."""


SEVERAL_BLOCKS = -2
"""Stands for more than one block where a block is noted, -1 for none."""


class AccessError(AssertionError):
    """A kernel read or wrote memory it must not."""


class GlobalMemory:
    """The tensors a launch may use, with who accessed what: blocks run in any order, and at the same time.

    Args:
        allocations: address and bytes of each. Those that overlap count as one.
        written: what each earlier kernel of the same step wrote, see `stored_words`. A kernel must not read that before
            `griddepcontrol.wait`.
        is_ordered: its blocks order some of their accesses by atomic operations, so that a block may read what another
            has written.
    """

    def __init__(
        self, allocations: Iterable[tuple[int, int]], written: Sequence[Array] = (), is_ordered: bool = False
    ) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._is_ordered = is_ordered
        self._readers: dict[int, Array] = {}
        self._stores: dict[int, list[tuple[Array, Array, Array]]] = {}
        for start, size in sorted(allocations):
            if self._ends and start < self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], start + size)
            elif size:
                self._starts.append(start)
                self._ends.append(start + size)
        self._written = written
        self._stored: list[Array] = []

    def load(self, address: Array, bits: int, count: int, early: bool, block: Array | None) -> Array:
        """Return [N, count] elements at N addresses.

        Args:
            address: [N], bytes.
            bits: of an element.
            count: of elements.
            early: before griddepcontrol.wait.
            block: [N] numbers of the blocks that read. None for an atomic operation.
        """
        self._check(address, bits // 8 * count, "read")
        if early and address.size and any(_overlap(words, address, bits // 8 * count) for words in self._written):
            raise AccessError("it reads before griddepcontrol.wait what an earlier kernel of the step wrote")
        if block is not None and not self._is_ordered:
            self._note_read(address, bits // 8 * count, block)
        return _WHOLE[bits][self._index(address, bits, count)]

    def store(self, address: Array, values: Array, early: bool, thread: Array | None) -> None:
        """Write [N, count] elements at N addresses.

        Args:
            address: [N], bytes.
            values: [N, count], unsigned integers.
            early: before griddepcontrol.wait.
            thread: [N], of the whole grid, see `Machine.thread_ids`. None for an atomic operation.
        """
        bits, count = values.dtype.itemsize * 8, values.shape[1]
        if early:
            raise AccessError("it writes before griddepcontrol.wait")
        self._check(address, bits // 8 * count, "written")
        place = self._index(address, bits, count)
        _WHOLE[bits][place] = values
        self._stored.append(_words(address, bits // 8 * count).ravel())
        if thread is not None:
            self._stores.setdefault(bits, []).append((place.ravel(), np.repeat(thread, count), values.ravel()))

    def check_order(self) -> None:
        """Check, at the end of a launch, that its result does not depend on the order of blocks and warps.

        Raises:
            AccessError: two threads stored different numbers in one place, or a block read what another stored.
        """
        for bits, stores in self._stores.items():
            place, thread, value = (np.concatenate(parts) for parts in zip(*stores, strict=True))
            order = np.argsort(place, kind="stable")
            place, thread, value = place[order], thread[order], value[order]
            same = place[1:] == place[:-1]
            if (same & (thread[1:] != thread[:-1]) & (value[1:] != value[:-1])).any():
                raise AccessError("two threads write different numbers to one address, in no order")
            if self._readers:
                self._check_readers(place * (bits // 8) + _BASE, thread // THREADS_OF_BLOCK)

    def _note_read(self, address: Array, size: int, block: Array) -> None:
        """Keep the block that has read each word of an allocation: or none, or several."""
        allocation = np.searchsorted(np.array(self._starts, np.int64), address, "right") - 1
        for index in np.unique(allocation):
            start = self._starts[index]
            if index not in self._readers:
                self._readers[index] = np.full((self._ends[index] - start) // 4 + 2, -1, np.int32)
            readers, chosen = self._readers[index], allocation == index
            words = _words(address[chosen], size) - start // 4
            by = np.broadcast_to(block[chosen][:, None], words.shape)
            known = readers[words]
            readers[words] = np.where((known == -1) | (known == by), by, SEVERAL_BLOCKS)
            others = readers[words] != by  # of several blocks that read a word at once, the last was noted
            readers[words[others]] = SEVERAL_BLOCKS

    def _check_readers(self, address: Array, block: Array) -> None:
        """Check that no other block has read what blocks have stored: N addresses, of one element each."""
        allocation = np.searchsorted(np.array(self._starts, np.int64), address, "right") - 1
        for index, readers in self._readers.items():
            chosen = allocation == index
            reader = readers[address[chosen] // 4 - self._starts[index] // 4]
            if ((reader != -1) & (reader != block[chosen])).any():
                raise AccessError("a block reads what another block writes, in no order")

    def stored_words(self) -> Array:
        """Return which words of 4 bytes were written, as sorted numbers."""
        return np.unique(np.concatenate(self._stored)) if self._stored else np.empty(0, np.int64)

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


def _words(address: Array, size: int) -> Array:
    """Return the words of 4 bytes in `size` bytes at N addresses, [N, words]."""
    return (address // 4)[:, None] + np.arange(max(1, size // 4))


def _overlap(written: Array, address: Array, size: int) -> bool:
    """Return whether one of `written`, sorted words, is within `size` bytes at one of the addresses."""
    if not written.size or int(address.max()) + size <= 4 * int(written[0]) or address.min() > 4 * int(written[-1]) + 3:
        return False
    words = _words(address, size).ravel()
    place = np.minimum(np.searchsorted(written, words), len(written) - 1)
    return bool((written[place] == words).any())


_SEVERAL = 63
"""Stands for more than one warp."""


class SharedMemory:
    """Shared memory of B blocks, with the last writer of each word, to find reads that no barrier orders.

    Args:
        num_blocks: B.
        size: bytes of a block.
    """

    def __init__(self, num_blocks: int, size: int) -> None:
        self.size = size
        self._room = -(-size // 16) * 16
        self._set_bytes(np.full((num_blocks, self._room), 0xFF, np.uint8))  # NaN in every format
        # Of each word of 4 bytes, who wrote and who read it last: 64 * the interval between barriers + the warp.
        self._writer, self._reader = (np.full(num_blocks * self._room // 4, -1, np.int32) for _ in range(2))
        self.interval = 0

    def _set_bytes(self, contents: Array) -> None:
        self._views = {bits: contents.view(dtype) for bits, dtype in UNSIGNED.items()}

    def select(self, blocks: Array) -> SharedMemory:
        """Return a copy of some blocks' memory."""
        chosen = SharedMemory.__new__(SharedMemory)
        chosen.size, chosen._room, chosen.interval = self.size, self._room, self.interval
        chosen._set_bytes(self._views[8][blocks].copy())
        chosen._writer, chosen._reader = (
            owners.reshape(len(blocks), -1)[blocks].ravel() for owners in (self._writer, self._reader)
        )
        return chosen

    def load(self, block: Array, address: Array, bits: int, count: int, warp: Array) -> Array:
        """Return [N, count] elements at N addresses, read by threads of these blocks and warps."""
        self._check(address, bits // 8 * count)
        place = block * self._room + address
        self._note_read(_words(place, bits // 8 * count), warp)
        return self._views[bits].ravel()[(place // (bits // 8))[:, None] + np.arange(count)]

    def store(self, block: Array, address: Array, values: Array, warp: Array) -> None:
        """Write [N, count] elements at N addresses."""
        bits, count = values.dtype.itemsize * 8, values.shape[1]
        self._check(address, bits // 8 * count)
        place = block * self._room + address
        self._note_write(_words(place, bits // 8 * count), warp)
        self._views[bits].reshape(-1)[(place // (bits // 8))[:, None] + np.arange(count)] = values

    def gather(self, index: Array, bits: int) -> Array:
        """Return elements of every block: `index` counts elements of `bits` bits, [...] -> [B, ...]."""
        if index.size and (int(index.min()) < 0 or (int(index.max()) + 1) * (bits // 8) > self.size):
            raise AccessError(f"a matrix lies outside of the {self.size} bytes of shared memory")
        self._reader.reshape(len(self._views[8]), -1)[:, index * (bits // 8) // 4] = 64 * self.interval + _SEVERAL
        return self._views[bits][:, index]

    def note_matrix_read(self) -> None:
        """Check that no warp has written since the last barrier: wgmma reads for four warps at once.

        Raises:
            AccessError: one has.
        """
        if (self._writer >= 64 * self.interval).any():
            raise AccessError("wgmma reads shared memory that was written with no barrier between")

    def _check(self, address: Array, size: int) -> None:
        if address.size == 0:
            return
        low, high = int(address.min()), int(address.max())
        if low < 0 or high + size > self.size:
            raise AccessError(f"address {high if low >= 0 else low} is outside of {self.size} bytes of shared memory")
        if (address % size).any():
            raise AccessError(f"an address in shared memory is not a multiple of {size} bytes")

    def _note_read(self, words: Array, warp: Array) -> None:
        now, me = 64 * self.interval, (64 * self.interval + warp)[:, None]
        writer = self._writer[words]
        if ((writer >= now) & (writer != me)).any():
            raise AccessError("it reads shared memory that another warp wrote, with no barrier between")
        reader = self._reader[words]
        self._reader[words] = np.where((reader >= now) & (reader != me), now + _SEVERAL, me)
        # Of several warps that read a word at once, the last was noted.
        others = self._reader[words] != me
        if others.any():
            self._reader[words[others]] = now + _SEVERAL

    def _note_write(self, words: Array, warp: Array) -> None:
        now, me = 64 * self.interval, (64 * self.interval + warp)[:, None]
        reader = self._reader[words]
        if ((reader >= now) & (reader != me)).any():
            raise AccessError("it overwrites shared memory that another warp has read, with no barrier between")
        self._writer[words] = me
