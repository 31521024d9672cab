"""Embeddings of discrete observations.

row[:H-1] = W [table[tokens[0]], ..., table[tokens[L-1]]] + b,   row[H-1] = reward

`table` [vocab, F] has the features of every token (embedding, linear and ReLU, computed once at loading). The row of
observation d is written to the address target_ptrs[d]; 0 marks padding, which is skipped.

Few observations take as long as reading their weights: many programs with few outputs each have all weights in flight
at once, and then tokens and features, each by one load of all. More observations are products by tensor cores, some
positions of the observation per iteration, for which tokens and features are loaded some iterations ahead.

Shapes: D observations, L tokens of an observation, F features of a token, H hidden size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference import dequantize, linear
from .launch import (
    INTERPRETING,
    WEIGHT_DTYPES,
    check,
    check_dimensions,
    check_scale,
    compute_dtype,
    launch_and_wait,
    launch_dependents,
    triton_dtype,
    wait,
)


def encode_discrete_reference(
    tokens: Tensor, rewards: Tensor, table: Tensor, weight: Tensor, scale: Tensor | None, bias: Tensor
) -> Tensor:
    """Return the rows [D, H] in table's dtype."""
    features = table[tokens.long()].flatten(1)
    out = linear(features, dequantize(weight, scale, table.dtype), bias)
    return torch.cat([out, rewards[:, None].to(out.dtype)], dim=1)


class Tile(NamedTuple):
    """Launch parameters.

    Attributes:
        block_m: observations per program.
        block_n: outputs per program.
        block_l: positions of an observation per iteration, which warps share; 0 for all at once, without tensor cores.
        num_warps: per program.
        num_stages: of the software pipeline over positions.
    """

    block_m: int
    block_n: int
    block_l: int
    num_warps: int
    num_stages: int = 1


_FEW_ROWS = 8
_FLOAT32_TILE = Tile(16, 16, 4, 4, 3)
_TABLE = (
    (_FEW_ROWS, Tile(1, 4, 0, 8)),
    (16, Tile(16, 8, 8, 8, 5)),
    (64, Tile(16, 16, 8, 8, 5)),
    (2**31, Tile(64, 32, 4, 4, 5)),
)
"""Most observations, and their tile in half precision and int8."""


def tile_of(num_rows: int, outputs: int, weight_dtype: torch.dtype) -> Tile:
    """Return launch parameters for `num_rows` observations and `outputs` numbers of each."""
    if INTERPRETING:
        block_n = min(64, triton.next_power_of_2(outputs))
        return Tile(1, block_n, 0, 1) if num_rows <= _FEW_ROWS else Tile(16, block_n, 8, 1)
    tile = next(tile for most, tile in _TABLE if num_rows <= most)
    return _FLOAT32_TILE if weight_dtype == torch.float32 and tile.block_l else tile


