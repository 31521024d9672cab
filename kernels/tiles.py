"""Tile sizes of the products with weights: one table, searched by rows, dtype, outputs and inputs.

Two kinds of products use them. With WHOLE inputs (few_rows.py) a program loads all weights of its outputs before it
waits for earlier kernels. Else (projection.py) it iterates over its inputs with several loads in flight.

M rows, N outputs, K inputs.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import triton

from .launch import INTERPRETING

WHOLE = 0
"""As `block_k`: all inputs at once."""


class Tile(NamedTuple):
    """Launch parameters of a product.

    Attributes:
        block_m: rows per program.
        block_n: outputs per program.
        block_k: inputs per iteration, of each part of K; in the table, WHOLE for all inputs.
        split_k: parts of K that are computed in parallel, by the warps of a program.
        num_warps: per program.
        num_stages: of the software pipeline over K: loads in flight, and the one that is computed.
        num_programs_k: programs that share K; each writes sums of its own, which the next kernel adds.
        max_registers: of a thread; None for no limit but the compiler's.
        whole: the inputs are one tile, split_k * block_k >= K.
    """

    block_m: int
    block_n: int
    block_k: int
    split_k: int
    num_warps: int
    num_stages: int
    num_programs_k: int = 1
    max_registers: int | None = None
    whole: bool = False


class _Row(NamedTuple):
    """An entry of the table, for products within its limits; the first that fits is taken. Inputs are a program's."""

    max_rows: int
    dtypes: tuple[torch.dtype, ...]
    max_outputs: int
    max_inputs: int
    tile: Tile


_INTERPRETED_WHOLE_ROWS = 32
_INTERPRETED_PARTIALS = 2
_ANY = 2**31
_FLOAT = (torch.float32,)
_HALF = (torch.bfloat16, torch.float16)
_HALF_INT8 = (*_HALF, torch.int8)
_EVERY = (*_FLOAT, *_HALF_INT8)

# Chosen in whole steps of bfloat16 on an H200 (benchmarks/gpu/tiles.py) up to 192 rows; above that by the clock.
_TABLE = (
    # Few rows: reading weights, and the time from the end of the kernel before to the end of this one. 24 to 96
    # programs with all weights in flight; the sums of programs that share inputs are added by the next LayerNorm.
    _Row(4, _HALF_INT8, 1536, 1024, Tile(16, 32, WHOLE, 8, 8, 1)),
    _Row(4, _HALF_INT8, 1536, 2048, Tile(16, 16, WHOLE, 8, 8, 1, num_programs_k=2)),
    _Row(16, _HALF_INT8, 1536, 1024, Tile(16, 16, WHOLE, 8, 4, 1)),
    _Row(16, _HALF_INT8, _ANY, 1024, Tile(16, 32, WHOLE, 8, 8, 1)),
    _Row(16, _HALF_INT8, 1536, 2048, Tile(16, 32, WHOLE, 8, 8, 1, num_programs_k=2)),
    _Row(96, _HALF_INT8, _ANY, 1024, Tile(32, 32, WHOLE, 8, 8, 1)),
    _Row(96, _HALF_INT8, 1536, 1024, Tile(32, 32, WHOLE, 8, 8, 1, num_programs_k=4)),
    # Few rows of other sizes.
    _Row(16, _HALF_INT8, 1536, _ANY, Tile(16, 8, 64, 4, 4, 3)),
    _Row(16, _HALF_INT8, _ANY, _ANY, Tile(16, 16, 64, 4, 4, 3)),
    _Row(16, _FLOAT, _ANY, _ANY, Tile(16, 8, 32, 4, 4, 3)),
    _Row(_ANY, _FLOAT, _ANY, _ANY, Tile(32, 64, 32, 1, 4, 2)),
    # Tiles of the tensor cores, with several loads of 64 inputs in flight, in one wave. Reading tiles from the L2 cache
    # is the limit of 64 outputs a program, the chain of one program that of 128.
    _Row(256, _HALF, 1536, 256, Tile(64, 32, 64, 1, 4, 4, num_programs_k=4)),
    _Row(256, _HALF, 1536, 1024, Tile(64, 32, 64, 1, 4, 6)),
    _Row(256, _HALF, _ANY, 1024, Tile(64, 128, 64, 1, 4, 6)),
    _Row(256, _HALF, 1536, 1024, Tile(64, 128, 64, 1, 4, 6, num_programs_k=4)),
    _Row(256, _HALF_INT8, 1536, 1024, Tile(64, 64, 64, 1, 4, 3, num_programs_k=3)),
    _Row(256, _HALF_INT8, 1536, _ANY, Tile(64, 32, 64, 1, 4, 3)),
    _Row(256, _HALF_INT8, _ANY, _ANY, Tile(64, 64, 64, 1, 4, 3)),
    # The same for more programs: two fit on a multiprocessor.
    _Row(1024, _HALF, 1536, 1024, Tile(64, 64, 64, 1, 4, 4)),
    _Row(1024, _HALF, _ANY, 1024, Tile(64, 128, 64, 1, 4, 4)),
    _Row(1024, _HALF, 1536, 2048, Tile(64, 128, 64, 1, 4, 4, num_programs_k=2)),
    # Many rows: reading tiles from the L2 cache is the limit. 128 registers, so that two programs fit; 256 outputs a
    # program would spill registers, but of q, k and v.
    _Row(_ANY, _HALF, 1536, _ANY, Tile(128, 128, 64, 1, 8, 3, max_registers=128)),
    _Row(_ANY, _HALF, 2560, 1024, Tile(128, 256, 64, 1, 8, 3)),
    _Row(_ANY, _HALF, _ANY, _ANY, Tile(128, 128, 64, 1, 8, 3, max_registers=128)),
    _Row(_ANY, (torch.int8,), _ANY, _ANY, Tile(128, 128, 64, 1, 8, 3)),
)


