"""Define the buffer in which a step's inputs travel to the GPU."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...config import FRAME_SHAPE
from ..base import STEP_TOKENS

_ONE_AGENT = (
    "source_ptrs",
    "positions",
    "slot_mapping",
    "context_lens",
    "start_offsets",
    "has_noise",
    "head_ptrs",  # this and the rest are those of an `AgentLayout`
    "head_bias_ptrs",
    "head_sizes",
    "query_start",
    "source_sizes",
    "value_starts",
)
"""The first fields: integers that every step writes, in the order that `StepInputs.write_one_agent` takes them."""

_ALIGNMENT = 16

_FLOAT_BYTES = 4


class StepShape(NamedTuple):
    """Sizes that a CUDA graph is captured for; smaller steps are padded to them.

    Attributes:
        sessions: room for so many; of each, STEP_TOKENS token rows.
        values: floats of continuous tokens, of all sessions together.
        capacity: numbers a session's prediction may have; 0 to encode images and integers and do no more.
        frames: whether observations can be images that are to be encoded.
        integers: whether they can be integers that are to be encoded.
    """

    sessions: int
    values: int
    capacity: int
    frames: bool
    integers: bool


class HostBuffer:
    """Arrays in one host buffer, pinned where there is a GPU, and their copies on the device.

    Attributes:
        host: field -> numpy array, to be written before `copy`; zeros at first.
        device: field -> tensor, valid after `copy`.
    """

    def __init__(self, fields: Mapping[str, tuple[tuple[int, ...], torch.dtype]], device: torch.device) -> None:
        """Allocate the buffers.

        Args:
            fields: shapes and dtypes, in the order in which they lie.
            device: of the copy.
        """
        places: dict[str, tuple[int, int]] = {}
        size = 0
        for name, (extent, dtype) in fields.items():
            count = int(np.prod(extent)) * dtype.itemsize
            places[name] = size, count
            size += -(-count // _ALIGNMENT) * _ALIGNMENT
        self._host = torch.zeros(size, dtype=torch.uint8, device="cpu", pin_memory=device.type == "cuda")
        self._device = torch.zeros(size, dtype=torch.uint8, device=device)
        self.host: dict[str, np.ndarray] = {}
        self.device: dict[str, Tensor] = {}
        for name, (extent, dtype) in fields.items():
            begin, count = places[name]
            self.host[name] = self._host[begin : begin + count].view(dtype).view(extent).numpy()
            self.device[name] = self._device[begin : begin + count].view(dtype).view(extent)

    @property
    def num_bytes(self) -> int:
        """Bytes on the device; as many again in pinned memory."""
        return self._host.nbytes

    def copy(self) -> None:
        """Copy host to device, on the current stream."""
        self._device.copy_(self._host, non_blocking=True)


class StepInputs(HostBuffer):
    """The inputs of a step of agents.

    Attributes:
        shape: that it has room for.
        write_one_agent: writes the fields `_ONE_AGENT` of inputs for one session, at once: a write for each array costs
            more. Its arguments are their entries, one field after the other; those of rows padded to STEP_TOKENS.
        host: field -> numpy array, to be written before a step.
        device: field -> tensor, valid after `copy`. Fields and shapes, S sessions and R rows:
            source_ptrs [R], head_ptrs, head_bias_ptrs [S], int64 addresses;
            query_start [S + 1], context_lens, start_offsets, head_sizes, has_noise [S], int32;
            positions, slot_mapping, source_sizes, value_starts [R], page_table [S, max_pages], int32;
            values [`StepShape.values`], log_noise [S, capacity], float32;
            with integers: tokens int32 [S, X], rewards float32 [S], token_targets int64 [S], addresses;
            with frames: frames uint8 [S, 84, 84, 4], frame_targets int64 [S], addresses.
    """

    def __init__(self, shape: StepShape, max_pages: int, num_integers: int, device: torch.device) -> None:
        self.shape = shape
        sessions, rows = shape.sessions, shape.sessions * STEP_TOKENS
        fields: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "source_ptrs": ((rows,), torch.int64),
            "positions": ((rows,), torch.int32),
            "slot_mapping": ((rows,), torch.int32),
            "context_lens": ((sessions,), torch.int32),
            "start_offsets": ((sessions,), torch.int32),
            "has_noise": ((sessions,), torch.int32),
            "head_ptrs": ((sessions,), torch.int64),
            "head_bias_ptrs": ((sessions,), torch.int64),
            "head_sizes": ((sessions,), torch.int32),
            "query_start": ((sessions + 1,), torch.int32),
            "source_sizes": ((rows,), torch.int32),
            "value_starts": ((rows,), torch.int32),
            "log_noise": ((sessions, max(shape.capacity, 1)), torch.float32),
            "page_table": ((sessions, max_pages), torch.int32),
            "values": ((shape.values,), torch.float32),
        }
        if shape.integers:
            fields["tokens"] = ((sessions, num_integers), torch.int32)
            fields["rewards"] = ((sessions,), torch.float32)
            fields["token_targets"] = ((sessions,), torch.int64)
        if shape.frames:
            fields["frames"] = ((sessions, *FRAME_SHAPE), torch.uint8)
            fields["frame_targets"] = ((sessions,), torch.int64)

        super().__init__(fields, device)
        self.host["slot_mapping"].fill(-1)  # no rows yet: nothing is written to the cache
        self._values = self.host["values"].data.cast("B")
        self._page_tables = [row.data for row in self.host["page_table"]]
        numbers = struct.Struct("=" + "".join(_format(*fields[name]) for name in _ONE_AGENT))
        self.write_one_agent: Callable[..., None] = partial(numbers.pack_into, self._host.numpy().data, 0)

    def write_values(self, pieces: Sequence[Any], count: int) -> None:
        """Write contiguous float32 arrays, or their bytes, one behind the other to `values`.

        For short ones that is several times faster than numpy.

        Args:
            pieces: to write.
            count: of their numbers together; ValueError if it is another.
        """
        self._values[: count * _FLOAT_BYTES] = b"".join(pieces)

    def write_page_table(self, session: int, table: np.ndarray) -> None:
        """Write the page table of a session, contiguous int32."""
        self._page_tables[session][: table.size] = table


def _format(extent: tuple[int, ...], dtype: torch.dtype) -> str:
    """Return the format of a field of integers, and of the padding behind it, as `struct` has them."""
    (count,) = extent
    code = {torch.int32: "i", torch.int64: "q"}[dtype]
    return f"{count}{code}{-count * dtype.itemsize % _ALIGNMENT}x"
