"""Weights and scratch memory of the image encoder, in the layout that `image_encoder` reads.

Activations are channels-last: [frames, pixels, channels], in the compute dtype. Convolution weights are [9 *
channels_in, channels_out] in that dtype, taps (row-major) before channels; the columns of the last layer are reordered
from the published (channel, pixel) to (pixel, channel). So both are read contiguously. The biases of the convolutions
are dropped, since InstanceNorm cancels them.

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
MAX_CHUNK = 256
"""Most frames that are encoded at a time: two for each multiprocessor of a large GPU."""
FEW_FRAMES = 16
"""Most frames that wait for the weights rather than for arithmetic."""
FEW_SPLITS = 16
"""Most ranges of pixels that the last layer's columns are divided into for few frames."""


class Stage(NamedTuple):
    """Weights of one stage.

    Attributes:
        conv: [9 * channels_in, channels_out], the compute dtype.
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
    """Scratch memory of `encode_images`, for I frames.

    Attributes:
        activations: [I, pixels, channels], the compute dtype, for each stage.
        means: of channels, [I, channels], float32, for each stage.
        partial: [num_partial(I) * H], float32.
    """

    activations: tuple[Tensor, Tensor, Tensor]
    means: tuple[Tensor, Tensor, Tensor]
    partial: Tensor

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in (*self.activations, *self.means, self.partial))


def num_partial(num_frames: int) -> int:
    """Return the most rows of partial sums that the last layer leaves for up to so many frames."""
    return max(SPLITS * num_frames, FEW_SPLITS * min(num_frames, FEW_FRAMES))


def make_image_scratch(num_frames: int, weights: ImageWeights) -> ImageScratch:
    """Allocate scratch memory for `encode_images`; calls on one stream may share it.

    Args:
        num_frames: the most frames of a call. More than MAX_CHUNK take no more memory.
        weights: whose device, compute dtype and hidden size it is for.
    """
    count, hidden, conv = min(num_frames, MAX_CHUNK), weights.fc.shape[0], weights.stages[0].conv
    first, second, third = (
        conv.new_empty(count, side**2, channels) for side, channels in zip(SIDES[1:], CHANNELS[1:], strict=True)
    )
    one, two, three = (
        torch.empty(count, channels, device=conv.device, dtype=torch.float32) for channels in CHANNELS[1:]
    )
    partial = torch.empty(num_partial(count) * hidden, dtype=torch.float32, device=conv.device)
    return ImageScratch((first, second, third), (one, two, three), partial)


def pack_image_weights(state: Mapping[str, Tensor], dtype: torch.dtype, compute: torch.dtype) -> ImageWeights:
    """Pack the published parameters, on their device.

    Args:
        state: float32 `conv1.weight`, `att1.fc.0.weight`, `att1.fc.2.weight`, ..., `fc.weight`, `fc.bias`.
        dtype: of the last layer's weights (int8 with one scale per output).
        compute: dtype of the convolutions' weights and of all products, `launch.compute_dtype` of `dtype`. The gates'
            weights stay float32; the last gate of few frames rounds them as it multiplies (`few_images`).
    """

    def stage(number: int) -> Stage:
        conv = state[f"conv{number}.weight"]  # [out, in, 3, 3]
        packed = conv.permute(2, 3, 1, 0).reshape(9 * conv.shape[1], conv.shape[0])
        squeeze, excite = state[f"att{number}.fc.0.weight"], state[f"att{number}.fc.2.weight"]
        return Stage(packed.to(compute).contiguous(), squeeze.float().contiguous(), excite.float().contiguous())

    fc, scale = state["fc.weight"].float(), None
    fc = fc.view(len(fc), CHANNELS[3], SIDES[3] ** 2).transpose(1, 2).reshape(len(fc), FEATURES)
    if dtype == torch.int8:
        scale = fc.abs().amax(dim=1) / 127
        fc = (fc / scale.clamp(min=1e-30)[:, None]).round()
    bias = state["fc.bias"].float().contiguous()
    return ImageWeights((stage(1), stage(2), stage(3)), fc.to(dtype).contiguous(), scale, bias)
