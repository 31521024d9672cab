"""Embeddings of frames [84, 84, 4], uint8.

x = (frame / 255 - 0.5) / 0.5
three times: x = gate(leaky_relu(InstanceNorm(conv3x3, stride 2, padding 1 (x))))
gate(x) = x * sigmoid(excite relu(squeeze mean_pixels(x))), one factor per channel
row = fc(x)

InstanceNorm has no weights, epsilon 1e-5 and the biased variance over a frame's pixels; leaky_relu's slope is 0.01.

A convolution is an implicit product [pixels, taps * channels] x [taps * channels, outputs] in the compute dtype of the
weights (float32 in float32 engines), accumulated in float32; activations are kept in that dtype, channels last. In half
precision a program computes stages 2 and 3 of a whole frame and normalises them in registers: six launches in all.
Stage 1, whose frame is too large for that, and every stage in float32, whose products are spread over more programs,
are normalised by a second kernel, one program per frame. The last layer is products over ranges of columns, and their
sum in a fixed order. The row of frame i is written to the address target_ptrs[i]; 0 marks padding, which is skipped.

Up to MAX_CHUNK frames run at a time, so that scratch memory does not grow with the batch and activations stay in the
L2 cache between kernels.

Shapes: I frames, C channels, H hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from .activations import sigmoid
from .few_rows import load_early, multiply
from .image_weights import (
    CHANNELS,
    FEATURES,
    FEW_FRAMES,
    FRAME,
    MAX_CHUNK,
    SIDES,
    SPLITS,
    ImageScratch,
    ImageWeights,
    Stage,
    make_image_scratch,
    num_partial,
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
    launch_dependents,
    wait,
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
def _load_gate(squeeze_ptr, excite_ptr, C: tl.constexpr):
    """Return the weights of a gate, squeeze [C / 8, C] and excite [C, C / 8]."""
    c, j = tl.arange(0, C), tl.arange(0, C // 8)
    return tl.load(squeeze_ptr + j[:, None] * C + c[None, :]), tl.load(excite_ptr + c[:, None] * (C // 8) + j[None, :])


@triton.jit
def _gate(means, squeeze, excite):
    """Return a frame's gates, sigmoid(excite relu(squeeze means)), from the channels' means; float32 [C]."""
    inner = tl.maximum(tl.sum(squeeze * means[None, :], 1), 0.0)
    return sigmoid(tl.sum(excite * inner[None, :], 1))


@triton.jit
def _normalise(x, in_frame, PIXELS: tl.constexpr):
    """Return leaky_relu(InstanceNorm(x)) of a whole frame, float32 [pixels, C].

    in_frame: [pixels, 1]; where it is false x is 0.
    """
    mean = tl.sum(x, 0) / PIXELS
    x = tl.where(in_frame, x - mean[None, :], 0.0)
    x *= tl.rsqrt(tl.sum(x * x, 0) / PIXELS + _NORM_EPSILON)[None, :]
    return tl.maximum(x, 0.01 * x)


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
def _image_first_kernel(
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

    x = _normalise(x[:, None], (pixel < PIXELS)[:, None], PIXELS)
    tl.store(means_ptr + frame * C_OUT + channel + tl.arange(0, 1), tl.sum(x, 0) / PIXELS)
    out_ptrs = out_ptr + frame * (PIXELS * C_OUT) + pixel[:, None] * C_OUT + channel
    tl.store(out_ptrs, x.to(out_ptr.dtype.element_ty), mask=(pixel < PIXELS)[:, None])


@triton.jit
def _image_conv_kernel(
    in_ptr,  # [I, SIDE_IN^2, C_IN], uint8 frames with FIRST, else DTYPE
    weight_ptr,  # [9 * C_IN, C_OUT] DTYPE
    means_in_ptr,  # [I, C_IN] float32, with GATE_IN
    squeeze_in_ptr,  # [C_IN / 8, C_IN] float32, with GATE_IN
    excite_in_ptr,  # [C_IN, C_IN / 8] float32, with GATE_IN
    squeeze_ptr,  # [C_OUT / 8, C_OUT] float32, with GATE_OUT
    excite_ptr,  # [C_OUT, C_OUT / 8] float32, with GATE_OUT
    target_ptrs_ptr,  # [I]
    out_ptr,  # [I, SIDE_OUT^2, C_OUT] DTYPE; normalised with NORM, gated with GATE_OUT
    means_ptr,  # [I, C_OUT] float32, written with NORM and not GATE_OUT
    SIDE_IN: tl.constexpr,
    SIDE_OUT: tl.constexpr,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    FIRST: tl.constexpr,
    GATE_IN: tl.constexpr,
    NORM: tl.constexpr,
    GATE_OUT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    # One program: BLOCK_P output pixels of one frame, BLOCK_C of the output channels; with NORM all pixels, with
    # GATE_OUT all of both.
    PIXELS: tl.constexpr = SIDE_OUT * SIDE_OUT
    DTYPE: tl.constexpr = out_ptr.dtype.element_ty
    frame = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    launch_dependents(USE_PDL)
    address = tl.load(target_ptrs_ptr + frame)
    if GATE_IN:
        squeeze_in, excite_in = _load_gate(squeeze_in_ptr, excite_in_ptr, C_IN)
        weights: tl.tuple = ()
        for tap in tl.static_range(9):
            k = tap * C_IN + tl.arange(0, C_IN)
            weights += (tl.load(weight_ptr + k[:, None] * C_OUT + channel[None, :]),)
    wait(USE_PDL)
    if address == 0:
        return

    in_frame = pixel < PIXELS
    top = (pixel // SIDE_OUT) * 2 - 1
    left = (pixel % SIDE_OUT) * 2 - 1
    in_ptr += frame * (SIDE_IN * SIDE_IN * C_IN)
    acc = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    if FIRST:
        # 3 neighbouring pixels of a row are 12 contiguous bytes. With these sides padding is above and to the left.
        k = tl.arange(0, 16)
        for row in tl.static_range(3):
            y = top + row
            mask = (in_frame & (y >= 0))[:, None] & (left[:, None] + (k // C_IN)[None, :] >= 0)
            mask &= (k < 3 * C_IN)[None, :]
            byte = tl.load(in_ptr + ((y * SIDE_IN + left) * C_IN)[:, None] + k[None, :], mask=mask, other=0)
            # 255 times the normalised value: an integer, exact in every dtype. Padding is 0 after normalising.
            value = tl.where(mask, byte.to(tl.float32) * 2.0 - 255.0, 0.0).to(DTYPE)
            rows = (row * 3 * C_IN + k)[:, None]
            weight = tl.load(weight_ptr + rows * C_OUT + channel[None, :], mask=(k < 3 * C_IN)[:, None], other=0.0)
            acc = tl.dot(value, weight, acc, input_precision="ieee")
        acc *= 1.0 / 255.0
    elif GATE_IN:
        # The inputs of two taps are in flight while one is multiplied. The gates scale the weights.
        tl.static_assert(BLOCK_K == C_IN)
        values: tl.tuple = (
            _tap(in_ptr, top, left, in_frame, 0, SIDE_IN, C_IN),
            _tap(in_ptr, top, left, in_frame, 1, SIDE_IN, C_IN),
        )
        means_in = tl.load(means_in_ptr + frame * C_IN + tl.arange(0, C_IN))
        gate_in = _gate(means_in, squeeze_in, excite_in)[:, None]
        for tap in tl.static_range(9):
            if tap < 7:
                values += (_tap(in_ptr, top, left, in_frame, tap + 2, SIDE_IN, C_IN),)
            weight = (weights[tap].to(tl.float32) * gate_in).to(DTYPE)
            acc = tl.dot(values[tap], weight, acc, input_precision="ieee")
    else:
        weight_ptrs = weight_ptr + tl.arange(0, BLOCK_K)[:, None] * C_OUT + channel[None, :]
        for start in range(0, 9 * C_IN, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            tap = start // C_IN
            y = top + tap // 3
            x = left + tap % 3
            mask = in_frame & (y >= 0) & (x >= 0)
            if SIDE_IN % 2 == 1:  # else padding is above and to the left only
                mask &= (y < SIDE_IN) & (x < SIDE_IN)
            at = (y * SIDE_IN + x - tap) * C_IN
            value = tl.load(in_ptr + at[:, None] + k[None, :], mask=mask[:, None], other=0.0)
            weight = tl.load(weight_ptrs + start * C_OUT)
            acc = tl.dot(value, weight, acc, input_precision="ieee")

    if NORM:
        acc = _normalise(acc, in_frame[:, None], PIXELS)
        means = tl.sum(acc, 0) / PIXELS
        if GATE_OUT:  # a large tile, which leaves no registers to load them early
            squeeze, excite = _load_gate(squeeze_ptr, excite_ptr, C_OUT)
            acc *= _gate(means, squeeze, excite)[None, :]
        else:
            tl.store(means_ptr + frame * C_OUT + channel, means)
    out_ptr += frame * (PIXELS * C_OUT)
    tl.store(out_ptr + pixel[:, None] * C_OUT + channel[None, :], acc.to(DTYPE), mask=in_frame[:, None])


@triton.jit
def _image_norm_kernel(
    x_ptr,  # [I, PIXELS, C], replaced by gate(leaky_relu(InstanceNorm(x)))
    squeeze_ptr,  # [C / 8, C] float32
    excite_ptr,  # [C, C / 8] float32
    target_ptrs_ptr,  # [I]
    PIXELS: tl.constexpr,
    C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    # One program: one frame, which is read once: unrolled, the loops share what they load.
    frame = tl.program_id(0).to(tl.int64)
    launch_dependents(USE_PDL)
    address = tl.load(target_ptrs_ptr + frame)
    wait(USE_PDL)
    if address == 0:
        return

    pixel = tl.arange(0, BLOCK_P)
    x_ptrs = x_ptr + frame * (PIXELS * C) + pixel[:, None] * C + tl.arange(0, C)[None, :]

    # Sums of deviations from the mean of the first pixels, which is near enough to the mean of all to cancel little.
    x = tl.load(x_ptrs, mask=(pixel < PIXELS)[:, None], other=0.0).to(tl.float32)
    shift = tl.sum(x, 0)[None, :] / min(BLOCK_P, PIXELS)
    total = tl.zeros([BLOCK_P, C], tl.float32)
    squares = tl.zeros([BLOCK_P, C], tl.float32)
    for start in tl.static_range(0, PIXELS, BLOCK_P):
        mask = (start + pixel < PIXELS)[:, None]
        x = tl.load(x_ptrs + start * C, mask=mask, other=0.0).to(tl.float32)
        x -= shift
        if start + BLOCK_P > PIXELS:
            x = tl.where(mask, x, 0.0)
        total += x
        squares += x * x
    rest = tl.sum(total, 0)[None, :] / PIXELS
    rstd = tl.rsqrt(tl.maximum(tl.sum(squares, 0)[None, :] / PIXELS - rest * rest, 0.0) + _NORM_EPSILON)
    offset = -(shift + rest) * rstd

    squeeze, excite = _load_gate(squeeze_ptr, excite_ptr, C)
    total = tl.zeros([BLOCK_P, C], tl.float32)
    for start in tl.static_range(0, PIXELS, BLOCK_P):
        mask = (start + pixel < PIXELS)[:, None]
        x = tl.fma(tl.load(x_ptrs + start * C, mask=mask, other=0.0).to(tl.float32), rstd, offset)
        x = tl.maximum(x, 0.01 * x)
        if start + BLOCK_P > PIXELS:
            x = tl.where(mask, x, 0.0)
        total += x
    gate = _gate(tl.sum(total, 0) / PIXELS, squeeze, excite)[None, :]

    for start in tl.static_range(0, PIXELS, BLOCK_P):
        mask = (start + pixel < PIXELS)[:, None]
        x = tl.fma(tl.load(x_ptrs + start * C, mask=mask, other=0.0).to(tl.float32), rstd, offset)
        x = tl.maximum(x, 0.01 * x) * gate
        tl.store(x_ptrs + start * C, x.to(x_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_frames"])
def _image_fc_kernel(
    x_ptr,  # [num_frames, K]
    weight_ptr,  # [H, K]
    target_ptrs_ptr,  # [num_frames]
    partial_ptr,  # [grid 1, num_frames, H] float32
    num_frames,
    H: tl.constexpr,
    K: tl.constexpr,
    K_A_SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    # One program: BLOCK_N outputs of BLOCK_M frames, one range of inputs.
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(1) * K_A_SPLIT
    frames = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    launch_and_wait(USE_PDL)

    address = tl.load(target_ptrs_ptr + frames, mask=frames < num_frames, other=0)
    is_frame = (address != 0)[:, None]
    in_columns = (columns < H)[None, :]
    x_ptrs = x_ptr + frames.to(tl.int64)[:, None] * K + first
    weight_ptrs = weight_ptr + columns[None, :] * K + first
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, K_A_SPLIT, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptrs + k[None, :], mask=is_frame, other=0.0)
        w = tl.load(weight_ptrs + k[:, None], mask=in_columns, other=0.0)
        acc = tl.dot(x, w.to(x.dtype), acc, input_precision="ieee")

    out_ptr = partial_ptr + (tl.program_id(1) * num_frames + frames)[:, None] * H + columns[None, :]
    tl.store(out_ptr, acc, mask=is_frame & in_columns)


@triton.jit(do_not_specialize=["num_frames"])
def _image_few_fc_kernel(
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
    launch_dependents(USE_PDL)
    address = tl.load(target_ptrs_ptr + frame)
    scale, bias = tl.full([BLOCK], 1.0, tl.float32), tl.load(bias_ptr + column, mask=mask, other=0.0)
    if scale_ptr is not None:
        scale = tl.load(scale_ptr + column, mask=mask, other=0.0)
    wait(USE_PDL)
    if address == 0:
        return

    total = tl.zeros([BLOCK], tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(partial_ptr + (split * num_frames + frame) * H + column, mask=mask, other=0.0)
    total = total * scale + bias
    tl.store(address.to(tl.pointer_type(tl.float32)) + column, total, mask=mask)


class _Tile(NamedTuple):
    """Launch parameters of a product: rows, columns and depth of a tile, warps, stages of the software pipeline."""

    rows: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int


_FRAME_TILES = (_Tile(128, 32, 16, 4, 1), _Tile(512, 64, 32, 8, 3), _Tile(128, 128, 64, 8, 3))
"""Of the convolutions in half precision: stages 2 and 3 take whole frames."""

_FEW_FRAMES_TILES = (_Tile(2048, 1, 0, 16, 1), _Tile(512, 16, 32, 16, 1), _Tile(128, 16, 64, 8, 1))
"""The same for up to FEW_FRAMES frames, whose channels are shared among programs that see all pixels. The gates of a
stage need the means of all channels: the next kernel computes them. A depth of 0: one channel a program, without tensor
cores."""

_FLOAT32_TILES = (_Tile(32, 32, 16, 4, 1), _Tile(32, 32, 32, 4, 3), _Tile(16, 32, 64, 4, 3))

_FEW_FC_TILES = ((4, _Tile(4, 16, 8, 4, 1)), (FEW_FRAMES, _Tile(16, 16, 8, 4, 1)))
"""Of the last layer for up to so many frames: rows, columns, pixels."""


def _conv_tiles(frames: int, half: bool) -> tuple[_Tile, _Tile, _Tile]:
    if INTERPRETING:
        few = half and frames <= FEW_FRAMES
        first, second, third = (
            _Tile(triton.next_power_of_2(side**2), (8 if depth else 1) if few else channels, depth, 1, 1)
            for side, channels, depth in zip(SIDES[1:], CHANNELS[1:], (0 if few else 4, *CHANNELS[1:]), strict=False)
        )
        return first, second, third
    if not half:
        return _FLOAT32_TILES
    return _FEW_FRAMES_TILES if frames <= FEW_FRAMES else _FRAME_TILES


def _fc_tile(frames: int, hidden: int, half: bool) -> _Tile:
    """Return the last layer's tile: few frames are spread over many programs, since they wait for the weights."""
    if INTERPRETING:
        return _Tile(16, min(512, triton.next_power_of_2(hidden)), CHANNELS[3], 1, 1)
    if frames <= FEW_FRAMES or not half:
        return _Tile(16, 16, CHANNELS[3], 4, 3)
    if frames <= 64:
        return _Tile(64, 64, 64, 4, 4)
    return _Tile(128, 64 if frames <= 128 else 128, 64, 8, 3)


