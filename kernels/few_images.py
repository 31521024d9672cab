"""Stages and last layer of the image encoder for few frames in half precision, by more programs than frames.

What counts is the chain of latencies, so no program computes all channels of a frame. InstanceNorm and the mean that a
gate needs are a channel's own: a program computes a share of the channels, of all pixels, in registers, and stores them
not gated, with their means. The next kernel computes the gates of all channels, and multiplies its weights or inputs by
them. Weights are loaded before the wait. A frame takes 32, 4 and 8 programs in the three stages, and the last layer
some hundreds for all frames.

Shapes: I frames, C channels, H hidden size.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activations import gates, instance_norm, load_gate, sigmoid
from .few_rows import load_early, multiply
from .image_weights import CHANNELS, FEW_SPLITS, SIDES, ImageScratch, ImageWeights
from .launch import INTERPRETING, launch_dependents, wait


@triton.jit
def _few_images_first_kernel(
    frames_ptr,  # [I, SIDE_IN^2] int32: the 4 bytes of a pixel
    weight_ptr,  # [9 * 4, C_OUT]
    target_ptrs_ptr,  # [I]
    out_ptr,  # [I, SIDE_OUT^2, C_OUT], normalised
    means_ptr,  # [I, C_OUT] float32
    SIDE_IN: tl.constexpr,
    SIDE_OUT: tl.constexpr,
    C_OUT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    # One program: one output channel of all pixels of a frame.
    PIXELS: tl.constexpr = SIDE_OUT * SIDE_OUT
    frame = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1)
    pixel = tl.arange(0, BLOCK_P)
    launch_dependents(USE_PDL)
    address = tl.load(target_ptrs_ptr + frame)
    weights: tl.tuple = ()
    for k in tl.static_range(36):
        weights += (tl.load(weight_ptr + k * C_OUT + channel).to(tl.float32),)
    wait(USE_PDL)
    if address == 0:
        return

    top = (pixel // SIDE_OUT) * 2 - 1
    left = (pixel % SIDE_OUT) * 2 - 1
    pixel_ptrs = frames_ptr + frame * (SIDE_IN * SIDE_IN) + top * SIDE_IN + left
    taps: tl.tuple = ()
    for tap in tl.static_range(9):
        # With these sides padding is above and to the left.
        mask = pixel < PIXELS
        if tap < 3:
            mask &= top >= 0
        if tap % 3 == 0:
            mask &= left >= 0
        taps += (tl.load(pixel_ptrs + (tap // 3 * SIDE_IN + tap % 3), mask=mask, other=0),)

    # With b the bytes, 2 b / 255 - 1 is what is multiplied, and 0 in padding: sums of w b, and of w outside of padding.
    total = tl.zeros([BLOCK_P], tl.float32)
    at_top, at_left, at_corner, everywhere = 0.0, 0.0, 0.0, 0.0
    for tap in tl.static_range(9):
        weight = 0.0
        for index in tl.static_range(4):
            total += ((taps[tap] >> (8 * index)) & 255).to(tl.float32) * weights[4 * tap + index]
            weight += weights[4 * tap + index]
        everywhere += weight
        if tap < 3:
            at_top += weight
        if tap % 3 == 0:
            at_left += weight
        if tap == 0:
            at_corner = weight
    inside = everywhere - tl.where(top < 0, at_top, 0.0) - tl.where(left < 0, at_left, 0.0)
    inside += tl.where((top < 0) & (left < 0), at_corner, 0.0)
    x = tl.where(pixel < PIXELS, total * (2.0 / 255.0) - inside, 0.0)

    x = instance_norm(x[:, None], (pixel < PIXELS)[:, None], PIXELS)
    tl.store(means_ptr + frame * C_OUT + channel + tl.arange(0, 1), tl.sum(x, 0) / PIXELS)
    out_ptrs = out_ptr + frame * (PIXELS * C_OUT) + pixel[:, None] * C_OUT + channel
    tl.store(out_ptrs, x.to(out_ptr.dtype.element_ty), mask=(pixel < PIXELS)[:, None])


@triton.jit
def _tap(in_ptr, top, left, in_frame, TAP: tl.constexpr, SIDE_IN: tl.constexpr, C_IN: tl.constexpr):
    """Return the input pixels of a frame that a tap of a convolution meets, [pixels, C_IN], 0 outside."""
    y = top + TAP // 3
    x = left + TAP % 3
    mask = in_frame & (y >= 0) & (x >= 0)
    if SIDE_IN % 2 == 1:  # else padding is above and to the left only
        mask &= (y < SIDE_IN) & (x < SIDE_IN)
    pointers = in_ptr + ((y * SIDE_IN + x) * C_IN)[:, None] + tl.arange(0, C_IN)[None, :]
    return tl.load(pointers, mask=mask[:, None], other=0.0)


@triton.jit
def _few_images_conv_kernel(
    in_ptr,  # [I, SIDE_IN^2, C_IN], not gated
    weight_ptr,  # [9 * C_IN, C_OUT]
    means_in_ptr,  # [I, C_IN] float32
    squeeze_in_ptr,  # [C_IN / 8, C_IN] float32
    excite_in_ptr,  # [C_IN, C_IN / 8] float32
    target_ptrs_ptr,  # [I]
    out_ptr,  # [I, SIDE_OUT^2, C_OUT], normalised
    means_ptr,  # [I, C_OUT] float32
    SIDE_IN: tl.constexpr,
    SIDE_OUT: tl.constexpr,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    # One program: BLOCK_C output channels of all pixels of a frame.
    PIXELS: tl.constexpr = SIDE_OUT * SIDE_OUT
    DTYPE: tl.constexpr = out_ptr.dtype.element_ty
    frame = tl.program_id(0).to(tl.int64)
    pixel = tl.arange(0, BLOCK_P)
    channel_in = tl.arange(0, C_IN)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    launch_dependents(USE_PDL)
    address = tl.load(target_ptrs_ptr + frame)
    squeeze_in, excite_in = load_gate(squeeze_in_ptr, excite_in_ptr, C_IN)
    weights: tl.tuple = ()
    for tap in tl.static_range(9):
        weights += (tl.load(weight_ptr + (tap * C_IN + channel_in)[:, None] * C_OUT + channel[None, :]),)
    wait(USE_PDL)
    if address == 0:
        return

    in_frame = pixel < PIXELS
    top = (pixel // SIDE_OUT) * 2 - 1
    left = (pixel % SIDE_OUT) * 2 - 1
    in_ptr += frame * (SIDE_IN * SIDE_IN * C_IN)
    # The inputs of two taps are in flight while one is multiplied. The gates scale the weights.
    values: tl.tuple = (
        _tap(in_ptr, top, left, in_frame, 0, SIDE_IN, C_IN),
        _tap(in_ptr, top, left, in_frame, 1, SIDE_IN, C_IN),
    )
    means_in = tl.load(means_in_ptr + frame * C_IN + channel_in)
    gate_in = gates(means_in, squeeze_in, excite_in)[:, None]
    x = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for tap in tl.static_range(9):
        if tap < 7:
            values += (_tap(in_ptr, top, left, in_frame, tap + 2, SIDE_IN, C_IN),)
        weight = (weights[tap].to(tl.float32) * gate_in).to(DTYPE)
        x = tl.dot(values[tap], weight, x, input_precision="ieee")

    x = instance_norm(x, in_frame[:, None], PIXELS)
    tl.store(means_ptr + frame * C_OUT + channel, tl.sum(x, 0) / PIXELS)
    out_ptr += frame * (PIXELS * C_OUT)
    tl.store(out_ptr + pixel[:, None] * C_OUT + channel[None, :], x.to(DTYPE), mask=in_frame[:, None])


@triton.jit(do_not_specialize=["num_frames"])
def _few_images_fc_kernel(
    x_ptr,  # [num_frames, PIXELS, C], not gated
    weight_ptr,  # [H, PIXELS * C]
    means_ptr,  # [num_frames, C] float32
    squeeze_ptr,  # [C / 8, C] float32
    excite_ptr,  # [C, C / 8] float32
    target_ptrs_ptr,  # [num_frames]
    partial_ptr,  # [grid 1, num_frames, H] float32
    num_frames,
    H: tl.constexpr,
    PIXELS: tl.constexpr,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    # One program: BLOCK_N outputs of all frames, BLOCK_P pixels. All weights are loaded before the wait.
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    pixel = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    frames = tl.arange(0, BLOCK_M)
    c, j = tl.arange(0, C), tl.arange(0, C // 8)
    launch_dependents(USE_PDL)
    address = tl.load(target_ptrs_ptr + frames, mask=frames < num_frames, other=0)
    offset = columns[None, None, :] * (PIXELS * C) + pixel[:, None, None] * C + c[None, :, None]
    mask = (columns < H)[None, None, :] & (pixel < PIXELS)[:, None, None]
    weights = load_early(weight_ptr, offset, mask, DTYPE)
    squeeze = tl.load(squeeze_ptr + j[None, :] * C + c[:, None]).to(DTYPE)
    excite = tl.load(excite_ptr + c[None, :] * (C // 8) + j[:, None]).to(DTYPE)
    wait(USE_PDL)

    is_frame = address != 0
    places = frames.to(tl.int64)[None, :, None] * (PIXELS * C) + pixel[:, None, None] * C + c[None, None, :]
    x = tl.load(x_ptr + places, mask=is_frame[None, :, None] & (pixel < PIXELS)[:, None, None], other=0.0)
    means = tl.load(means_ptr + frames[:, None] * C + c[None, :], mask=is_frame[:, None], other=0.0)
    inner = tl.maximum(tl.dot(means.to(DTYPE), squeeze, input_precision="ieee"), 0.0)
    gate = sigmoid(tl.dot(inner.to(DTYPE), excite, input_precision="ieee"))
    acc = multiply((x.to(tl.float32) * gate[None, :, :]).to(DTYPE), weights, DTYPE)
    out_ptr = partial_ptr + (tl.program_id(1) * num_frames + frames)[:, None] * H + columns[None, :]
    tl.store(out_ptr, acc, mask=is_frame[:, None] & (columns < H)[None, :])


def few_images_partial(
    frames: Tensor, target_ptrs: Tensor, weights: ImageWeights, scratch: ImageScratch, *, pdl: bool
) -> int:
    """Write partial sums of the last layer to scratch.partial, [splits, I, H]; return how many.

    Args:
        frames: as `encode_images` checks them, and all that follow; at most FEW_FRAMES, in half precision.
        target_ptrs: 0 for frames that are skipped.
        weights: of the encoder.
        scratch: overwritten.
        pdl: whether kernels start while the one before still runs.
    """
    count, hidden = frames.shape[0], weights.fc.shape[0]
    one, two, three = (SIDES[stage] ** 2 for stage in (1, 2, 3))
    first, second, third = weights.stages
    activations, means = scratch.activations, scratch.means
    columns, warps = (8, (1, 1, 1)) if INTERPRETING else (16, (16, 16, 8))

    _few_images_first_kernel[(count, CHANNELS[1])](
        frames.view(torch.int32), first.conv, target_ptrs, activations[0], means[0],
        SIDE_IN=SIDES[0], SIDE_OUT=SIDES[1], C_OUT=CHANNELS[1], BLOCK_P=triton.next_power_of_2(one),
        USE_PDL=pdl, num_warps=warps[0], launch_pdl=pdl,
    )  # fmt: skip
    for index, before, stage, pixels in ((1, first, second, two), (2, second, third, three)):
        _few_images_conv_kernel[(count, CHANNELS[index + 1] // columns)](
            activations[index - 1], stage.conv, means[index - 1], before.squeeze, before.excite, target_ptrs,
            activations[index], means[index],
            SIDE_IN=SIDES[index], SIDE_OUT=SIDES[index + 1], C_IN=CHANNELS[index], C_OUT=CHANNELS[index + 1],
            BLOCK_P=triton.next_power_of_2(pixels), BLOCK_C=columns,
            USE_PDL=pdl, num_warps=warps[index], num_stages=1, launch_pdl=pdl,
        )  # fmt: skip

    block_p = -(-three // FEW_SPLITS)
    splits = -(-three // block_p)
    block_n = min(64, triton.next_power_of_2(hidden)) if INTERPRETING else 16
    _few_images_fc_kernel[(triton.cdiv(hidden, block_n), splits)](
        activations[2], weights.fc, means[2], third.squeeze, third.excite, target_ptrs, scratch.partial, count,
        H=hidden, PIXELS=three, C=CHANNELS[3], BLOCK_M=4 if count <= 4 else 16, BLOCK_N=block_n, BLOCK_P=block_p,
        USE_PDL=pdl, num_warps=1 if INTERPRETING else 4, launch_pdl=pdl,
    )  # fmt: skip
    return splits
