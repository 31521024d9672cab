"""Embeddings of frames [84, 84, 4], uint8.

x = (frame / 255 - 0.5) / 0.5
three times: x = gate(leaky_relu(InstanceNorm(conv3x3, stride 2, padding 1 (x))))
gate(x) = x * sigmoid(excite relu(squeeze mean_pixels(x))), one factor per channel
row = fc(x)

InstanceNorm has no weights, epsilon 1e-5 and the biased variance over a frame's pixels; leaky_relu's slope is 0.01.
There are eight launches. Each of the three stages has two: a convolution (an implicit product over taps and channels,
which applies the previous stage's gates as it loads), and a normalisation that also writes the channels' means, from
which the next kernel computes the gates. The last layer has two: products over ranges of columns, and their sum in a
fixed order. Convolutions are float32; the last layer, with nearly all of the weights, is in the weights' dtype. The row
of frame i is written to the address target_ptrs[i]; 0 marks padding, which is skipped.

Shapes: I frames, C channels, H hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from .activations import sigmoid
from .image_weights import (
    CHANNELS,
    FEATURES,
    FRAME,
    SIDES,
    SPLITS,
    ImageScratch,
    ImageWeights,
    Stage,
    make_image_scratch,
    pack_image_weights,
)
from .launch import (
    INTERPRETING,
    WEIGHT_DTYPES,
    check,
    check_dimensions,
    check_scale,
    compute_dtype,
    launch_and_wait,
    triton_dtype,
)

__all__ = ["ImageScratch", "ImageWeights", "Stage", "encode_images", "make_image_scratch", "pack_image_weights"]

_NORM_EPSILON = tl.constexpr(1e-5)


def encode_images_reference(frames: Tensor, state: Mapping[str, Tensor], dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the embeddings [I, H], computed in `dtype` from the published parameters (`conv1.weight`, ...)."""
    x = ((frames.to(dtype) / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)
    for stage in (1, 2, 3):
        weight, bias = state[f"conv{stage}.weight"].to(dtype), state[f"conv{stage}.bias"].to(dtype)
        x = F.leaky_relu(F.instance_norm(F.conv2d(x, weight, bias, stride=2, padding=1)))
        squeeze, excite = state[f"att{stage}.fc.0.weight"].to(dtype), state[f"att{stage}.fc.2.weight"].to(dtype)
        x = x * (F.relu(x.mean(dim=(2, 3)) @ squeeze.T) @ excite.T).sigmoid()[:, :, None, None]
    return x.flatten(1) @ state["fc.weight"].to(dtype).T + state["fc.bias"].to(dtype)


@triton.jit
def _gate(means_ptr, squeeze_ptr, excite_ptr, C: tl.constexpr):
    """Return a frame's gates, sigmoid(excite relu(squeeze means)), float32 [C]."""
    c = tl.arange(0, C)
    j = tl.arange(0, C // 8)
    squeeze = tl.load(squeeze_ptr + j[:, None] * C + c[None, :])
    inner = tl.maximum(tl.sum(squeeze * tl.load(means_ptr + c)[None, :], 1), 0.0)
    excite = tl.load(excite_ptr + c[:, None] * (C // 8) + j[None, :])
    return sigmoid(tl.sum(excite * inner[None, :], 1))


@triton.jit
def _image_conv_kernel(
    in_ptr,  # [I, SIDE_IN^2, C_IN], uint8 frames with FIRST, else float32 before its gate
    means_ptr,  # [I, C_IN] float32, without FIRST
    squeeze_ptr,  # [C_IN / 8, C_IN], without FIRST
    excite_ptr,  # [C_IN, C_IN / 8], without FIRST
    weight_ptr,  # [9 * C_IN, C_OUT] float32
    target_ptrs_ptr,  # [I]
    out_ptr,  # [I, SIDE_OUT^2, C_OUT] float32
    SIDE_IN: tl.constexpr,
    SIDE_OUT: tl.constexpr,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    FIRST: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    # One program: BLOCK_P output pixels of one frame, BLOCK_C of the output channels.
    frame = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    launch_and_wait(USE_PDL)
    if tl.load(target_ptrs_ptr + frame) == 0:
        return

    in_frame = pixel < SIDE_OUT * SIDE_OUT
    top = (pixel // SIDE_OUT) * 2 - 1
    left = (pixel % SIDE_OUT) * 2 - 1
    in_ptr += frame * (SIDE_IN * SIDE_IN * C_IN)
    if FIRST:
        # 9 * 4 products per pixel: all taps at once.
        k = tl.arange(0, 64)
        y = top[:, None] + (k // (3 * C_IN))[None, :]
        x = left[:, None] + (k // C_IN % 3)[None, :]
        in_taps = (k < 9 * C_IN)[None, :]
        mask = in_frame[:, None] & in_taps & (y >= 0) & (y < SIDE_IN) & (x >= 0) & (x < SIDE_IN)
        byte = tl.load(in_ptr + (y * SIDE_IN + x) * C_IN + (k % C_IN)[None, :], mask=mask, other=0)
        value = tl.where(mask, (byte.to(tl.float32) / 255 - 0.5) / 0.5, 0.0)  # padding is 0 after normalising
        weight = tl.load(weight_ptr + k[:, None] * C_OUT + channel[None, :], mask=(k < 9 * C_IN)[:, None], other=0.0)
        acc = tl.dot(value, weight, input_precision="ieee")
    else:
        c = tl.arange(0, C_IN)
        gate = _gate(means_ptr + frame * C_IN, squeeze_ptr, excite_ptr, C_IN)
        acc = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
        for tap in range(9):
            y = top + tap // 3
            x = left + tap % 3
            mask = in_frame & (y >= 0) & (y < SIDE_IN) & (x >= 0) & (x < SIDE_IN)
            value = tl.load(in_ptr + ((y * SIDE_IN + x) * C_IN)[:, None] + c[None, :], mask=mask[:, None], other=0.0)
            weight = tl.load(weight_ptr + (tap * C_IN + c)[:, None] * C_OUT + channel[None, :])
            acc = tl.dot(value * gate[None, :], weight, acc, input_precision="ieee")

    out_ptr += frame * (SIDE_OUT * SIDE_OUT * C_OUT)
    tl.store(out_ptr + pixel[:, None] * C_OUT + channel[None, :], acc, mask=in_frame[:, None])


@triton.jit
def _image_norm_kernel(
    x_ptr,  # [I, PIXELS, C] float32, updated in place
    target_ptrs_ptr,  # [I]
    means_ptr,  # [I, C] float32, written
    PIXELS: tl.constexpr,
    C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    # One program: BLOCK_C channels of one frame, all pixels, BLOCK_P at a time.
    frame = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    launch_and_wait(USE_PDL)
    if tl.load(target_ptrs_ptr + frame) == 0:
        return

    x_ptrs = x_ptr + frame * (PIXELS * C) + tl.arange(0, BLOCK_P)[:, None] * C + channel[None, :]
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for start in range(0, PIXELS, BLOCK_P):
        mask = (start + tl.arange(0, BLOCK_P) < PIXELS)[:, None]
        total += tl.load(x_ptrs + start * C, mask=mask, other=0.0)
    mean = tl.sum(total, 0) / PIXELS
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    squares = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for start in range(0, PIXELS, BLOCK_P):
        mask = (start + tl.arange(0, BLOCK_P) < PIXELS)[:, None]
        centred = tl.where(mask, tl.load(x_ptrs + start * C, mask=mask, other=0.0) - mean[None, :], 0.0)
        total += centred
        squares += centred * centred
    # What the first mean was off by shows as the mean of the centred values: it matters for
    # frames of nearly one colour.
    rest = tl.sum(total, 0) / PIXELS
    mean += rest
    rstd = tl.rsqrt(tl.maximum(tl.sum(squares, 0) / PIXELS - rest * rest, 0.0) + _NORM_EPSILON)
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for start in range(0, PIXELS, BLOCK_P):
        mask = (start + tl.arange(0, BLOCK_P) < PIXELS)[:, None]
        x = (tl.load(x_ptrs + start * C, mask=mask, other=0.0) - mean[None, :]) * rstd[None, :]
        x = tl.where(x >= 0.0, x, 0.01 * x)
        tl.store(x_ptrs + start * C, x, mask=mask)
        total += tl.where(mask, x, 0.0)
    tl.store(means_ptr + frame * C + channel, tl.sum(total, 0) / PIXELS)


@triton.jit(do_not_specialize=["num_frames"])
def _image_fc_kernel(
    x_ptr,  # [num_frames, PIXELS, C] float32, before its gate
    means_ptr,  # [num_frames, C] float32
    squeeze_ptr,  # [C / 8, C]
    excite_ptr,  # [C, C / 8]
    weight_ptr,  # [H, PIXELS * C]
    target_ptrs_ptr,  # [num_frames]
    partial_ptr,  # [grid 1, num_frames, H] float32
    num_frames,
    H: tl.constexpr,
    PIXELS: tl.constexpr,
    C: tl.constexpr,
    PIXELS_A_SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DTYPE: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    # One program: BLOCK_N outputs of BLOCK_M frames, one range of pixels.
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    first_pixel = tl.program_id(1) * PIXELS_A_SPLIT
    frames = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    launch_and_wait(USE_PDL)

    address = tl.load(target_ptrs_ptr + frames, mask=frames < num_frames, other=0)
    is_frame = (address != 0)[:, None]
    c = tl.arange(0, C)
    j = tl.arange(0, C // 8)
    frame_start = frames.to(tl.int64)[:, None] * (PIXELS * C)
    means = tl.load(means_ptr + frames[:, None] * C + c[None, :], mask=is_frame, other=0.0)
    squeeze = tl.load(squeeze_ptr + j[None, :] * C + c[:, None])
    inner = tl.maximum(tl.dot(means, squeeze, input_precision="ieee"), 0.0)
    excite = tl.load(excite_ptr + c[None, :] * (C // 8) + j[:, None])
    gate = sigmoid(tl.dot(inner, excite, input_precision="ieee"))

    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    in_columns = (columns < H)[None, :]
    for step in range(PIXELS_A_SPLIT):
        pixel = first_pixel + step
        x = tl.load(x_ptr + frame_start + pixel * C + c[None, :], mask=is_frame, other=0.0)
        w = tl.load(weight_ptr + columns[None, :] * (PIXELS * C) + (pixel * C + c)[:, None], mask=in_columns, other=0.0)
        acc = tl.dot((x * gate).to(DTYPE), w.to(DTYPE), acc, input_precision="ieee")

    out_ptr = partial_ptr + (tl.program_id(1) * num_frames + frames)[:, None] * H + columns[None, :]
    tl.store(out_ptr, acc, mask=is_frame & in_columns)


@triton.jit(do_not_specialize=["num_frames"])
def _image_sum_kernel(
    partial_ptr,  # [SPLITS, num_frames, H] float32
    scale_ptr,  # [H] float32 or None
    bias_ptr,  # [H] float32
    target_ptrs_ptr,  # [num_frames] int64 addresses of float32 [H]
    num_frames,
    H: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    # One program: one frame, one block of columns.
    frame = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < H
    launch_and_wait(USE_PDL)
    address = tl.load(target_ptrs_ptr + frame)
    if address == 0:
        return

    total = tl.zeros([BLOCK], tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(partial_ptr + (split * num_frames + frame) * H + column, mask=mask, other=0.0)
    if scale_ptr is not None:
        total *= tl.load(scale_ptr + column, mask=mask, other=0.0)
    total += tl.load(bias_ptr + column, mask=mask, other=0.0)
    tl.store(address.to(tl.pointer_type(tl.float32)) + column, total, mask=mask)


def encode_images(
    frames: Tensor, target_ptrs: Tensor, weights: ImageWeights, scratch: ImageScratch, *, pdl: bool = False
) -> None:
    """Write the embeddings of I frames to their addresses.

    Args:
        frames: [I, 84, 84, 4], uint8.
        target_ptrs: [I], int64 device addresses of float32 [H]; written. 0 for padding.
        weights: from `pack_image_weights`.
        scratch: from `make_image_scratch`, for exactly I frames; overwritten.
        pdl: programmatic dependent launch, see `launch` (sm_90 or later).

    Raises:
        ValueError: an argument has another shape, dtype or device than above, or is not contiguous.
    """
    check_dimensions("frames", frames, 4)
    check_dimensions("weights.fc", weights.fc, 2)
    count, hidden, device = frames.shape[0], weights.fc.shape[0], frames.device

    check("frames", frames, (count, *FRAME), torch.uint8, device)
    check("target_ptrs", target_ptrs, (count,), torch.int64, device)
    check("weights.fc", weights.fc, (hidden, FEATURES), WEIGHT_DTYPES, device)
    check_scale(weights.fc, weights.scale, hidden)
    check("weights.bias", weights.bias, (hidden,), torch.float32, device)
    for index, stage in enumerate(weights.stages):
        before, channels, pixels = CHANNELS[index], CHANNELS[index + 1], SIDES[index + 1] ** 2
        check(f"weights.stages[{index}].conv", stage.conv, (9 * before, channels), torch.float32, device)
        check(f"weights.stages[{index}].squeeze", stage.squeeze, (channels // 8, channels), torch.float32, device)
        check(f"weights.stages[{index}].excite", stage.excite, (channels, channels // 8), torch.float32, device)
        activations, means = scratch.activations[index], scratch.means[index]
        check(f"scratch.activations[{index}]", activations, (count, pixels, channels), torch.float32, device)
        check(f"scratch.means[{index}]", means, (count, channels), torch.float32, device)
    check("scratch.partial", scratch.partial, (SPLITS, count, hidden), torch.float32, device)

    for index, stage in enumerate(weights.stages):
        side, channels = SIDES[index + 1], CHANNELS[index + 1]
        block_p, block_c = (
            (triton.next_power_of_2(side**2), channels) if INTERPRETING else (32 if index < 2 else 16, 32)
        )
        previous = weights.stages[index - 1]
        _image_conv_kernel[(count, triton.cdiv(side**2, block_p), channels // block_c)](
            scratch.activations[index - 1] if index else frames,
            scratch.means[index - 1] if index else None,
            previous.squeeze if index else None,
            previous.excite if index else None,
            stage.conv, target_ptrs, scratch.activations[index],
            SIDE_IN=SIDES[index], SIDE_OUT=side, C_IN=CHANNELS[index], C_OUT=channels, FIRST=index == 0,
            BLOCK_P=block_p, BLOCK_C=block_c, USE_PDL=pdl, num_warps=4, num_stages=3, launch_pdl=pdl,
        )  # fmt: skip
        block_p, block_c = 128, channels if INTERPRETING else 8
        _image_norm_kernel[(count, channels // block_c)](
            scratch.activations[index], target_ptrs, scratch.means[index],
            PIXELS=side**2, C=channels, BLOCK_P=block_p, BLOCK_C=block_c, USE_PDL=pdl, num_warps=4, launch_pdl=pdl,
        )  # fmt: skip

    last = weights.stages[2]
    block_n = min(512, triton.next_power_of_2(hidden)) if INTERPRETING else 16
    _image_fc_kernel[(triton.cdiv(hidden, block_n), SPLITS, triton.cdiv(count, 16))](
        scratch.activations[2], scratch.means[2], last.squeeze, last.excite, weights.fc, target_ptrs, scratch.partial,
        count,
        H=hidden, PIXELS=SIDES[3] ** 2, C=CHANNELS[3], PIXELS_A_SPLIT=SIDES[3] ** 2 // SPLITS,
        BLOCK_M=16, BLOCK_N=block_n, DTYPE=triton_dtype(compute_dtype(weights.fc.dtype)), USE_PDL=pdl,
        num_warps=4, num_stages=3, launch_pdl=pdl,
    )  # fmt: skip
    block = triton.next_power_of_2(hidden) if INTERPRETING else 256
    _image_sum_kernel[(count, triton.cdiv(hidden, block))](
        scratch.partial, weights.scale, weights.bias, target_ptrs, count,
        H=hidden, SPLITS=SPLITS, BLOCK=block, USE_PDL=pdl, num_warps=4, launch_pdl=pdl,
    )  # fmt: skip
