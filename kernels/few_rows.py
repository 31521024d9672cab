"""Device functions: the product of few rows with weights, all inputs in one tile.

What counts with few rows is the time between the end of the kernel before and the end of this one. So a program loads
all of its weights, in the layout that the tensor cores take, before it waits for earlier kernels. Behind the wait there
is no loop: the rows are loaded and multiplied, parts of K in parallel, and the parts are summed in fixed order.

A tile has all inputs as SPLIT_K parts of BLOCK_K, SPLIT_K * BLOCK_K >= K; parts are spread over the warps.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .launch import INTERPRETING

_INTERPRETING = tl.constexpr(INTERPRETING)


@triton.jit
def load_weights(
    weight_ptr,  # [N, STRIDE]
    columns,  # [BLOCK_N]
    N: tl.constexpr,
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    SPLIT_K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Return the weights of `columns` in DTYPE, [SPLIT_K, BLOCK_K, BLOCK_N], 0 outside of [N, K]."""
    k = (tl.arange(0, SPLIT_K)[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :])[:, :, None]
    offset = columns[None, None, :] * STRIDE + k
    mask = (columns < N)[None, None, :] & (k < K)
    return load_early(weight_ptr, offset, mask, DTYPE)


@triton.jit
def load_early(weight_ptr, offset, mask, DTYPE: tl.constexpr):
    """Return weights at offsets in DTYPE, 0 where the mask is false, for a product behind the wait."""
    if weight_ptr.dtype.element_ty.primitive_bitwidth == 16:
        # A change of type behind the load makes the compiler change the layout before the wait, not behind it.
        weight = tl.load(weight_ptr.to(tl.pointer_type(tl.int16)) + offset, mask=mask, other=0)
        return weight.to(weight_ptr.dtype.element_ty, bitcast=True)
    return tl.load(weight_ptr + offset, mask=mask, other=0).to(DTYPE)


@triton.jit
def load_rows(
    a_ptr, rows, num_rows, K: tl.constexpr, STRIDE: tl.constexpr, SPLIT_K: tl.constexpr, BLOCK_K: tl.constexpr
):
    """Return the first K columns of rows of a [num_rows, STRIDE], as [SPLIT_K, BLOCK_M, BLOCK_K], 0 outside."""
    k = _row_inputs(SPLIT_K, BLOCK_K)
    mask = (rows < num_rows)[None, :, None] & (k < K)
    return tl.load(a_ptr + rows.to(tl.int64)[None, :, None] * STRIDE + k, mask=mask, other=0.0)


@triton.jit
def multiply(a, weights, DTYPE: tl.constexpr):
    """Return the sum over parts of a [SPLIT_K, BLOCK_M, BLOCK_K] times weights, float32 [BLOCK_M, BLOCK_N]."""
    return sum_parts(tl.dot(_as_computed(a.to(DTYPE)), weights, input_precision="ieee"))


@triton.jit
def _row_inputs(SPLIT_K: tl.constexpr, BLOCK_K: tl.constexpr):
    """Return the inputs of a tile, [SPLIT_K, 1, BLOCK_K]."""
    return (tl.arange(0, SPLIT_K)[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :])[:, None, :]


@triton.jit
def _as_computed(a):
    """Return a, of 16 or 32 bits an element; the compiler takes it for another value.

    Otherwise it changes the layout of what a is computed from, for each of its loads, instead of that of a.
    """
    if _INTERPRETING:
        return a
    PACK: tl.constexpr = 32 // a.dtype.primitive_bitwidth
    return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [a], dtype=a.dtype, is_pure=False, pack=PACK)


@triton.jit
def sum_parts(parts):
    """Return the sum over the first axis of [SPLIT_K, BLOCK_M, BLOCK_N], a power of two, pair by pair.

    One exchange through shared memory; `tl.sum` takes two.
    """
    total = tl.permute(parts, (1, 2, 0))
    for _ in tl.static_range(6):  # up to 64 parts
        if total.shape[2] > 1:
            even, odd = tl.split(tl.reshape(total, [total.shape[0], total.shape[1], total.shape[2] // 2, 2]))
            total = even + odd
    return tl.reshape(total, [total.shape[0], total.shape[1]])
