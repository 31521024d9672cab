"""Scratch memory of the image encoder, shared by all CUDA graphs, since one step runs at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...kernels.image_weights import ImageScratch, make_image_scratch

_ALIGNMENT = 256


class ImageArena:
    """Memory for the scratch of up to `num_frames` frames; fewer frames use its beginning."""

    def __init__(self, num_frames: int, hidden: int, device: torch.device) -> None:
        self.num_frames = num_frames
        self._hidden = hidden
        sizes = [_aligned(tensor.nbytes) for tensor in _tensors(self._layout(num_frames))]
        self._memory = torch.zeros(sum(sizes), dtype=torch.uint8, device=device)

    @property
    def num_bytes(self) -> int:
        """Return the bytes on the device."""
        return self._memory.nbytes

    def scratch(self, num_frames: int) -> ImageScratch:
        """Return the scratch of `num_frames` frames, at most those that the arena has room for."""
        scratch: ImageScratch = self._place(self._layout(num_frames), [0])
        return scratch

    def _layout(self, num_frames: int) -> ImageScratch:
        """Return the scratch as tensors without memory."""
        return make_image_scratch(num_frames, self._hidden, torch.device("meta"))

    def _place(self, layout: Any, used: list[int]) -> Any:
        """Return a tree of tuples with its tensors placed one behind the other. used: bytes, updated."""
        if isinstance(layout, Tensor):
            begin = used[0]
            used[0] += _aligned(layout.nbytes)
            return self._memory[begin : begin + layout.nbytes].view(layout.dtype).view(layout.shape)
        parts = [self._place(part, used) for part in layout]
        return type(layout)(*parts) if hasattr(layout, "_fields") else tuple(parts)


def _tensors(layout: Any) -> list[Tensor]:
    return [layout] if isinstance(layout, Tensor) else [tensor for part in layout for tensor in _tensors(part)]


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