def tile_of(
    num_rows: int, num_outputs: int, num_inputs: int, weight_dtype: torch.dtype, num_programs_k: int = 1
) -> Tile:
    """Return the launch parameters of a product [M, K] x [K, N].

    Args:
        num_rows: M.
        num_outputs: N.
        num_inputs: K.
        weight_dtype: of the weights.
        num_programs_k: programs that share K: 1, or what `num_partials` returns.
    """
    share = num_inputs // num_programs_k
    if INTERPRETING:
        block_n = min(512, triton.next_power_of_2(num_outputs))
        if num_rows <= _INTERPRETED_WHOLE_ROWS:
            return _resolved(Tile(triton.next_power_of_2(num_rows), block_n, WHOLE, 2, 1, 1), share)
        return Tile(64, block_n, 256, 1, 1, 1)
    return _resolved(_entry(num_rows, num_outputs, num_inputs, weight_dtype, may_share=num_programs_k > 1), share)


def num_partials(num_rows: int, num_outputs: int, num_inputs: int, weight_dtype: torch.dtype) -> int:
    """Return how many programs should share K: as many sums remain to be added. 1 if a program takes all inputs.

    Args:
        num_rows: M.
        num_outputs: N.
        num_inputs: K.
        weight_dtype: of the weights.
    """
    parts = _INTERPRETED_PARTIALS
    if not INTERPRETING:
        parts = _entry(num_rows, num_outputs, num_inputs, weight_dtype, may_share=True).num_programs_k
    return parts if num_inputs % (16 * parts) == 0 else 1


def most_partial_rows(num_rows: int) -> int:
    """Return the most rows of partial sums, P * M, that products of up to `num_rows` rows leave to be added."""
    if INTERPRETING:
        return _INTERPRETED_PARTIALS * num_rows
    return max(row.tile.num_programs_k * min(row.max_rows, num_rows) for row in _TABLE if row.tile.num_programs_k > 1)


def _entry(
    num_rows: int,
    num_outputs: int,
    num_inputs: int,
    weight_dtype: torch.dtype,
    *,
    may_share: bool,
) -> Tile:
    return next(
        row.tile
        for row in _TABLE
        if num_rows <= row.max_rows
        and weight_dtype in row.dtypes
        and num_outputs <= row.max_outputs
        and num_inputs <= row.max_inputs * row.tile.num_programs_k
        and (may_share or row.tile.num_programs_k == 1)
        and _shared_bytes(_resolved(row.tile, num_inputs // row.tile.num_programs_k)) <= shared_bytes_of_gpu()
    )


@lru_cache(maxsize=1)
def shared_bytes_of_gpu() -> int:
    """Return the shared memory that a program may have: of the current GPU, or without one of an H100."""
    if not torch.cuda.is_available():
        return 227 * 1024
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return int(getattr(properties, "shared_memory_per_block_optin"))  # noqa: B009 - torch's stubs lack it


def _shared_bytes(found: Tile) -> int:
    """Return the shared memory that a tile of 16-bit operands takes."""
    rows, weights = found.block_m * found.block_k * found.split_k, found.block_n * found.block_k * found.split_k
    return 2 * max(rows, weights) if found.whole else 2 * (rows + weights) * found.num_stages


def _resolved(found: Tile, num_inputs: int) -> Tile:
    """Return the tile with the number of inputs that WHOLE stands for."""
    if found.block_k != WHOLE:
        return found
    part = triton.next_power_of_2(triton.cdiv(num_inputs, found.split_k))
    return found._replace(block_k=max(16, part), whole=True)
