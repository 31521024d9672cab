"""`SharedBlock`: memory that two processes share, for the observations of a worker's slots."""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

SLOT_BYTES = 32 * 1024
"""Bytes of a slot. An image of Atari takes 28,224; what does not fit is sent through the pipe instead."""

Layout = tuple[tuple[str, str, tuple[int, ...], int], ...]
"""Name, dtype, shape and offset of each array of an observation."""


class SharedBlock:
    """Regions of `SLOT_BYTES` that a worker writes observations to and the run's process reads them from.

    The block is a file without a name, preferably in memory: nothing is left of it when the processes end, however
    they do.

    Args:
        descriptor: of the file, which may be closed afterwards; see `create` and `receive`.
    """

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, 0)

    @classmethod
    @contextlib.contextmanager
    def create(cls, num_slots: int) -> Iterator[tuple[SharedBlock, int]]:
        """Create a block, and yield it with its file's descriptor, to `send` within the `with` block.

        Raises:
            OSError: there is no room for it.
        """
        folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(num_slots * SLOT_BYTES))  # not truncate: a full disk would be a fatal signal, later
            file.flush()
            yield cls(file.fileno()), file.fileno()

    @staticmethod
    def send(descriptor: int, connection: Connection) -> None:
        """Send a block's descriptor, before anything else is sent. Raises `OSError` if the other process has ended."""
        with socket.socket(fileno=os.dup(connection.fileno())) as pipe:
            socket.send_fds(pipe, [b" "], [descriptor])

    @classmethod
    def receive(cls, connection: Connection) -> SharedBlock:
        """Receive the block that another process sends.

        Raises:
            EOFError: that process has ended.
        """
        with socket.socket(fileno=os.dup(connection.fileno())) as pipe:
            _, descriptors, _, _ = socket.recv_fds(pipe, 1, 1)
        if not descriptors:
            raise EOFError("the other process has ended")
        try:
            return cls(descriptors[0])
        finally:
            os.close(descriptors[0])

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
