"""LayerNorm: its statistics, for kernels that normalise as they load, and a separate kernel.

out = (x - mean) / sqrt(variance + epsilon) * weight + bias, `jat_engine.reference.layer_norm`

With few rows, every program of a product normalises the rows it loads, which saves a launch. With many rows, that would
read x in float32 three times per block of outputs, so the separate kernel normalises them once.

Shapes: R rows, H hidden size.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference import LAYER_NORM_EPSILON
from .launch import INTERPRETING, KV_DTYPES, check, check_dimensions, launch_and_wait

_EPSILON = tl.constexpr(LAYER_NORM_EPSILON)


@triton.jit
def layer_norm_statistics(x_ptr, rows, num_rows, H: tl.constexpr, BLOCK_H: tl.constexpr):
    """Return mean and 1 / sqrt(variance + epsilon), both [BLOCK_M], of the rows `rows` of x [num_rows, H].

    A second pass computes the variance of the centred values. BLOCK_H may be smaller than H.
    """
    in_rows = (rows < num_rows)[:, None]
    total = tl.zeros([rows.shape[0]], tl.float32)
    for start in range(0, H, BLOCK_H):
        column = start + tl.arange(0, BLOCK_H)[None, :]
        x = tl.load(x_ptr + rows[:, None] * H + column, mask=in_rows & (column < H), other=0.0)
        total += tl.sum(x, 1)
    mean = total / H
    total = tl.zeros([rows.shape[0]], tl.float32)
    for start in range(0, H, BLOCK_H):
        column = start + tl.arange(0, BLOCK_H)[None, :]
        x = tl.load(x_ptr + rows[:, None] * H + column, mask=in_rows & (column < H), other=0.0)
        centred = tl.where(column < H, x - mean[:, None], 0.0)
        total += tl.sum(centred * centred, 1)
    # A variance that overflowed would make every row its bias, finite and wrong: 0 * inf makes it NaN.
    return mean, tl.rsqrt(total / H + _EPSILON) + 0.0 * total


@triton.jit(do_not_specialize=["num_rows"])
def _layer_norm_kernel(
    x_ptr,  # [num_rows, H] float32
    weight_ptr,  # [H]
    bias_ptr,  # [H]
    out_ptr,  # [num_rows, H]
    num_rows,
    H: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    # One program: BLOCK_M rows.
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    launch_and_wait(USE_PDL)

    mean, rstd = layer_norm_statistics(x_ptr, rows, num_rows, H, BLOCK_H)
    for start in range(0, H, BLOCK_H):
        column = start + tl.arange(0, BLOCK_H)
        mask = (rows < num_rows)[:, None] & (column < H)[None, :]
        place = rows.to(tl.int64)[:, None] * H + column[None, :]
        centred = tl.load(x_ptr + place, mask=mask, other=0.0) - mean[:, None]
        weight = tl.load(weight_ptr + column, mask=column < H, other=0.0)[None, :]
        bias = tl.load(bias_ptr + column, mask=column < H, other=0.0)[None, :]
        tl.store(out_ptr + place, centred * rstd[:, None] * weight + bias, mask=mask)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, *, pdl: bool = False) -> None:
    """Compute out = LN(x).

    Args:
        x: [R, H], float32.
        weight: [H], float32.
        bias: [H], float32.
        out: [R, H], float32, bfloat16 or float16; written.
        pdl: programmatic dependent launch, see `launch` (sm_90 or later).

    Raises:
        ValueError: an argument has another shape, dtype or device than above, or is not contiguous.
    """
    check_dimensions("x", x, 2)
    (rows, hidden), device = x.shape, x.device
    check("x", x, (rows, hidden), torch.float32, device)
    check("weight", weight, (hidden,), torch.float32, device)
    check("bias", bias, (hidden,), torch.float32, device)
    check("out", out, (rows, hidden), KV_DTYPES, device)
    block_m = 16 if INTERPRETING else 4
    _layer_norm_kernel[(triton.cdiv(rows, block_m),)](
        x, weight, bias, out, rows,
        H=hidden, BLOCK_M=block_m, BLOCK_H=min(1024, triton.next_power_of_2(hidden)), USE_PDL=pdl,
        num_warps=4, launch_pdl=pdl,
    )  # fmt: skip
