"""The output projection of attention, with the combination of its splits fused into the loads.

x += combine(partials) W^T + b

For steps of few rows, where a launch costs more than combining the splits again in every program. With one split the
result of `paged_attention` goes through `linear_residual` instead.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .few_rows import load_weights, multiply
from .launch import WEIGHT_DTYPES, check, check_scale, compute_dtype, launch_dependents, triton_dtype, wait
from .linear import linear_residual_reference
from .projection import load_residual, scale_and_bias
from .splits import check_partials, combine_splits_reference, combined
from .tiles import SMALL_ROWS, tile_of


def combine_out_proj_reference(
    partial: Tensor,
    partial_max: Tensor,
    partial_sum: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor,
    x: Tensor,
) -> Tensor:
    """Return `combine_out_proj`'s x."""
    combined = combine_splits_reference(partial, partial_max, partial_sum)
    return linear_residual_reference(combined, weight, scale, bias, x)


@triton.jit(do_not_specialize=["num_rows"])
def _combine_out_proj_kernel(
    partial_ptr,  # [NUM_SPLITS, num_rows, HEADS, HEAD_DIM] float32
    partial_max_ptr,  # [NUM_SPLITS, num_rows, HEADS] float32
    partial_sum_ptr,  # [NUM_SPLITS, num_rows, HEADS] float32
    weight_ptr,  # [N, HEADS * HEAD_DIM]
    scale_ptr,  # [N] float32 or None
    bias_ptr,  # [N] float32
    x_ptr,  # [num_rows, N] float32, updated in place
    num_rows,
    N: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DTYPE: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    # One program: BLOCK_N outputs of all rows, BLOCK_HEADS heads at a time: a head is a part of K, as in few_rows.py.
    K: tl.constexpr = HEADS * HEAD_DIM
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.arange(0, BLOCK_M)
    launch_dependents(USE_PDL)
    scale, bias = scale_and_bias(scale_ptr, bias_ptr, columns, N)
    weights = load_weights(weight_ptr, columns, N, K, K, False, BLOCK_HEADS, BLOCK_D, HEAD_DIM, DTYPE)
    wait(USE_PDL)

    x = load_residual(x_ptr, rows, num_rows, columns, N)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    d = tl.arange(0, BLOCK_D)[None, None, :]
    for first_head in tl.static_range(0, HEADS, BLOCK_HEADS):
        if first_head > 0:
            weights = load_weights(
                weight_ptr + first_head * HEAD_DIM, columns, N, K, K, False, BLOCK_HEADS, BLOCK_D, HEAD_DIM, DTYPE
            )
        head = first_head + tl.arange(0, BLOCK_HEADS)[:, None, None]
        row_mask = (rows < num_rows)[None, :, None] & (head < HEADS)
        a = combined(
            partial_ptr, partial_max_ptr, partial_sum_ptr, rows[None, :, None] * HEADS + head, row_mask, d,
            row_mask & (d < HEAD_DIM), num_rows * HEADS, HEAD_DIM, NUM_SPLITS,
        )  # fmt: skip
        acc += multiply(a, weights, DTYPE)

    mask = (rows < num_rows)[:, None] & (columns < N)[None, :]
    tl.store(x_ptr + rows[:, None] * N + columns[None, :], x + acc * scale + bias, mask=mask)


def combine_out_proj(
    partial: Tensor,
    partial_max: Tensor,
    partial_sum: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor,
    x: Tensor,
    *,
    pdl: bool = False,
) -> None:
    """Combine splits, project and add: x += combine(partials) weight^T * scale + bias, in place, for at most 16 rows.

    Args:
        partial: [num_splits, R, heads, head_dim], float32, as `paged_attention` writes it.
        partial_max: [num_splits, R, heads], float32, as `paged_attention` writes it.
        partial_sum: [num_splits, R, heads], float32, as `paged_attention` writes it.
        weight: [H, heads * head_dim], a weight dtype.
        scale: [H], float32, for int8 weights only.
        bias: [H], float32.
        x: [R, H], float32; updated. Rows of no session are undefined.
        pdl: programmatic dependent launch, see `launch` (sm_90 or later).

    Raises:
        ValueError: an argument has another shape, dtype or device than above, or is not contiguous.
    """
    check_partials(partial, partial_max, partial_sum)
    splits, rows, heads, head_dim = partial.shape
    hidden, device = heads * head_dim, partial.device
    if rows > SMALL_ROWS:
        raise ValueError(
            f"partial: expected at most {SMALL_ROWS} rows, got {rows}; use combine_splits, linear_residual"
        )
    outputs = weight.shape[0]
    check("weight", weight, (outputs, hidden), WEIGHT_DTYPES, device)
    check_scale(weight, scale, outputs)
    check("bias", bias, (outputs,), torch.float32, device)
    check("x", x, (rows, outputs), torch.float32, device)

    tile = tile_of(rows, outputs, hidden, weight.dtype)
    block_heads = min(triton.next_power_of_2(heads), 4 if weight.dtype == torch.float32 else 16)
    _combine_out_proj_kernel[(triton.cdiv(outputs, tile.block_n),)](
        partial, partial_max, partial_sum, weight, scale, bias, x, rows,
        N=outputs, HEADS=heads, HEAD_DIM=head_dim, NUM_SPLITS=splits,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_HEADS=block_heads, BLOCK_D=triton.next_power_of_2(head_dim),
        DTYPE=triton_dtype(compute_dtype(weight.dtype)), USE_PDL=pdl,
        num_warps=8, num_stages=tile.num_stages, launch_pdl=pdl,
    )  # fmt: skip
