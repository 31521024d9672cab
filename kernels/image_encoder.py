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
sum in a fixed order. Few frames in half precision have kernels of their own, few_images.py. The row of frame i is
written to the address target_ptrs[i]; 0 marks padding, which is skipped.

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

from .activations import gates, instance_norm, load_gate
from .few_images import few_images_partial
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
def _image_conv_kernel(
    in_ptr,  # [I, SIDE_IN^2, C_IN], uint8 frames with FIRST, else DTYPE
    weight_ptr,  # [9 * C_IN, C_OUT] DTYPE
    squeeze_ptr,  # [C_OUT / 8, C_OUT] float32, with NORM
    excite_ptr,  # [C_OUT, C_OUT / 8] float32, with NORM
    target_ptrs_ptr,  # [I]
    out_ptr,  # [I, SIDE_OUT^2, C_OUT] DTYPE; normalised and gated with NORM
    SIDE_IN: tl.constexpr,
    SIDE_OUT: tl.constexpr,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    FIRST: tl.constexpr,
    NORM: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    # One program: BLOCK_P output pixels of one frame, BLOCK_C of the output channels; with NORM all of both.
    PIXELS: tl.constexpr = SIDE_OUT * SIDE_OUT
    DTYPE: tl.constexpr = out_ptr.dtype.element_ty
    frame = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    launch_dependents(USE_PDL)
    address = tl.load(target_ptrs_ptr + frame)
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
        acc = instance_norm(acc, in_frame[:, None], PIXELS)
        squeeze, excite = load_gate(squeeze_ptr, excite_ptr, C_OUT)
        acc *= gates(tl.sum(acc, 0) / PIXELS, squeeze, excite)[None, :]
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

    squeeze, excite = load_gate(squeeze_ptr, excite_ptr, C)
    total = tl.zeros([BLOCK_P, C], tl.float32)
    for start in tl.static_range(0, PIXELS, BLOCK_P):
        mask = (start + pixel < PIXELS)[:, None]
        x = tl.fma(tl.load(x_ptrs + start * C, mask=mask, other=0.0).to(tl.float32), rstd, offset)
        x = tl.maximum(x, 0.01 * x)
        if start + BLOCK_P > PIXELS:
            x = tl.where(mask, x, 0.0)
        total += x
    gate = gates(tl.sum(total, 0) / PIXELS, squeeze, excite)[None, :]

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

_FLOAT32_TILES = (_Tile(32, 32, 16, 4, 1), _Tile(32, 32, 32, 4, 3), _Tile(16, 32, 64, 4, 3))


def _conv_tile(stage: int, half: bool) -> _Tile:
    if INTERPRETING:
        return _Tile(triton.next_power_of_2(SIDES[stage + 1] ** 2), CHANNELS[stage + 1], CHANNELS[stage], 1, 1)
    return (_FRAME_TILES if half else _FLOAT32_TILES)[stage]


def _fc_tile(frames: int, hidden: int, half: bool) -> _Tile:
    """Return the last layer's tile."""
    if INTERPRETING:
        return _Tile(16, min(512, triton.next_power_of_2(hidden)), CHANNELS[3], 1, 1)
    if not half:
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
    if half and count <= FEW_FRAMES:
        splits = few_images_partial(frames, target_ptrs, weights, scratch, pdl=pdl)
    else:
        splits = _partial(frames, target_ptrs, weights, scratch, half, pdl)

    block = triton.next_power_of_2(hidden) if INTERPRETING else 256
    _image_sum_kernel[(count, triton.cdiv(hidden, block))](
        scratch.partial, weights.scale, weights.bias, target_ptrs, count,
        H=hidden, SPLITS=splits, BLOCK=block, USE_PDL=pdl, num_warps=4, launch_pdl=pdl,
    )  # fmt: skip


def _partial(
    frames: Tensor, target_ptrs: Tensor, weights: ImageWeights, scratch: ImageScratch, half: bool, pdl: bool
) -> int:
    """Write partial sums of the last layer, [splits, I, H]; return how many."""
    count, hidden = frames.shape[0], weights.fc.shape[0]
    x = frames
    for index, stage in enumerate(weights.stages):
        pixels, channels, out = SIDES[index + 1] ** 2, CHANNELS[index + 1], scratch.activations[index]
        tile = _conv_tile(index, half)
        in_registers = half and index > 0
        _image_conv_kernel[(count, triton.cdiv(pixels, tile.rows), channels // tile.columns)](
            x, stage.conv, stage.squeeze, stage.excite, target_ptrs, out,
            SIDE_IN=SIDES[index], SIDE_OUT=SIDES[index + 1], C_IN=CHANNELS[index], C_OUT=channels, FIRST=index == 0,
            NORM=in_registers, BLOCK_P=tile.rows, BLOCK_C=tile.columns, BLOCK_K=tile.depth,
            USE_PDL=pdl, num_warps=tile.num_warps, num_stages=tile.num_stages, launch_pdl=pdl,
        )  # fmt: skip
        if not in_registers:
            _image_norm_kernel[(count,)](
                out, stage.squeeze, stage.excite, target_ptrs,
                PIXELS=pixels, C=channels, BLOCK_P=2048 // channels, USE_PDL=pdl, num_warps=16, launch_pdl=pdl,
            )  # fmt: skip
        x = out

    tile = _fc_tile(count, hidden, half)
    _image_fc_kernel[(triton.cdiv(hidden, tile.columns), SPLITS, triton.cdiv(count, tile.rows))](
        x, weights.fc, target_ptrs, scratch.partial, count,
        H=hidden, K=FEATURES, K_A_SPLIT=FEATURES // SPLITS,
        BLOCK_M=tile.rows, BLOCK_N=tile.columns, BLOCK_K=tile.depth, USE_PDL=pdl,
        num_warps=tile.num_warps, num_stages=tile.num_stages, launch_pdl=pdl,
    )  # fmt: skip
    return SPLITS
