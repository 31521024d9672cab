"""Weights and scratch memory of the image encoder, in the layout that `image_encoder` reads.

Activations are channels-last: [frames, pixels, channels]. Convolution weights are [9 * channels_in, channels_out], taps
(row-major) before channels; the columns of the last layer are reordered from the published (channel, pixel) to (pixel,
channel). So both are read contiguously. The biases of the convolutions are dropped, since InstanceNorm cancels them.

Shapes: I frames, H hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

FRAME = (84, 84, 4)
CHANNELS = (4, 32, 64, 128)
"""Channels of the frame and after each stage."""
SIDES = (84, 42, 21, 11)
FEATURES = CHANNELS[3] * SIDES[3] ** 2
SPLITS = 11
"""Ranges of 11 pixels that the last layer's columns are divided into: enough programs to use the memory bandwidth."""


class Stage(NamedTuple):
    """Weights of one stage.

    Attributes:
        conv: [9 * channels_in, channels_out], float32.
        squeeze: [channels_out / 8, channels_out], float32.
        excite: [channels_out, channels_out / 8], float32.
    """

    conv: Tensor
    squeeze: Tensor
    excite: Tensor


class ImageWeights(NamedTuple):
    """Weights of the image encoder.

    Attributes:
        stages: the three stages.
        fc: [H, 121 * 128], a weight dtype; columns are (pixel, channel).
        scale: [H], float32, for int8 only.
        bias: [H], float32.
    """

    stages: tuple[Stage, Stage, Stage]
    fc: Tensor
    scale: Tensor | None
    bias: Tensor

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        tensors = [*(t for stage in self.stages for t in stage), self.fc, self.bias]
        return sum(t.nbytes for t in tensors) + (0 if self.scale is None else self.scale.nbytes)


class ImageScratch(NamedTuple):
    """Scratch memory of `encode_images`.

    Attributes:
        activations: [I, pixels, channels], float32, for each stage.
        means: [I, channels], float32, for each stage.
        partial: [SPLITS, I, H], float32.
    """

    activations: tuple[Tensor, Tensor, Tensor]
    means: tuple[Tensor, Tensor, Tensor]
    partial: Tensor


def make_image_scratch(num_frames: int, hidden: int, device: torch.device | str) -> ImageScratch:
    """Allocate scratch memory for `encode_images`; calls on one stream may share it.

    Args:
        num_frames: I.
        hidden: H.
        device: of the frames.
    """
    first, second, third = (
        torch.empty(num_frames, side**2, channels, device=device, dtype=torch.float32)
        for side, channels in zip(SIDES[1:], CHANNELS[1:], strict=True)
    )
    means = tuple(torch.empty(num_frames, channels, device=device, dtype=torch.float32) for channels in CHANNELS[1:])
    partial = torch.empty(SPLITS, num_frames, hidden, device=device, dtype=torch.float32)
    return ImageScratch((first, second, third), (means[0], means[1], means[2]), partial)


def pack_image_weights(state: Mapping[str, Tensor], dtype: torch.dtype) -> ImageWeights:
    """Pack the published parameters, on their device.

    Args:
        state: float32 `conv1.weight`, `att1.fc.0.weight`, `att1.fc.2.weight`, ..., `fc.weight`, `fc.bias`.
        dtype: of the last layer's weights (int8 with one scale per output); the others are packed in float32.
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
