"""Weights and scratch of the image encoder, packed as `image_encoder` reads them.

Activations are channel-last: [frames, pixels, channels]. Convolution weights are [9 * channels_in, channels_out], taps
(row-major) before channels; the columns of the last layer are reordered from the published (channel, pixel) to (pixel,
channel), so that both are read contiguously. The biases of the convolutions are dropped: InstanceNorm subtracts them
again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

FRAME = (84, 84, 4)
CHANNELS = (4, 32, 64, 128)
"""Of the frame and after each stage."""
SIDES = (84, 42, 21, 11)
FEATURES = CHANNELS[3] * SIDES[3] ** 2
SPLITS = 11
"""Ranges of 11 pixels the last layer's columns are divided into: enough programs to use the whole memory system."""


class Stage(NamedTuple):
    """Attributes:
    conv: [9 * channels_in, channels_out], float32.
    squeeze: [channels_out / 8, channels_out], float32.
    excite: [channels_out, channels_out / 8], float32.
    """

    conv: Tensor
    squeeze: Tensor
    excite: Tensor


class ImageWeights(NamedTuple):
    """Attributes:
    stages: the three of them.
    fc: [H, 121 * 128], a weight dtype; pixels before channels.
    scale: [H], float32, for int8 alone.
    bias: [H], float32.
    """

    stages: tuple[Stage, Stage, Stage]
    fc: Tensor
    scale: Tensor | None
    bias: Tensor

    @property
    def num_bytes(self) -> int:
        tensors = [*(t for stage in self.stages for t in stage), self.fc, self.bias]
        return sum(t.nbytes for t in tensors) + (0 if self.scale is None else self.scale.nbytes)


class ImageScratch(NamedTuple):
    """Attributes:
    activations: a stage, [I, pixels, channels], float32.
    means: a stage, [I, channels], float32.
    partial: [SPLITS, I, H], float32.
    """

    activations: tuple[Tensor, Tensor, Tensor]
    means: tuple[Tensor, Tensor, Tensor]
    partial: Tensor


def make_image_scratch(num_frames: int, hidden: int, device: torch.device | str) -> ImageScratch:
    """What `encode_images` needs for this many frames; may be shared by calls on one stream."""
    first, second, third = (
        torch.empty(num_frames, side**2, channels, device=device)
        for side, channels in zip(SIDES[1:], CHANNELS[1:], strict=True)
    )
    means = tuple(torch.empty(num_frames, channels, device=device) for channels in CHANNELS[1:])
    partial = torch.empty(SPLITS, num_frames, hidden, device=device)
    return ImageScratch((first, second, third), (means[0], means[1], means[2]), partial)


def pack_image_weights(state: Mapping[str, Tensor], dtype: torch.dtype) -> ImageWeights:
    """Pack float32 `conv1.weight`, `att1.fc.0.weight`, `att1.fc.2.weight`, ..., `fc.weight`, `fc.bias`, on their
    device; the last layer in `dtype` (int8: a scale an output), all else in float32.
    """

    def stage(number: int) -> Stage:
        conv = state[f"conv{number}.weight"]  # [out, in, 3, 3]
        packed = conv.permute(2, 3, 1, 0).reshape(9 * conv.shape[1], conv.shape[0])
        squeeze, excite = state[f"att{number}.fc.0.weight"], state[f"att{number}.fc.2.weight"]
        return Stage(packed.float().contiguous(), squeeze.float().contiguous(), excite.float().contiguous())

    fc, scale = state["fc.weight"].float(), None
    fc = fc.view(len(fc), CHANNELS[3], SIDES[3] ** 2).transpose(1, 2).reshape(len(fc), FEATURES)
    if dtype == torch.int8:
        scale = fc.abs().amax(dim=1) / 127
        fc = (fc / scale.clamp(min=1e-30)[:, None]).round()
    bias = state["fc.bias"].float().contiguous()
    return ImageWeights((stage(1), stage(2), stage(3)), fc.to(dtype).contiguous(), scale, bias)
