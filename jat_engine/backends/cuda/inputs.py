"""Define the buffer in which a step's inputs travel to the GPU."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...config import FRAME_SHAPE
from ..base import STEP_TOKENS

_ONE_AGENT = (
    "query_start",
    "context_lens",
    "start_offsets",
    "head_sizes",
    "has_noise",
    "positions",
    "slot_mapping",
    "source_sizes",
    "value_starts",
)
"""Fields of int32 that every step writes, in the order that `StepInputs.write_one_agent` takes them."""

_ALIGNMENT = 16


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


class StepInputs:
    """A host buffer, pinned where there is a GPU, its copy on the device, and both by field.

    Attributes:
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
        sessions, rows = shape.sessions, shape.sessions * STEP_TOKENS
        fields: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "source_ptrs": ((rows,), torch.int64),
            "head_ptrs": ((sessions,), torch.int64),
            "head_bias_ptrs": ((sessions,), torch.int64),
            "query_start": ((sessions + 1,), torch.int32),
            "context_lens": ((sessions,), torch.int32),
            "start_offsets": ((sessions,), torch.int32),
            "head_sizes": ((sessions,), torch.int32),
            "positions": ((rows,), torch.int32),
            "slot_mapping": ((rows,), torch.int32),
            "source_sizes": ((rows,), torch.int32),
            "value_starts": ((rows,), torch.int32),
            "has_noise": ((sessions,), torch.int32),
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
        self.host["slot_mapping"].fill(-1)  # no rows yet: nothing is written to the cache
        self._words = self._host.view(torch.int32).numpy()
        self._numbers = np.concatenate([_words_of(*places[name]) for name in _ONE_AGENT])

    def write_one_agent(self, numbers: list[int]) -> None:
        """Write the fields `_ONE_AGENT` of inputs for one session at once: a write for each array costs more.

        numbers: their entries, one field after the other; those of rows padded to STEP_TOKENS.
        """
        self._words[self._numbers] = numbers

    @property
    def num_bytes(self) -> int:
        """Bytes on the device; as many again in pinned memory."""
        return self._host.nbytes

    def copy(self) -> None:
        """Copy host to device, on the current stream."""
        self._device.copy_(self._host, non_blocking=True)


def _words_of(begin: int, num_bytes: int) -> np.ndarray:
    """Return the indices of the 4-byte words of a field."""
    return np.arange(begin // 4, (begin + num_bytes) // 4)
