"""Device function: a tile of LN(rows) W^T, the product that all linear kernels share, and its tile sizes.

With few rows (a step of a few agents), time goes into reading the weights. Tiles are narrow, so that about a hundred
programs share the bytes, and K is split over the warps of a program (a batched product, summed in fixed order at the
end), because a single chain of 16-deep products would take longer than the loads. With many rows, tiles are ordinary
tensor-core tiles.

Shapes: M rows, N outputs, K inputs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .launch import INTERPRETING

SMALL_ROWS = 16
"""Most rows that count as few."""


class Config(NamedTuple):
    """Launch parameters of a product.

    Attributes:
        block_m: rows per program.
        block_n: outputs per program.
        block_k: inputs per iteration, of each part of K.
        split_k: parts of K that are computed in parallel.
        num_warps: per program.
        num_stages: of the software pipeline over K.
    """

    block_m: int
    block_n: int
    block_k: int
    split_k: int
    num_warps: int
    num_stages: int


def config(
    num_rows: int, num_outputs: int, weight_dtype: torch.dtype, *, transposed: bool = False, norm: bool = False
) -> Config:
    """Return launch parameters for a product [num_rows, K] x [K, num_outputs].

    Args:
        num_rows: M.
        num_outputs: N.
        weight_dtype: of the weights.
        transposed: the weights are [K, N].
        norm: the rows are float32 and normalised as they are loaded.
    """
    if INTERPRETING:
        block_n = min(512, triton.next_power_of_2(num_outputs))
        return Config(16, block_n, 128, 2, 1, 1) if num_rows <= SMALL_ROWS else Config(64, block_n, 256, 1, 1, 1)
    if num_rows <= SMALL_ROWS:
        # Transposed weights are contiguous along the outputs: 16 of them fill a 32-byte sector.
        block_n = 8 if num_outputs < 1600 and not transposed else 16
        wide = weight_dtype == torch.float32
        return Config(SMALL_ROWS, block_n, 32 if wide else 64, 4, 4, 4 if transposed else 3)
    if weight_dtype == torch.float32:
        return Config(32, 64, 32, 1, 4, 2)
    if num_rows <= 256:
        return Config(64, 32 if num_outputs < 1600 else 64, 64, 1, 8 if weight_dtype == torch.int8 else 4, 3)
    return Config(128, 128, 64, 1, 8, 2 if norm else 3)


def block_h(hidden: int, block_m: int) -> int:
    """Return the columns per iteration of the LayerNorm statistics: whole rows if a tile of them fits in registers."""
    limit = 1024 if INTERPRETING or block_m <= SMALL_ROWS else 128
    return min(limit, int(triton.next_power_of_2(hidden)))


@triton.jit
def prefetch_weights(
    weight_ptr,  # [N, K], or with TRANSPOSED [K, N]
    first_column,
    N: tl.constexpr,
    K: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Prefetch the weights of BLOCK_N outputs into the L2 cache.

    Weights do not depend on earlier kernels, so with programmatic dependent launch this overlaps with them. It is a
    hint: nothing is loaded into registers.
    """
    LINE: tl.constexpr = 1024 // weight_ptr.dtype.element_ty.primitive_bitwidth  # elements in 128 bytes
    LINES: tl.constexpr = K if TRANSPOSED else BLOCK_N * ((K + LINE - 1) // LINE)
    for start in range(0, LINES, 512):
        line = tl.minimum(start + tl.arange(0, 512), LINES - 1)
        if TRANSPOSED:
            offset = line * N + first_column
        else:
            column = tl.minimum(first_column + line % BLOCK_N, N - 1)
            offset = column * K + (line // BLOCK_N) * LINE
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [(weight_ptr + offset).to(tl.int64)], dtype=tl.int32,
            is_pure=False, pack=1,
        )  # fmt: skip


@triton.jit
def project(
    a_ptr,  # [num_rows, K]
    norm_weight_ptr,  # [K] float32, with NORM
    norm_bias_ptr,  # [K] float32, with NORM
    mean,  # [BLOCK_M] float32, with NORM
    rstd,  # [BLOCK_M] float32, with NORM
    weight_ptr,  # [N, K], or with TRANSPOSED [K, N]
    rows,  # [BLOCK_M]
    num_rows,
    columns,  # [BLOCK_N]
    N: tl.constexpr,
    K: tl.constexpr,
    NORM: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    SPLIT_K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Return sum_k a[row, k] W[column, k], float32 [BLOCK_M, BLOCK_N].

    With NORM, `a` is normalised as it is loaded. Operands are rounded to DTYPE. Columns from N on give 0.
    """
    stride_n: tl.constexpr = 1 if TRANSPOSED else K
    stride_k: tl.constexpr = N if TRANSPOSED else 1

    if SPLIT_K == 1:
        in_rows = (rows < num_rows)[:, None]
        in_columns = (columns < N)[None, :]
        a_rows = a_ptr + rows.to(tl.int64)[:, None] * K
        w_columns = weight_ptr + columns[None, :] * stride_n
        acc = tl.zeros([rows.shape[0], columns.shape[0]], tl.float32)
        for start in range(0, K, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            a = tl.load(a_rows + k[None, :], mask=in_rows & (k < K)[None, :], other=0.0)
            if NORM:
                norm_weight = tl.load(norm_weight_ptr + k, mask=k < K, other=0.0)[None, :]
                norm_bias = tl.load(norm_bias_ptr + k, mask=k < K, other=0.0)[None, :]
                a = (a - mean[:, None]) * rstd[:, None] * norm_weight + norm_bias
            w = tl.load(w_columns + k[:, None] * stride_k, mask=in_columns & (k < K)[:, None], other=0.0)
            acc = tl.dot(a.to(DTYPE), w.to(DTYPE), acc, input_precision="ieee")
    else:
        in_rows = (rows < num_rows)[None, :, None]
        in_columns = (columns < N)[None, None, :]
        a_rows = a_ptr + rows.to(tl.int64)[None, :, None] * K
        w_columns = weight_ptr + columns[None, None, :] * stride_n
        split = tl.arange(0, SPLIT_K)[:, None, None] * BLOCK_K
        parts = tl.zeros([SPLIT_K, rows.shape[0], columns.shape[0]], tl.float32)
        for start in range(0, K, SPLIT_K * BLOCK_K):
            k_a = start + split + tl.arange(0, BLOCK_K)[None, None, :]
            a = tl.load(a_rows + k_a, mask=in_rows & (k_a < K), other=0.0)
            if NORM:
                norm_weight = tl.load(norm_weight_ptr + k_a, mask=k_a < K, other=0.0)
                norm_bias = tl.load(norm_bias_ptr + k_a, mask=k_a < K, other=0.0)
                a = (a - mean[None, :, None]) * rstd[None, :, None] * norm_weight + norm_bias
            k_w = start + split + tl.arange(0, BLOCK_K)[None, :, None]
            w = tl.load(w_columns + k_w * stride_k, mask=in_columns & (k_w < K), other=0.0)
            parts = tl.dot(a.to(DTYPE), w.to(DTYPE), parts, input_precision="ieee")
        acc = tl.sum(parts, 0)
    return acc
