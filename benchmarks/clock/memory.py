"""Memory as the interpreter sees it: tensors at their addresses, and the shared memory of a block."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from typing import Any

import numpy as np

Lanes = np.ndarray[Any, np.dtype[Any]]

COLD, WARM = "dram", "l2"
"""Place where a first access finds data: device memory, or the L2 cache as an earlier kernel left it."""


class GlobalMemory:
    """Regions of global memory by address: contents where they are known, and where the data lie."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._regions: list[tuple[int, str, Lanes | None]] = []

    def add(self, start: int, num_bytes: int, place: str, words: Lanes | None = None) -> None:
        """Add a region.

        Args:
            start: address.
            num_bytes: its length.
            place: COLD or WARM.
            words: contents, uint32; None if no address and no branch depends on them.
        """
        at = bisect.bisect_left(self._starts, start)
        if at < len(self._starts) and self._starts[at] == start:
            if self._regions[at][0] >= start + num_bytes:
                return
            del self._starts[at], self._regions[at]
        self._starts.insert(at, start)
        self._regions.insert(at, (start + num_bytes, place, words))

    def _find(self, address: int) -> tuple[int, str, Lanes | None] | None:
        at = bisect.bisect_right(self._starts, address) - 1
        if at < 0 or address >= self._regions[at][0]:
            return None
        return self._starts[at], self._regions[at][1], self._regions[at][2]

    def place(self, address: int) -> str:
        """Return where an access to this address finds its data; what is not known counts as WARM."""
        region = self._find(address)
        return region[1] if region else WARM

    def load(self, addresses: Lanes, mask: Lanes) -> Lanes | None:
        """Return the 32-bit words at these addresses, [32]; None if one is not known."""
        out = np.zeros(32, np.uint32)
        for lane in np.flatnonzero(mask):
            region = self._find(int(addresses[lane]))
            if region is None or region[2] is None:
                return None
            at = (int(addresses[lane]) - region[0]) // 4
            if at >= len(region[2]):
                return None
            out[lane] = region[2][at]
        return out


class SharedMemory:
    """The shared memory of a block: 32-bit words, each known or not."""

    def __init__(self, num_bytes: int = 232448, first_address: int = 0) -> None:
        self._words = np.zeros(num_bytes // 4 + 512, np.uint32)
        self._known = np.zeros(num_bytes // 4 + 512, bool)

    def store(self, addresses: Lanes, mask: Lanes, value: Lanes | None) -> None:
        """Store a word per lane; None forgets what was there."""
        at = (addresses[mask] & 0xFFFFFF) // 4
        at = at[at < len(self._words)]
        self._known[at] = value is not None
        if value is not None:
            self._words[at] = value[mask][: len(at)]

    def load(self, addresses: Lanes, mask: Lanes) -> Lanes | None:
        """Return a word per lane, [32]; None if one is not known."""
        at = np.where(mask, (addresses & 0xFFFFFF) // 4, 0)
        if at.max(initial=0) >= len(self._words) or not self._known[at[mask]].all():
            return None
        return np.where(mask, self._words[at], 0).astype(np.uint32)


def shared_wavefronts(addresses: Lanes, mask: Lanes, num_bytes: int) -> int:
    """Return the 128-byte wavefronts of an access to shared memory, bank conflicts included.

    A warp's access of 4 bytes a lane is one request, of 8 bytes two, of 16 bytes four; lanes of a request that want
    different words of one of the 32 banks are served one after the other.

    Args:
        addresses: [32], bytes.
        mask: [32], lanes that take part.
        num_bytes: per lane.
    """
    words = max(1, num_bytes // 4)
    group = 32 // words
    total = 0
    for first in range(0, 32, group):
        lanes = slice(first, first + group)
        if not mask[lanes].any():
            continue
        start = addresses[lanes][mask[lanes]].astype(np.int64) // 4
        wanted = np.unique(start[:, None] + np.arange(words))
        total += int(np.bincount(wanted % 32).max())
    return max(total, 1 if mask.any() else 0)


def sectors(addresses: Lanes, mask: Lanes, num_bytes: int) -> list[int]:
    """Return the distinct 32-byte sectors that lanes touch, as addresses divided by 32."""
    start = addresses[mask].astype(np.int64)
    if num_bytes <= 32:
        return [int(sector) for sector in np.unique(np.concatenate((start // 32, (start + num_bytes - 1) // 32)))]
    return sorted(
        {sector for first in start for sector in range(int(first) // 32, (int(first) + num_bytes - 1) // 32 + 1)}
    )


def as_words(array: Iterable[int] | Lanes) -> Lanes:
    """Return an array's bytes as uint32 words; a last incomplete word is dropped."""
    raw = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
    return raw[: len(raw) // 4 * 4].view(np.uint32)
