"""Token embeddings plus position embeddings: the input of the first block.

x[r] = position_table[positions[r]] + (the row at source_ptrs[r])                              source_sizes[r] == 0
x[r] = position_table[positions[r]] + bias + sum_j values[value_starts[r] + j] encoder_r[j]    source_sizes[r] = X > 0

encoder_r is the float32 [X, H] at address source_ptrs[r] (a folded continuous encoder, input-major). A row with
source_ptrs[r] = 0 is padding: x[r] = 0.

Shapes: R rows, H hidden size, X inputs of an encoder, V values of all rows, P positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference import encode_continuous
from .launch import INTERPRETING, check, check_dimensions, launch_and_wait

_FEW_ROWS = 16


def embed_reference(
    sources: list[int],
    memory: Mapping[int, Tensor],
    value_starts: Tensor,
    values: Tensor,
    bias: Tensor,
    position_table: Tensor,
    positions: Tensor,
) -> Tensor:
    """Return `embed`'s rows, the memory at each address of `sources` given as a tensor: [H], or an encoder [X, H]."""
    rows = []
    for index, source in enumerate(sources):
        if source == 0:
            rows.append(torch.zeros_like(bias))
            continue
        row = memory[source].to(bias.dtype)
        if row.dim() == 2:
            start = int(value_starts[index])
            row = encode_continuous(values[start : start + len(row)], row, bias)
        rows.append(row + position_table[int(positions[index])])
    return torch.stack(rows)


class Config(NamedTuple):
    """Launch parameters.

    Attributes:
        block_h: columns per program.
        block_x: inputs of an encoder per iteration.
        num_warps: per program.
    """

    block_h: int
    block_x: int
    num_warps: int


def config(num_rows: int, hidden: int) -> Config:
    """Return launch parameters for `num_rows` rows of `hidden` columns."""
    if INTERPRETING:
        return Config(triton.next_power_of_2(hidden), 64, 1)
    if num_rows <= _FEW_ROWS:
        return Config(64, 32, 4)  # many programs, short chains
    return Config(triton.next_power_of_2(hidden), 8, 4)  # fewer programs than waves of short ones


@triton.jit
def _embed_kernel(
    out_ptr,  # [R, H] float32
    source_ptrs_ptr,  # [R] int64 addresses of float32
    source_sizes_ptr,  # [R]
    value_starts_ptr,  # [R]
    values_ptr,  # [V] float32
    bias_ptr,  # [H] float32
    position_table_ptr,  # [P, H] float32
    positions_ptr,  # [R]
    H: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_X: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    # One program: one row, one block of columns.
    row = tl.program_id(0)
    column = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    in_row = column < H
    launch_and_wait(USE_PDL)

    address = tl.load(source_ptrs_ptr + row)
    size = tl.load(source_sizes_ptr + row)
    start = tl.load(value_starts_ptr + row)
    source_ptr = address.to(tl.pointer_type(tl.float32))
    is_token = address != 0
    # Conditions on the row are expressed as limits of its columns: Triton's interpreter rejects scalars in a mask.
    row_end = tl.where(is_token & (size == 0), H, 0)
    size = tl.where(is_token, size, 0)
    token_end = tl.where(is_token, H, 0)
    bias_end = tl.where(size > 0, H, 0)

    x = tl.load(source_ptr + column, mask=column < row_end, other=0.0)
    total = tl.zeros([BLOCK_H], tl.float32)
    for first in range(0, size, BLOCK_X):
        j = first + tl.arange(0, BLOCK_X)
        value = tl.load(values_ptr + start + j, mask=j < size, other=0.0)
        mask = (j < size)[:, None] & in_row[None, :]
        total += tl.sum(
            tl.load(source_ptr + j[:, None] * H + column[None, :], mask=mask, other=0.0) * value[:, None], 0
        )
    bias = tl.load(bias_ptr + column, mask=column < bias_end, other=0.0)

    position = tl.load(positions_ptr + row, mask=is_token, other=0)
    x += total + bias + tl.load(position_table_ptr + position * H + column, mask=column < token_end, other=0.0)
    tl.store(out_ptr + row.to(tl.int64) * H + column, x, mask=in_row)


def embed(
    out: Tensor,
    source_ptrs: Tensor,
    source_sizes: Tensor,
    value_starts: Tensor,
    values: Tensor,
    bias: Tensor,
    position_table: Tensor,
    positions: Tensor,
    *,
    pdl: bool = False,
) -> None:
    """Write the embeddings of R rows.

    Args:
        out: [R, H], float32; written.
        source_ptrs: [R], int64 device addresses of float32; 0 for padding.
        source_sizes: [R], int32: 0 if the source is a finished row [H], X if it is an encoder [X, H].
        value_starts: [R], int32: first index into `values`; read if source_sizes > 0.
        values: [V], float32.
        bias: [H], float32; added if source_sizes > 0.
        position_table: [P, H], float32.
        positions: [R], int32, each below P.
        pdl: programmatic dependent launch, see `launch` (sm_90 or later).

    Raises:
        ValueError: an argument has another shape, dtype or device than above, or is not contiguous.
    """
    check_dimensions("out", out, 2)
    check_dimensions("values", values, 1)
    check_dimensions("position_table", position_table, 2)
    rows, hidden = out.shape
    device = out.device

    check("out", out, (rows, hidden), torch.float32, device)
    check("source_ptrs", source_ptrs, (rows,), torch.int64, device)
    check("source_sizes", source_sizes, (rows,), torch.int32, device)
    check("value_starts", value_starts, (rows,), torch.int32, device)
    check("values", values, (values.shape[0],), torch.float32, device)
    check("bias", bias, (hidden,), torch.float32, device)
    check("position_table", position_table, (position_table.shape[0], hidden), torch.float32, device)
    check("positions", positions, (rows,), torch.int32, device)

    block = config(rows, hidden)
    _embed_kernel[(rows, triton.cdiv(hidden, block.block_h))](
        out, source_ptrs, source_sizes, value_starts, values, bias, position_table, positions,
        H=hidden, BLOCK_H=block.block_h, BLOCK_X=block.block_x, USE_PDL=pdl,
        num_warps=block.num_warps, launch_pdl=pdl,
    )  # fmt: skip