@triton.jit
def _encode_few_discrete_kernel(
    tokens_ptr,  # [D, LENGTH] int32
    rewards_ptr,  # [D] float32
    target_ptrs_ptr,  # [D] int64 addresses of float32 [N + 1]
    table_ptr,  # [vocab, F]
    weight_ptr,  # [N, LENGTH * F]
    scale_ptr,  # [N] float32 or None
    bias_ptr,  # [N] float32
    N: tl.constexpr,
    LENGTH: tl.constexpr,
    F: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    # One program: BLOCK_N of the N + 1 columns of one observation. Threads lie along the inputs.
    K: tl.constexpr = LENGTH * F
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.program_id(1)
    launch_dependents(USE_PDL)

    # No kernel of a step writes its inputs or weights: they are read before the wait. Tokens of padding are read too,
    # lest their load wait for that of the address.
    position = tl.arange(0, BLOCK_L)
    token = tl.load(tokens_ptr + row * LENGTH + position, mask=position < LENGTH, other=0)
    address = tl.load(target_ptrs_ptr + row)
    k = tl.arange(0, BLOCK_L * F)
    mask = (columns < N)[:, None] & (k < K)[None, :]
    weight = tl.load(weight_ptr + columns[:, None] * K + k[None, :], mask=mask, other=0.0)
    reward = tl.load(rewards_ptr + row)
    bias = tl.load(bias_ptr + columns, mask=columns < N, other=0.0)
    scale = tl.full([BLOCK_N], 1.0, tl.float32)
    if scale_ptr is not None:
        scale = tl.load(scale_ptr + columns, mask=columns < N, other=0.0)

    # The condition on the row is expressed as a limit: Triton's interpreter rejects scalars in a mask.
    length = tl.where(address != 0, LENGTH, 0)
    place = token[:, None] * F + tl.arange(0, F)[None, :]
    features = tl.load(table_ptr + place, mask=(position < length)[:, None], other=0.0)
    features = tl.reshape(features, [BLOCK_L * F]).to(tl.float32)
    out = tl.sum(features[None, :] * weight.to(tl.float32), 1) * scale + bias
    wait(USE_PDL)

    end = tl.where(address != 0, N + 1, 0)
    target_ptr = address.to(tl.pointer_type(tl.float32))
    tl.store(target_ptr + columns, tl.where(columns == N, reward, out), mask=columns < end)


@triton.jit(do_not_specialize=["num_rows"])
def _encode_discrete_kernel(
    tokens_ptr,  # [num_rows, LENGTH] int32
    rewards_ptr,  # [num_rows] float32
    target_ptrs_ptr,  # [num_rows] int64 addresses of float32 [N + 1]
    table_ptr,  # [vocab, F]
    weight_ptr,  # [N, LENGTH * F]
    scale_ptr,  # [N] float32 or None
    bias_ptr,  # [N] float32
    num_rows,
    N: tl.constexpr,
    LENGTH: tl.constexpr,
    F: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
    DTYPE: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    # One program: BLOCK_N of the N + 1 columns of BLOCK_M observations. The positions of an iteration are spread over
    # the warps, as a batched product, and summed at the end.
    K: tl.constexpr = LENGTH * F
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    launch_and_wait(USE_PDL)

    address = tl.load(target_ptrs_ptr + rows, mask=rows < num_rows, other=0)
    is_observation = address != 0
    f = tl.arange(0, F)
    parts = tl.zeros([BLOCK_L, BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, LENGTH, BLOCK_L):
        position = start + tl.arange(0, BLOCK_L)
        token_mask = (position < LENGTH)[:, None] & is_observation[None, :]
        token = tl.load(tokens_ptr + rows[None, :] * LENGTH + position[:, None], mask=token_mask, other=0)
        features = tl.load(table_ptr + token[:, :, None] * F + f[None, None, :], mask=token_mask[:, :, None], other=0.0)
        weight_mask = (position < LENGTH)[:, None, None] & (columns < N)[None, None, :]
        offset = columns[None, None, :] * K + position[:, None, None] * F + f[None, :, None]
        weight = tl.load(weight_ptr + offset, mask=weight_mask, other=0.0)
        parts = tl.dot(features.to(DTYPE), weight.to(DTYPE), parts, input_precision="ieee")
    acc = tl.sum(parts, 0)
    if scale_ptr is not None:
        acc *= tl.load(scale_ptr + columns, mask=columns < N, other=0.0)[None, :]
    acc += tl.load(bias_ptr + columns, mask=columns < N, other=0.0)[None, :]

    reward = tl.load(rewards_ptr + rows, mask=rows < num_rows, other=0.0)
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
        table: [vocab, F], the compute dtype of the weights; F a power of two from 16 on, of which some may be zeros.
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
    check("weight", weight, (outputs, length * features), WEIGHT_DTYPES, device)
    check("table", table, (vocab, features), compute_dtype(weight.dtype), device)
    check_scale(weight, scale, outputs)
    check("bias", bias, (outputs,), torch.float32, device)
    if features < 16 or features & (features - 1):
        raise ValueError(f"table: expected 16, 32, 64, ... features, got {features}; pad table and weight with zeros")

    tile = tile_of(rows, outputs + 1, weight.dtype)
    grid = (triton.cdiv(outputs + 1, tile.block_n), triton.cdiv(rows, tile.block_m))
    arguments = tokens, rewards, target_ptrs, table, weight, scale, bias
    if not tile.block_l:
        _encode_few_discrete_kernel[grid](
            *arguments, N=outputs, LENGTH=length, F=features, BLOCK_N=tile.block_n,
            BLOCK_L=triton.next_power_of_2(length), USE_PDL=pdl, num_warps=tile.num_warps, launch_pdl=pdl,
        )  # fmt: skip
        return
    _encode_discrete_kernel[grid](
        *arguments, rows, N=outputs, LENGTH=length, F=features, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n,
        BLOCK_L=tile.block_l, DTYPE=triton_dtype(compute_dtype(weight.dtype)), USE_PDL=pdl,
        num_warps=tile.num_warps, num_stages=tile.num_stages, launch_pdl=pdl,
    )  # fmt: skip
