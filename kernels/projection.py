"""Device function: rows W^T, the product that all linear kernels share, with the wait in it.

With few rows it is that of few_rows.py, all inputs at once. Else it iterates over the inputs, with several loads in
flight; where K is split over the warps of a program, as a batched product that is summed in fixed order at the end.

Shapes: M rows, N outputs, K inputs. Tile sizes are in tiles.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .few_rows import load_rows, load_weights, multiply
from .launch import launch_dependents, wait


@triton.jit
def prefetch_weights(
    weight_ptr,  # [N, STRIDE]
    first_column,
    N: tl.constexpr,
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Prefetch the weights of BLOCK_N outputs into the L2 cache.

    Weights do not depend on earlier kernels, so with programmatic dependent launch this overlaps with them. It is a
    hint: nothing is loaded into registers.
    """
    LINE: tl.constexpr = 1024 // weight_ptr.dtype.element_ty.primitive_bitwidth  # elements in 128 bytes
    LINES: tl.constexpr = BLOCK_N * ((K + LINE - 1) // LINE)
    for start in range(0, LINES, 512):
        line = tl.minimum(start + tl.arange(0, 512), LINES - 1)
        column = tl.minimum(first_column + line % BLOCK_N, N - 1)
        offset = column * STRIDE + (line // BLOCK_N) * LINE
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [(weight_ptr + offset).to(tl.int64)], dtype=tl.int32,
            is_pure=False, pack=1,
        )  # fmt: skip


@triton.jit
def scale_and_bias(scale_ptr, bias_ptr, columns, N: tl.constexpr):
    """Return scale and bias of outputs, [1, BLOCK_N] each: 1 and 0 where there is none. They do not need the wait."""
    scale = tl.full([1, columns.shape[0]], 1.0, tl.float32)
    bias = tl.zeros([1, columns.shape[0]], tl.float32)
    if scale_ptr is not None:
        scale = tl.load(scale_ptr + columns, mask=columns < N, other=0.0)[None, :]
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + columns, mask=columns < N, other=0.0)[None, :]
    return scale, bias


@triton.jit
def product(
    a_ptr,  # [num_rows, STRIDE], of which the first K columns count
    weight_ptr,  # [N, STRIDE]
    residual_ptr,  # [num_rows, N] float32, or None
    rows,  # [BLOCK_M]
    num_rows,
    first_column,
    BLOCK_N: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    WHOLE: tl.constexpr,
    SPLIT_K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DTYPE: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    """Wait for earlier kernels, and return a W^T and the residual, 0 without one.

    Both are float32 [BLOCK_M, BLOCK_N]. Operands are rounded to DTYPE. Rows from num_rows and columns from N on give
    finite numbers.
    """
    launch_dependents(USE_PDL)
    columns = first_column + tl.arange(0, BLOCK_N)
    if WHOLE:
        weights = load_weights(weight_ptr, columns, N, K, STRIDE, SPLIT_K, BLOCK_K, DTYPE)
        wait(USE_PDL)
        a = load_rows(a_ptr, rows, num_rows, K, STRIDE, SPLIT_K, BLOCK_K)
        residual = load_residual(residual_ptr, rows, num_rows, columns, N)
        acc = multiply(a, weights, DTYPE)
    else:
        if USE_PDL:
            prefetch_weights(weight_ptr, first_column, N, K, STRIDE, BLOCK_N)
        wait(USE_PDL)
        acc = _iterate(a_ptr, weight_ptr, rows, num_rows, columns, BLOCK_N, N, K, STRIDE, SPLIT_K, BLOCK_K, DTYPE)
        residual = load_residual(residual_ptr, rows, num_rows, columns, N)
    return acc, residual


@triton.jit
def load_residual(residual_ptr, rows, num_rows, columns, N: tl.constexpr):
    """Return the elements of residual_ptr [num_rows, N] at rows and columns, 0 outside and for None."""
    residual = tl.zeros([rows.shape[0], columns.shape[0]], tl.float32)
    if residual_ptr is not None:
        mask = (rows < num_rows)[:, None] & (columns < N)[None, :]
        residual = tl.load(residual_ptr + rows.to(tl.int64)[:, None] * N + columns[None, :], mask=mask, other=0.0)
    return residual


@triton.jit
def _iterate(
    a_ptr,  # [num_rows, K]
    weight_ptr,  # [N, STRIDE]
    rows,  # [BLOCK_M]
    num_rows,
    columns,  # [BLOCK_N]
    BLOCK_N: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    SPLIT_K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Return sum_k a[row, k] W[column, k], float32 [BLOCK_M, BLOCK_N].

    Operands are rounded to DTYPE. Columns from N on give 0.
    """
    if SPLIT_K == 1:
        # Without masks of k and of the columns, where blocks divide both: the loop has fewer instructions.
        IS_EVEN: tl.constexpr = K % BLOCK_K == 0 and N % BLOCK_N == 0
        in_rows = (rows < num_rows)[:, None]
        in_columns = (columns < N)[None, :]
        k = tl.arange(0, BLOCK_K)
        a_block = a_ptr + rows.to(tl.int64)[:, None] * STRIDE + k[None, :]
        w_block = weight_ptr + columns[None, :] * STRIDE + k[:, None]
        acc = tl.zeros([rows.shape[0], columns.shape[0]], tl.float32)
        for start in range(0, K, BLOCK_K):
            a = tl.load(a_block, mask=in_rows if IS_EVEN else in_rows & (start + k < K)[None, :], other=0.0)
            w_mask = None if IS_EVEN else in_columns & (start + k < K)[:, None]
            w = tl.load(w_block, mask=w_mask, other=None if IS_EVEN else 0.0)
            acc = tl.dot(a.to(DTYPE), w.to(DTYPE), acc, input_precision="ieee")
            a_block += BLOCK_K
            w_block += BLOCK_K
    else:
        in_rows = (rows < num_rows)[None, :, None]
        in_columns = (columns < N)[None, None, :]
        a_rows = a_ptr + rows.to(tl.int64)[None, :, None] * STRIDE
        w_columns = weight_ptr + columns[None, None, :] * STRIDE
        split = tl.arange(0, SPLIT_K)[:, None, None] * BLOCK_K
        parts = tl.zeros([SPLIT_K, rows.shape[0], columns.shape[0]], tl.float32)
        for start in range(0, K, SPLIT_K * BLOCK_K):
            k_a = start + split + tl.arange(0, BLOCK_K)[None, None, :]
            a = tl.load(a_rows + k_a, mask=in_rows & (k_a < K), other=0.0)
            k_w = start + split + tl.arange(0, BLOCK_K)[None, :, None]
            w = tl.load(w_columns + k_w, mask=in_columns & (k_w < K), other=0.0)
            parts = tl.dot(a.to(DTYPE), w.to(DTYPE), parts, input_precision="ieee")
        acc = tl.sum(parts, 0)
    return acc
