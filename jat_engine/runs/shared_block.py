"""`SharedBlock`: memory that two processes share, for the observations of a worker's slots."""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

SLOT_BYTES = 32 * 1024
"""Bytes of a slot. An image of Atari takes 28,224; what does not fit is sent through the pipe instead."""

Layout = tuple[tuple[str, str, tuple[int, ...], int], ...]
"""Name, dtype, shape and offset of each array of an observation."""


class SharedBlock:
    """Regions of `SLOT_BYTES` that a worker writes observations to and the run's process reads them from.

    The block is a file, preferably in memory. The worker removes its name once it has it open: nothing is left of it
    when the processes end, however they do.

    Args:
        path: of a block that another process has created; None to create one.
        num_slots: of a new block.

    Raises:
        OSError: there is no room for it.
    """

    def __init__(self, path: str | None = None, num_slots: int = 0) -> None:
        if path is None:
            folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
            descriptor, path = tempfile.mkstemp(prefix="jat-engine-", dir=folder)
            try:
                os.posix_fallocate(descriptor, 0, num_slots * SLOT_BYTES)  # else a full disk is a fatal signal, later
            except OSError:
                os.close(descriptor)
                Path(path).unlink()
                raise
        else:
            descriptor = os.open(path, os.O_RDWR)
        self.path = path
        try:
            self._memory = mmap.mmap(descriptor, 0)
        finally:
            os.close(descriptor)

    def write(self, slot: int, observation: Mapping[str, Any]) -> tuple[Layout, dict[str, Any]]:
        """Write the arrays of an observation.

        Returns:
            The layout of the arrays that were written; and the other parts, which must be sent.
        """
        offset, end = slot * SLOT_BYTES, (slot + 1) * SLOT_BYTES
        layout, others = [], {}
        for name, value in observation.items():
            if not isinstance(value, np.ndarray) or value.dtype.hasobject or offset + value.nbytes > end:
                others[name] = value
                continue
            target = np.frombuffer(self._memory, value.dtype, value.size, offset).reshape(value.shape)
            target[...] = value
            layout.append((name, value.dtype.str, value.shape, offset))
            offset += -(-value.nbytes // 64) * 64
        return tuple(layout), others

    def read(self, layout: Layout) -> dict[str, Any]:
        """Return copies of the arrays of a layout."""
        return {
            name: np.frombuffer(self._memory, dtype, int(np.prod(shape)), offset).reshape(shape).copy()
            for name, dtype, shape, offset in layout
        }

    def remove_name(self) -> None:
        """Remove the file's name. The memory stays, as long as a process has it open."""
        with contextlib.suppress(OSError):
            Path(self.path).unlink()
