"""Attention of prompts: tens of new tokens of a session at once, over the paged KV cache.

It computes what `paged_attention` does, whose file has the formula, for sessions with more rows than an agent's step
has. There a program's time goes into loads of keys; here into products, so that all warps of a program share the keys,
and a tile of scores has as many rows as the tensor cores take at once. A longer prompt is several sessions with the
same pages: the second one's context are the first one's tokens, which an earlier kernel of the step has written.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import INTERPRETING, PAGE_SIZE, launch_and_wait, triton_dtype

MAX_PROMPT_QUERIES = 64
"""Most rows that a session of a prompt may have."""

_PAGE_SIZE = tl.constexpr(PAGE_SIZE)
_PAGE_SHIFT = tl.constexpr(PAGE_SIZE.bit_length() - 1)
_NO_KEY = tl.constexpr(float("-inf"))


class Config(NamedTuple):
    """Launch parameters.

    Attributes:
        block_q: queries of a program; blocks of a session's queries are programs.
        block_k: keys per iteration, whole pages.
        num_warps: per program.
        num_stages: of the software pipeline over keys: loads in flight, and the tile that is computed.
    """

    block_q: int
    block_k: int
    num_warps: int
    num_stages: int


def config(kv_dtype: torch.dtype, head_dim: int) -> Config:
    """Return launch parameters for a cache of this dtype."""
    if INTERPRETING:
        return Config(32, 32, 1, 1)
    if kv_dtype == torch.float32:
        return Config(16, 32 if head_dim > 64 else 64, 4, 2)
    # 64 queries would fill half as many programs, and a step has 256 rows at most.
    return Config(32, 64, 4, 3 if head_dim <= 64 else 2)


@triton.jit(do_not_specialize=["pages_per_session", "window"])
def _prompt_attention_kernel(
    q_ptr,  # [R, HEADS * HEAD_DIM] float32
    kv_layer_ptr,  # [pages, 2, HEADS, 16, HEAD_DIM]
    page_table_ptr,  # [S, pages_per_session]
    query_start_ptr,  # [S + 1]
    context_lens_ptr,  # [S]
    start_offsets_ptr,  # [S]
    out_ptr,  # [R, HEADS * HEAD_DIM]
    pages_per_session,
    window,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DTYPE: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    # One program: one head of BLOCK_Q queries of one session.
    pair = tl.program_id(0)
    PART: tl.constexpr = HEADS * _PAGE_SIZE * HEAD_DIM  # keys of a page, behind which its values lie
    PAGE: tl.constexpr = 2 * PART
    session = pair // HEADS
    head = pair % HEADS
    launch_and_wait(USE_PDL)

    first_query = tl.program_id(1) * BLOCK_Q
    first_row = tl.load(query_start_ptr + session) + first_query
    num_queries = tl.load(query_start_ptr + session + 1) - first_row
    if num_queries <= 0:
        return
    num_queries = tl.minimum(num_queries, BLOCK_Q)
    context = tl.load(context_lens_ptr + session) + first_query
    start_offset = tl.load(start_offsets_ptr + session)

    d = tl.arange(0, BLOCK_D)
    i = tl.arange(0, BLOCK_Q)
    key = tl.arange(0, BLOCK_K)
    in_head = (d < HEAD_DIM)[None, :]
    row_d = (first_row + i).to(tl.int64)[:, None] * (HEADS * HEAD_DIM) + head * HEAD_DIM + d[None, :]
    mask_d = (i < num_queries)[:, None] & in_head
    q = tl.load(q_ptr + row_d, mask=mask_d, other=0.0).to(DTYPE)

    # Slots of the keys that any query sees. A query sees the slots newest - window + 1 to newest.
    first_slot = tl.maximum(context - window + 1, 0) + start_offset
    end_slot = context + num_queries + start_offset
    newest = (context + start_offset + i)[:, None]
    oldest = tl.maximum(newest - window + 1, start_offset)

    table_ptr = page_table_ptr + session * pages_per_session
    head_ptr = kv_layer_ptr + head * (_PAGE_SIZE * HEAD_DIM)
    within_page = ((key % _PAGE_SIZE) * HEAD_DIM)[:, None] + d[None, :]
    begin = first_slot >> _PAGE_SHIFT << _PAGE_SHIFT
    page = tl.load(table_ptr + ((begin + key) >> _PAGE_SHIFT), mask=begin + key < end_slot, other=0)
    running_max = tl.full([BLOCK_Q], _NO_KEY, tl.float32)
    running_sum = tl.zeros([BLOCK_Q], tl.float32)
    acc = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    for tile in range(begin, end_slot, BLOCK_K):
        slot = tile + key
        # Slots outside hold other tokens or garbage. They are not read: 0 * NaN would be NaN.
        mask = ((slot >= first_slot) & (slot < end_slot))[:, None]
        if BLOCK_D != HEAD_DIM:
            mask = mask & in_head
        key_ptr = head_ptr + (page.to(tl.int64) * PAGE)[:, None] + within_page
        k = tl.load(key_ptr, mask=mask, other=0.0)
        v = tl.load(key_ptr + PART, mask=mask, other=0.0)
        # Of the next tile: so loads of keys never wait for an entry of the page table.
        following = slot + BLOCK_K
        page = tl.load(table_ptr + (following >> _PAGE_SHIFT), mask=following < end_slot, other=0)

        scores = tl.dot(q, tl.trans(k.to(DTYPE)), input_precision="ieee")
        scores = tl.where((slot[None, :] >= oldest) & (slot[None, :] <= newest), scores, _NO_KEY)

        # If a query has seen no key so far, its maximum is -inf, and -inf - -inf would be NaN.
        new_max = tl.maximum(running_max, tl.max(scores, 1))
        finite_max = tl.where(new_max == _NO_KEY, 0.0, new_max)
        probability = tl.exp(scores - finite_max[:, None])
        correction = tl.exp(running_max - finite_max)
        acc = tl.dot(probability.to(DTYPE), v.to(DTYPE), acc * correction[:, None], input_precision="ieee")
        running_sum = running_sum * correction + tl.sum(probability, 1)
        running_max = new_max

    # A query behind the last one of the session has keys too, of scores 0: its result is not written.
    tl.store(out_ptr + row_d, acc / tl.where(running_sum == 0.0, 1.0, running_sum)[:, None], mask=mask_d)


def launch(
    q: Tensor,
    kv_layer: Tensor,
    page_table: Tensor,
    query_start: Tensor,
    context_lens: Tensor,
    start_offsets: Tensor,
    out: Tensor,
    *,
    window: int,
    max_queries: int,
    pdl: bool,
) -> None:
    """Compute what `paged_attention` promises for up to `MAX_PROMPT_QUERIES` rows, of arguments that it has checked."""
    (sessions, pages_per_session), (_, _, heads, _, head_dim) = page_table.shape, kv_layer.shape
    tile = config(kv_layer.dtype, head_dim)
    _prompt_attention_kernel[(sessions * heads, triton.cdiv(max_queries, tile.block_q))](
        q, kv_layer, page_table, query_start, context_lens, start_offsets, out, pages_per_session, window,
        HEADS=heads, HEAD_DIM=head_dim, BLOCK_Q=tile.block_q, BLOCK_K=tile.block_k,
        BLOCK_D=triton.next_power_of_2(head_dim), DTYPE=triton_dtype(kv_layer.dtype), USE_PDL=pdl,
        num_warps=tile.num_warps, num_stages=tile.num_stages, launch_pdl=pdl,
    )  # fmt: skip
