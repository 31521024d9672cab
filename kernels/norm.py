"""LayerNorm.

out = (x - mean) / sqrt(variance + epsilon) * weight + bias, `jat_engine.reference.layer_norm`

The kernel also adds, in fixed order, the partial sums that a linear layer left whose inputs several programs share.
Products that normalise the rows they load would save its launch, and were slower with one agent: every program needs
the code and the registers for it.

Shapes: R rows, H hidden size.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference import LAYER_NORM_EPSILON
from .launch import INTERPRETING, KV_DTYPES, check, check_dimensions, launch_dependents, wait

_EPSILON = tl.constexpr(LAYER_NORM_EPSILON)
_SHARED_FROM_ROWS = 8 if INTERPRETING else 1024


@triton.jit
def normalised_row(x, weight, bias, in_row, H: tl.constexpr):
    """Return LN(x) of rows that lie in registers, [..., BLOCK_H]; `in_row` marks the H elements of a row."""
    centred = tl.where(in_row, x - tl.sum(x, -1, keep_dims=True) / H, 0.0)
    total = tl.sum(centred * centred, -1, keep_dims=True)
    # A variance that overflowed would make every row its bias, finite and wrong: 0 * inf makes it NaN.
    rstd = tl.rsqrt(total / H + _EPSILON) + 0.0 * total
    return centred * rstd * weight + bias


@triton.jit(do_not_specialize=["num_rows"])
def _layer_norm_kernel(
    x_ptr,  # [num_rows, H] float32, updated if there are partial sums
    partial_ptr,  # [NUM_PARTIALS, num_rows, H] float32, or None
    weight_ptr,  # [H]
    bias_ptr,  # [H]
    out_ptr,  # [num_rows, H]
    num_rows,
    H: tl.constexpr,
    NUM_PARTIALS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    # One program: BLOCK_M rows, which stay in registers.
    launch_dependents(USE_PDL)
    column = tl.arange(0, BLOCK_H)[None, :]
    in_row = column < H
    weight = tl.load(weight_ptr + column, mask=in_row, other=0.0)
    bias = tl.load(bias_ptr + column, mask=in_row, other=0.0)
    wait(USE_PDL)

    row = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
    mask = (row < num_rows) & in_row
    place = row.to(tl.int64) * H + column
    x = tl.load(x_ptr + place, mask=mask, other=0.0)
    for part in tl.static_range(NUM_PARTIALS):
        part_ptr = partial_ptr + part * num_rows.to(tl.int64) * H
        x += tl.load(part_ptr + place, mask=mask, other=0.0)
    if NUM_PARTIALS > 0:
        tl.store(x_ptr + place, x, mask=mask)

    tl.store(out_ptr + place, normalised_row(x, weight, bias, in_row, H), mask=mask)


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, *, partial: Tensor | None = None, pdl: bool = False
) -> None:
    """Compute out = LN(x); with `partial`, after x += its sum over the first axis, in order.

    Args:
        x: [R, H], float32; updated if `partial` is given.
        weight: [H], float32.
        bias: [H], float32.
        out: [R, H], float32, bfloat16 or float16; written.
        partial: [P, R, H], float32, or None.
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
    if partial is not None:
        check_dimensions("partial", partial, 3)
        check("partial", partial, (partial.shape[0], rows, hidden), torch.float32, device)

    block = triton.next_power_of_2(hidden)
    # With many rows, several share what a program loads of weight and bias.
    block_m = 4 if rows >= _SHARED_FROM_ROWS else 1
    _layer_norm_kernel[(triton.cdiv(rows, block_m),)](
        x, partial, weight, bias, out, rows,
        H=hidden, NUM_PARTIALS=0 if partial is None else partial.shape[0], BLOCK_M=block_m, BLOCK_H=block,
        USE_PDL=pdl, num_warps=block_m * max(1, min(block // 1024, 8 // block_m)), launch_pdl=pdl,
    )  # fmt: skip
