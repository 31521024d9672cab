"""Embeddings of discrete observations.

row[:H-1] = W [table[tokens[0]], ..., table[tokens[L-1]]] + b,   row[H-1] = reward

`table` [vocab, F] has the features of every token (embedding, linear and ReLU, computed once at loading). The row of
observation d is written to the address target_ptrs[d]; 0 marks padding, which is skipped.

Shapes: D observations, L tokens of an observation, F features of a token, H hidden size.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference import dequantize, linear
from .launch import WEIGHT_DTYPES, check, check_dimensions, check_scale, compute_dtype, launch_and_wait, triton_dtype
from .tiles import SMALL_ROWS, iterating_tile_of


def encode_discrete_reference(
    tokens: Tensor, rewards: Tensor, table: Tensor, weight: Tensor, scale: Tensor | None, bias: Tensor
) -> Tensor:
    """Return the rows [D, H] in table's dtype."""
    features = table[tokens.long()].flatten(1)
    out = linear(features, dequantize(weight, scale, table.dtype), bias)
    return torch.cat([out, rewards[:, None].to(out.dtype)], dim=1)


@triton.jit(do_not_specialize=["num_rows"])
def _encode_discrete_kernel(
    tokens_ptr,  # [num_rows, LENGTH] int32
    rewards_ptr,  # [num_rows] float32
    target_ptrs_ptr,  # [num_rows] int64 addresses of float32 [N + 1]
    table_ptr,  # [vocab, F] float32
    weight_ptr,  # [N, LENGTH * F]
    scale_ptr,  # [N] float32 or None
    bias_ptr,  # [N] float32
    num_rows,
    N: tl.constexpr,
    LENGTH: tl.constexpr,
    F: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    DTYPE: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    # One program: BLOCK_N of the N + 1 columns of BLOCK_M observations; K is split over warps as in `project`.
    K: tl.constexpr = LENGTH * F
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    launch_and_wait(USE_PDL)

    address = tl.load(target_ptrs_ptr + rows, mask=rows < num_rows, other=0)
    is_observation = address != 0
    part = tl.arange(0, SPLIT_K)[:, None, None] * BLOCK_K
    parts = tl.zeros([SPLIT_K, BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, K, SPLIT_K * BLOCK_K):
        k_w = start + part + tl.arange(0, BLOCK_K)[None, :, None]
        w_mask = (columns < N)[None, None, :] & (k_w < K)
        w = tl.load(weight_ptr + columns[None, None, :] * K + k_w, mask=w_mask, other=0.0)
        k_a = start + part + tl.arange(0, BLOCK_K)[None, None, :]
        a_mask = is_observation[None, :, None] & (k_a < K)
        token = tl.load(tokens_ptr + rows[None, :, None] * LENGTH + k_a // F, mask=a_mask, other=0)
        a = tl.load(table_ptr + token * F + k_a % F, mask=a_mask, other=0.0)
        parts = tl.dot(a.to(DTYPE), w.to(DTYPE), parts, input_precision="ieee")
    acc = tl.sum(parts, 0)
    if scale_ptr is not None:
        acc *= tl.load(scale_ptr + columns, mask=columns < N, other=0.0)[None, :]
    acc += tl.load(bias_ptr + columns, mask=columns < N, other=0.0)[None, :]

    reward = tl.load(rewards_ptr + rows, mask=is_observation, other=0.0)
    out = tl.where((columns == N)[None, :], reward[:, None], acc)
    target_ptr = address.to(tl.pointer_type(tl.float32))
    tl.store(target_ptr[:, None] + columns[None, :], out, mask=is_observation[:, None] & (columns <= N)[None, :])


def encode_discrete(
    tokens: Tensor,
    rewards: Tensor,
    target_ptrs: Tensor,
    table: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor,
    *,
    pdl: bool = False,
) -> None:
    """Write the embeddings of D observations to their addresses.

    Args:
        tokens: [D, L], int32, each below vocab.
        rewards: [D], float32.
        target_ptrs: [D], int64 device addresses of float32 [H]; written. 0 for padding, whose tokens may be anything.
        table: [vocab, F], float32.
        weight: [H - 1, L * F], a weight dtype.
        scale: [H - 1], float32, for int8 weights only.
        bias: [H - 1], float32.
        pdl: programmatic dependent launch, see `launch` (sm_90 or later).

    Raises:
        ValueError: an argument has another shape, dtype or device than above, or is not contiguous.
    """
    check_dimensions("tokens", tokens, 2)
    check_dimensions("table", table, 2)
    check_dimensions("weight", weight, 2)
    (rows, length), (vocab, features), outputs, device = tokens.shape, table.shape, weight.shape[0], tokens.device
    check("tokens", tokens, (rows, length), torch.int32, device)
    check("rewards", rewards, (rows,), torch.float32, device)
    check("target_ptrs", target_ptrs, (rows,), torch.int64, device)
    check("table", table, (vocab, features), torch.float32, device)
    check("weight", weight, (outputs, length * features), WEIGHT_DTYPES, device)
    check_scale(weight, scale, outputs)
    check("bias", bias, (outputs,), torch.float32, device)

    tile = iterating_tile_of(SMALL_ROWS, outputs + 1, length * features, weight.dtype)
    _encode_discrete_kernel[(triton.cdiv(outputs + 1, tile.block_n), triton.cdiv(rows, tile.block_m))](
        tokens, rewards, target_ptrs, table, weight, scale, bias, rows,
        N=outputs, LENGTH=length, F=features,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, SPLIT_K=tile.split_k,
        DTYPE=triton_dtype(compute_dtype(weight.dtype)), USE_PDL=pdl,
        num_warps=tile.num_warps, num_stages=tile.num_stages, launch_pdl=pdl,
    )  # fmt: skip
