"""Attention over the paged KV cache, split over keys if asked for, and the combination of the splits.

out[q] = sum_j softmax_j(q . k_j) v_j over the keys j with p - window < j <= p

Here p = context_len + i is the index of query i of its session. There is no factor 1 / sqrt(head_dim): GPT-Neo omits
it. Key j of a session is stored in slot j + start_offset of the session's pages, in page table order. Scores and the
softmax are float32; q and the probabilities are rounded to the cache's dtype for the products.

Shapes: R rows (new tokens of a step), S sessions, P entries of a page table, H = heads * head_dim.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference import attention, key_ages
from .launch import INTERPRETING, KV_DTYPES, PAGE_SIZE, check, check_dimensions, launch_and_wait, triton_dtype

_PAGE_SIZE = tl.constexpr(PAGE_SIZE)
_NO_KEY = tl.constexpr(float("-inf"))


def paged_attention_reference(
    q: Tensor,
    kv_layer: Tensor,
    page_table: Tensor,
    query_start: Tensor,
    context_lens: Tensor,
    start_offsets: Tensor,
    window: int,
) -> Tensor:
    """Return [R, H] in q's dtype; rows of no session are NaN."""
    heads, head_dim = kv_layer.shape[2], kv_layer.shape[4]
    out = torch.full_like(q, torch.nan)
    for session in range(len(context_lens)):
        first, end = int(query_start[session]), int(query_start[session + 1])
        if first == end:
            continue
        context = int(context_lens[session])
        slot = torch.arange(context + end - first, device=q.device) + int(start_offsets[session])
        pages = page_table[session, slot // PAGE_SIZE].long()
        k, v = kv_layer[pages, :, :, slot % PAGE_SIZE].to(q.dtype).unbind(1)  # [keys, heads, head_dim]
        ages = key_ages(end - first, len(slot), q.device)
        out[first:end] = attention(q[first:end].view(-1, heads, head_dim), k, v, ages, window)
    return out


def combine_splits_reference(partial: Tensor, partial_max: Tensor, partial_sum: Tensor) -> Tensor:
    """Return sum_s exp(max_s - max) partial_s / sum_s exp(max_s - max) sum_s, [R, H].

    partial: [num_splits, R, heads, head_dim].
    """
    weight = (partial_max - partial_max.amax(0)).exp()
    return ((weight[..., None] * partial).sum(0) / (weight * partial_sum).sum(0)[..., None]).flatten(1)


class Config(NamedTuple):
    """Launch parameters of the attention kernel.

    Attributes:
        block_q: queries per program.
        block_keys: keys per iteration.
        num_warps: per program.
        num_stages: of the software pipeline over keys.
    """

    block_q: int
    block_keys: int
    num_warps: int
    num_stages: int


def config(max_queries: int, head_dim: int, kv_dtype: torch.dtype) -> Config:
    """Return launch parameters for sessions of up to `max_queries` rows."""
    block_q = 16 if max_queries <= 16 else 32  # 64 would halve the number of programs
    if INTERPRETING:
        return Config(block_q, 64, 1, 1)
    if kv_dtype == torch.float32:
        return Config(16, 32 if head_dim > 64 else 64, 4, 2)
    return Config(block_q, 64, 4, 3 if head_dim <= 64 else 2)


@triton.jit(do_not_specialize=["num_rows", "pages_per_session", "window"])
def _paged_attention_kernel(
    q_ptr,  # [R, HEADS * HEAD_DIM] float32
    kv_layer_ptr,  # [pages, 2, HEADS, 16, HEAD_DIM]
    page_table_ptr,  # [S, pages_per_session]
    query_start_ptr,  # [S + 1]
    context_lens_ptr,  # [S]
    start_offsets_ptr,  # [S]
    out_ptr,  # [R, HEADS * HEAD_DIM], with NUM_SPLITS == 1
    partial_ptr,  # [NUM_SPLITS, R, HEADS, HEAD_DIM] float32, with NUM_SPLITS > 1
    partial_max_ptr,  # [NUM_SPLITS, R, HEADS] float32
    partial_sum_ptr,  # [NUM_SPLITS, R, HEADS] float32
    num_rows,
    pages_per_session,
    window,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DTYPE: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    # One program: one head of one session, one block of its queries, one range of the blocks of keys they see.
    session = tl.program_id(0) // HEADS
    head = tl.program_id(0) % HEADS
    split = tl.program_id(1)
    first_query = tl.program_id(2) * BLOCK_Q
    launch_and_wait(USE_PDL)

    first_row = tl.load(query_start_ptr + session)
    num_queries = tl.load(query_start_ptr + session + 1) - first_row
    if first_query >= num_queries:
        return
    context = tl.load(context_lens_ptr + session)
    start_offset = tl.load(start_offsets_ptr + session)

    d = tl.arange(0, BLOCK_D)
    i = first_query + tl.arange(0, BLOCK_Q)
    in_queries = i < num_queries
    row = first_row + i
    row_d = row.to(tl.int64)[:, None] * (HEADS * HEAD_DIM) + head * HEAD_DIM + d[None, :]
    mask_d = in_queries[:, None] & (d < HEAD_DIM)[None, :]
    q = tl.load(q_ptr + row_d, mask=mask_d, other=0.0).to(DTYPE)
    position = context + i  # key index of the query itself

    # Slots of the keys that any query of this block sees, in whole blocks from slot 0, and this split's share.
    first_slot = tl.maximum(context + first_query - window + 1, 0) + start_offset
    end_slot = context + tl.minimum(first_query + BLOCK_Q, num_queries) + start_offset
    first_block = first_slot // BLOCK_KEYS
    num_blocks = tl.cdiv(end_slot, BLOCK_KEYS) - first_block
    blocks_per_split = tl.cdiv(num_blocks, NUM_SPLITS)
    begin = first_block + split * blocks_per_split
    end = first_block + tl.minimum((split + 1) * blocks_per_split, num_blocks)

    running_max = tl.full([BLOCK_Q], _NO_KEY, tl.float32)
    running_sum = tl.zeros([BLOCK_Q], tl.float32)
    acc = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    for block in range(begin, end):
        slot = block * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
        # Slots outside hold other tokens or garbage. They are not read: 0 * NaN would be NaN.
        in_slots = (slot >= first_slot) & (slot < end_slot)
        page = tl.load(page_table_ptr + session * pages_per_session + slot // _PAGE_SIZE, mask=in_slots, other=0)
        page_start = page.to(tl.int64) * (2 * HEADS * _PAGE_SIZE * HEAD_DIM) + head * (_PAGE_SIZE * HEAD_DIM)
        key_ptr = kv_layer_ptr + page_start[:, None] + ((slot % _PAGE_SIZE) * HEAD_DIM)[:, None] + d[None, :]
        mask = in_slots[:, None] & (d < HEAD_DIM)[None, :]
        k = tl.load(key_ptr, mask=mask, other=0.0)
        v = tl.load(key_ptr + HEADS * _PAGE_SIZE * HEAD_DIM, mask=mask, other=0.0)

        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        age = position[:, None] - (slot - start_offset)[None, :]
        scores = tl.where((age >= 0) & (age < window) & in_slots[None, :], scores, _NO_KEY)

        # If a query has seen no key so far, its maximum is -inf, and -inf - -inf would be NaN.
        new_max = tl.maximum(running_max, tl.max(scores, 1))
        finite_max = tl.where(new_max == _NO_KEY, 0.0, new_max)
        probability = tl.exp(scores - finite_max[:, None])
        correction = tl.exp(running_max - finite_max)
        running_sum = running_sum * correction + tl.sum(probability, 1)
        acc = tl.dot(probability.to(DTYPE), v, acc * correction[:, None], input_precision="ieee")
        running_max = new_max

    if NUM_SPLITS == 1:
        tl.store(out_ptr + row_d, acc / tl.where(running_sum == 0.0, 1.0, running_sum)[:, None], mask=mask_d)
    else:
        offset = split.to(tl.int64) * num_rows
        tl.store(partial_ptr + offset * (HEADS * HEAD_DIM) + row_d, acc, mask=mask_d)
        row_head = (offset + row) * HEADS + head
        tl.store(partial_max_ptr + row_head, running_max, mask=in_queries)
        tl.store(partial_sum_ptr + row_head, running_sum, mask=in_queries)


@triton.jit
def combined(partial_ptr, partial_max_ptr, partial_sum_ptr, row_head, row_head_mask, d, mask, num_row_heads,
             HEAD_DIM: tl.constexpr, NUM_SPLITS: tl.constexpr):  # fmt: skip
    """Combine the splits, and return the normalised attention output, float32, of the shape of `mask`.

    row_head: row * heads + head. d: elements of a head. Both broadcast to the shape of `mask`; `row_head_mask` has the
    shape of `row_head`.
    """
    largest = tl.load(partial_max_ptr + row_head, mask=row_head_mask, other=0.0)
    for split in tl.static_range(1, NUM_SPLITS):
        offset = split * num_row_heads + row_head
        largest = tl.maximum(largest, tl.load(partial_max_ptr + offset, mask=row_head_mask, other=0.0))
    total = tl.zeros_like(largest)
    weighted = tl.zeros(mask.shape, tl.float32)
    for split in tl.static_range(NUM_SPLITS):
        # The weight of an empty split is exp(-inf) = 0. At least one is not empty: a row attends to its own key.
        offset = split * num_row_heads + row_head
        weight = tl.exp(tl.load(partial_max_ptr + offset, mask=row_head_mask, other=0.0) - largest)
        total += weight * tl.load(partial_sum_ptr + offset, mask=row_head_mask, other=1.0)
        weighted += weight * tl.load(partial_ptr + offset * HEAD_DIM + d, mask=mask, other=0.0)
    return weighted / tl.where(total == 0.0, 1.0, total)  # 0 for a row of no session


@triton.jit(do_not_specialize=["num_rows"])
def _combine_splits_kernel(
    partial_ptr,  # [NUM_SPLITS, num_rows, HEADS, HEAD_DIM] float32
    partial_max_ptr,  # [NUM_SPLITS, num_rows, HEADS] float32
    partial_sum_ptr,  # [NUM_SPLITS, num_rows, HEADS] float32
    out_ptr,  # [num_rows, HEADS * HEAD_DIM]
    num_rows,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    # One program: BLOCK_HEADS heads of one row.
    row = tl.program_id(0)
    head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)[:, None]
    d = tl.arange(0, BLOCK_D)[None, :]
    mask = (head < HEADS) & (d < HEAD_DIM)
    launch_and_wait(USE_PDL)

    out = combined(
        partial_ptr, partial_max_ptr, partial_sum_ptr, row * HEADS + head, head < HEADS, d, mask, num_rows * HEADS,
        HEAD_DIM, NUM_SPLITS,
    )  # fmt: skip
    tl.store(out_ptr + (row.to(tl.int64) * HEADS + head) * HEAD_DIM + d, out, mask=mask)


def check_partials(partial: Tensor | None, partial_max: Tensor | None, partial_sum: Tensor | None) -> None:
    """Check the tensors that splits are passed in, see `paged_attention`.

    Raises:
        ValueError: one is missing, or has another shape, dtype or device than expected.
    """
    for name, tensor in (("partial", partial), ("partial_max", partial_max), ("partial_sum", partial_sum)):
        if tensor is None:
            raise ValueError(f"{name}: expected a tensor for more than one split, got None")
    assert partial is not None
    assert partial_max is not None
    assert partial_sum is not None
    check_dimensions("partial", partial, 4)
    check("partial", partial, tuple(partial.shape), torch.float32, partial.device)
    check("partial_max", partial_max, tuple(partial.shape[:3]), torch.float32, partial.device)
    check("partial_sum", partial_sum, tuple(partial.shape[:3]), torch.float32, partial.device)
    if partial.numel() >= 2**31:
        raise ValueError(f"partial: expected fewer than 2^31 elements, got {partial.numel()}; use fewer splits")


def paged_attention(
    q: Tensor,
    kv_layer: Tensor,
    page_table: Tensor,
    query_start: Tensor,
    context_lens: Tensor,
    start_offsets: Tensor,
    window: int,
    out: Tensor,
    *,
    max_queries: int,
    num_splits: int = 1,
    partial: Tensor | None = None,
    partial_max: Tensor | None = None,
    partial_sum: Tensor | None = None,
    pdl: bool = False,
) -> None:
    """Compute the attention of all sessions' new tokens. Rows of no session are not written.

    Args:
        q: [R, H], float32.
        kv_layer: [pages, 2, heads, 16, head_dim], float32, bfloat16 or float16; includes the new tokens.
        page_table: [S, P], int32. Entries behind a session's last page are not read.
        query_start: [S + 1], int32: session s has the rows query_start[s] .. query_start[s + 1] - 1; a session without
            rows is padding.
        context_lens: [S], int32: cached tokens of a session before its new ones.
        start_offsets: [S], int32: slot of key 0 in the session's first page.
        window: keys that a query attends to, its own included; max_position_embeddings for a global layer.
        out: [R, H], float32, bfloat16 or float16; written if num_splits is 1, else not.
        max_queries: the most rows that a session has.
        num_splits: number of ranges that the visible keys of a session are divided into.
        partial: [num_splits, R, heads, head_dim], float32: sums of exp(score - max) v; written if num_splits > 1.
        partial_max: [num_splits, R, heads], float32: max of the scores, -inf for a range without keys.
        partial_sum: [num_splits, R, heads], float32: sum of exp(score - max), 0 for a range without keys.
        pdl: programmatic dependent launch, see `launch` (sm_90 or later).

    Raises:
        ValueError: an argument has another shape, dtype or device than above, or is not contiguous.
    """
    check_dimensions("q", q, 2)
    check_dimensions("kv_layer", kv_layer, 5)
    check_dimensions("page_table", page_table, 2)
    (rows, hidden), (sessions, pages_per_session), device = q.shape, page_table.shape, q.device
    pages, _, heads, _, head_dim = kv_layer.shape

    check("q", q, (rows, hidden), torch.float32, device)
    check("kv_layer", kv_layer, (pages, 2, heads, PAGE_SIZE, head_dim), KV_DTYPES, device)
    if heads * head_dim != hidden:
        raise ValueError(f"kv_layer: expected heads * head_dim = {hidden} (columns of q), got {heads} * {head_dim}")
    if not 16 <= head_dim <= 128:
        raise ValueError(f"kv_layer: expected head_dim 16 to 128, got {head_dim}")
    check("page_table", page_table, (sessions, pages_per_session), torch.int32, device)
    check("query_start", query_start, (sessions + 1,), torch.int32, device)
    check("context_lens", context_lens, (sessions,), torch.int32, device)
    check("start_offsets", start_offsets, (sessions,), torch.int32, device)
    check("out", out, (rows, hidden), KV_DTYPES, device)
    for name, value in (("window", window), ("max_queries", max_queries), ("num_splits", num_splits)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if num_splits > 1:
        check_partials(partial, partial_max, partial_sum)
        assert partial is not None
        check("partial", partial, (num_splits, rows, heads, head_dim), torch.float32, device)

    tile = config(max_queries, head_dim, kv_layer.dtype)
    _paged_attention_kernel[(sessions * heads, num_splits, triton.cdiv(max_queries, tile.block_q))](
        q, kv_layer, page_table, query_start, context_lens, start_offsets, out, partial, partial_max, partial_sum,
        rows, pages_per_session, window,
        HEADS=heads, HEAD_DIM=head_dim, NUM_SPLITS=num_splits,
        BLOCK_Q=tile.block_q, BLOCK_KEYS=tile.block_keys, BLOCK_D=triton.next_power_of_2(head_dim),
        DTYPE=triton_dtype(kv_layer.dtype), USE_PDL=pdl,
        num_warps=tile.num_warps, num_stages=tile.num_stages, launch_pdl=pdl,
    )  # fmt: skip


def combine_splits(
    partial: Tensor, partial_max: Tensor, partial_sum: Tensor, out: Tensor, *, pdl: bool = False
) -> None:
    """Combine the splits that `paged_attention` wrote. Rows of no session are undefined.

    Args:
        partial: [num_splits, R, heads, head_dim], float32, as in `paged_attention`.
        partial_max: [num_splits, R, heads], float32, as in `paged_attention`.
        partial_sum: [num_splits, R, heads], float32, as in `paged_attention`.
        out: [R, H], float32, bfloat16 or float16; written.
        pdl: programmatic dependent launch, see `launch` (sm_90 or later).

    Raises:
        ValueError: an argument has another shape, dtype or device than above, or is not contiguous.
    """
    check_partials(partial, partial_max, partial_sum)
    splits, rows, heads, head_dim = partial.shape
    check("out", out, (rows, heads * head_dim), KV_DTYPES, partial.device)
    block_heads = triton.next_power_of_2(heads) if INTERPRETING else 4
    _combine_splits_kernel[(rows, triton.cdiv(heads, block_heads))](
        partial, partial_max, partial_sum, out, rows,
        HEADS=heads, HEAD_DIM=head_dim, NUM_SPLITS=splits,
        BLOCK_HEADS=block_heads, BLOCK_D=triton.next_power_of_2(head_dim), USE_PDL=pdl,
        num_warps=4, launch_pdl=pdl,
    )  # fmt: skip