def encode_images(
    frames: Tensor, target_ptrs: Tensor, weights: ImageWeights, scratch: ImageScratch, *, pdl: bool = False
) -> None:
    """Write the embeddings of I frames to their addresses.

    Args:
        frames: [I, 84, 84, 4], uint8.
        target_ptrs: [I], int64 device addresses of float32 [H]; written. 0 for padding.
        weights: from `pack_image_weights`.
        scratch: from `make_image_scratch`, for at least I frames; overwritten.
        pdl: programmatic dependent launch, see `launch` (sm_90 or later).

    Raises:
        ValueError: an argument has another shape, dtype or device than above, or is not contiguous.
    """
    check_dimensions("frames", frames, 4)
    check_dimensions("weights.fc", weights.fc, 2)
    count, hidden, device = frames.shape[0], weights.fc.shape[0], frames.device
    dtype = compute_dtype(weights.fc.dtype)
    room = scratch.activations[0].shape[0]

    check("frames", frames, (count, *FRAME), torch.uint8, device)
    check("target_ptrs", target_ptrs, (count,), torch.int64, device)
    check("weights.fc", weights.fc, (hidden, FEATURES), WEIGHT_DTYPES, device)
    check_scale(weights.fc, weights.scale, hidden)
    check("weights.bias", weights.bias, (hidden,), torch.float32, device)
    for index, stage in enumerate(weights.stages):
        before, channels, pixels = CHANNELS[index], CHANNELS[index + 1], SIDES[index + 1] ** 2
        check(f"weights.stages[{index}].conv", stage.conv, (9 * before, channels), dtype, device)
        check(f"weights.stages[{index}].squeeze", stage.squeeze, (channels // 8, channels), torch.float32, device)
        check(f"weights.stages[{index}].excite", stage.excite, (channels, channels // 8), torch.float32, device)
        check(f"scratch.activations[{index}]", scratch.activations[index], (room, pixels, channels), dtype, device)
        check(f"scratch.means[{index}]", scratch.means[index], (room, channels), torch.float32, device)
    check("scratch.partial", scratch.partial, (num_partial(room) * hidden,), torch.float32, device)
    if room < min(count, MAX_CHUNK):
        raise ValueError(f"scratch: expected room for {min(count, MAX_CHUNK)} frames, got {room}")

    for chunk, targets in zip(frames.split(MAX_CHUNK), target_ptrs.split(MAX_CHUNK), strict=True):
        _encode_chunk(chunk, targets, weights, scratch, pdl)


def _encode_chunk(frames: Tensor, target_ptrs: Tensor, weights: ImageWeights, scratch: ImageScratch, pdl: bool) -> None:
    count, hidden = frames.shape[0], weights.fc.shape[0]
    half = weights.stages[0].conv.dtype != torch.float32
    x = frames
    means_in = squeeze_in = excite_in = None
    for index, (stage, tile) in enumerate(zip(weights.stages, _conv_tiles(count, half), strict=True)):
        pixels, channels, out = SIDES[index + 1] ** 2, CHANNELS[index + 1], scratch.activations[index]
        has_pixels = half and tile.rows >= pixels
        gates_out = has_pixels and tile.columns == channels
        means = scratch.means[index] if has_pixels and not gates_out else None
        squeeze, excite = (stage.squeeze, stage.excite) if gates_out else (None, None)
        if not tile.depth:
            _image_first_kernel[(count, channels)](
                x.view(torch.int32), stage.conv, target_ptrs, out, means,
                SIDE_IN=SIDES[0], SIDE_OUT=SIDES[1], C_OUT=channels, BLOCK_P=tile.rows,
                USE_PDL=pdl, num_warps=tile.num_warps, launch_pdl=pdl,
            )  # fmt: skip
            x, means_in, squeeze_in, excite_in = out, means, stage.squeeze, stage.excite
            continue
        _image_conv_kernel[(count, triton.cdiv(pixels, tile.rows), channels // tile.columns)](
            x, stage.conv, means_in, squeeze_in, excite_in, squeeze, excite, target_ptrs, out, means,
            SIDE_IN=SIDES[index], SIDE_OUT=SIDES[index + 1], C_IN=CHANNELS[index], C_OUT=channels, FIRST=index == 0,
            GATE_IN=means_in is not None, NORM=has_pixels, GATE_OUT=gates_out,
            BLOCK_P=tile.rows, BLOCK_C=tile.columns, BLOCK_K=tile.depth,
            USE_PDL=pdl, num_warps=tile.num_warps, num_stages=tile.num_stages, launch_pdl=pdl,
        )  # fmt: skip
        if not has_pixels:
            _image_norm_kernel[(count,)](
                out, stage.squeeze, stage.excite, target_ptrs,
                PIXELS=pixels, C=channels, BLOCK_P=2048 // channels, USE_PDL=pdl, num_warps=16, launch_pdl=pdl,
            )  # fmt: skip
        x, means_in = out, means
        squeeze_in, excite_in = (stage.squeeze, stage.excite) if means is not None else (None, None)

    splits = SPLITS
    if means_in is not None:
        tile = next(tile for most, tile in _FEW_FC_TILES if count <= most)
        splits = triton.cdiv(SIDES[3] ** 2, tile.depth)
        _image_few_fc_kernel[(triton.cdiv(hidden, tile.columns), splits)](
            x, weights.fc, means_in, squeeze_in, excite_in, target_ptrs, scratch.partial, count,
            H=hidden, PIXELS=SIDES[3] ** 2, C=CHANNELS[3], BLOCK_M=tile.rows, BLOCK_N=tile.columns, BLOCK_P=tile.depth,
            USE_PDL=pdl, num_warps=tile.num_warps, launch_pdl=pdl,
        )  # fmt: skip
    else:
        tile = _fc_tile(count, hidden, half)
        _image_fc_kernel[(triton.cdiv(hidden, tile.columns), SPLITS, triton.cdiv(count, tile.rows))](
            x, weights.fc, target_ptrs, scratch.partial, count,
            H=hidden, K=FEATURES, K_A_SPLIT=FEATURES // SPLITS,
            BLOCK_M=tile.rows, BLOCK_N=tile.columns, BLOCK_K=tile.depth, USE_PDL=pdl,
            num_warps=tile.num_warps, num_stages=tile.num_stages, launch_pdl=pdl,
        )  # fmt: skip
    block = triton.next_power_of_2(hidden) if INTERPRETING else 256
    _image_sum_kernel[(count, triton.cdiv(hidden, block))](
        scratch.partial, weights.scale, weights.bias, target_ptrs, count,
        H=hidden, SPLITS=splits, BLOCK=block, USE_PDL=pdl, num_warps=4, launch_pdl=pdl,
    )  # fmt: skip
