"""Attention over the paged KV cache.

out[q] = sum_j softmax_j(q . k_j) v_j over the keys j with p - window < j <= p

Here p = context_len + i is the index of query i of its session. There is no factor 1 / sqrt(head_dim): GPT-Neo omits
it. Key j of a session is stored in slot j + start_offset of the session's pages, in page table order. Scores and the
softmax are float32; q and the probabilities are rounded to the cache's dtype for the products.

A quantised cache has a kernel of its own, see `quantized_attention`, and so have prompts, see `prompt_attention`.

Shapes: R rows (new tokens of a step), S sessions, P entries of a page table, H = heads * head_dim.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ..reference import attention, key_ages
from . import prompt_attention, quantized_attention
from .few_rows import sum_parts
from .launch import INTERPRETING, KV_DTYPES, MAX_QUERIES, PAGE_SIZE, check, check_dimensions, triton_dtype
from .splits import Splits

_PAGE_SIZE = tl.constexpr(PAGE_SIZE)
_PAGE_SHIFT = tl.constexpr(PAGE_SIZE.bit_length() - 1)
_WARPS = 4
_FEW_PROGRAMS = ((24, 8),)
"""Up to so many programs have so many warps instead, and loads in flight."""
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


class Config(NamedTuple):
    """Launch parameters of the attention kernel.

    Attributes:
        block_q: rows of a tile of scores, at least `MAX_QUERIES`.
        num_warps: per program; each has its own keys, a page at a time.
        num_stages: of the software pipeline over keys: tiles in flight, and the one that is computed.
    """

    block_q: int
    num_warps: int
    num_stages: int


def config(kv_dtype: torch.dtype, num_programs: int) -> Config:
    """Return launch parameters of so many programs for a cache of this dtype."""
    warps = next((warps for most, warps in _FEW_PROGRAMS if num_programs <= most), _WARPS)
    if INTERPRETING:
        return Config(MAX_QUERIES, warps, 1)
    if kv_dtype == torch.float32:
        return Config(MAX_QUERIES, _WARPS, 2)
    return Config(16, warps, 3)  # 16 rows: a product of the tensor cores


@triton.jit
def _prefetch_pages(head_ptr, page, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Prefetch keys and values of a head from pages [WARPS] into the L2 cache, one 128-byte line per element."""
    PAGE_LINES: tl.constexpr = _PAGE_SIZE * HEAD_DIM * head_ptr.dtype.element_ty.primitive_bitwidth // 1024
    LINE: tl.constexpr = 1024 // head_ptr.dtype.element_ty.primitive_bitwidth
    BLOCK: tl.constexpr = triton.next_power_of_2(2 * PAGE_LINES)
    line = tl.arange(0, BLOCK)
    part = tl.minimum(line // PAGE_LINES, 1)
    offset = part * (HEADS * _PAGE_SIZE * HEAD_DIM) + (line - part * PAGE_LINES) % PAGE_LINES * LINE
    pointers = head_ptr + page.to(tl.int64)[:, None] * (2 * HEADS * _PAGE_SIZE * HEAD_DIM) + offset[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [pointers.to(tl.int64)], dtype=tl.int32, is_pure=False,
        pack=1,
    )  # fmt: skip


@triton.jit(do_not_specialize=["pages_per_session", "window"])
def _paged_attention_kernel(
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
    BLOCK_D: tl.constexpr,
    WARPS: tl.constexpr,
    DTYPE: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    # One program: one head of one session. A tile is one page for each warp.
    pair = tl.program_id(0)
    PART: tl.constexpr = HEADS * _PAGE_SIZE * HEAD_DIM  # keys of a page, behind which its values lie
    PAGE: tl.constexpr = 2 * PART
    session = pair // HEADS
    head = pair % HEADS
    if USE_PDL:
        gdc_launch_dependents()

    # No kernel of the step writes the inputs, nor the slots of cached tokens: they are read before the wait.
    first_row = tl.load(query_start_ptr + session)
    num_queries = tl.load(query_start_ptr + session + 1) - first_row
    context = tl.load(context_lens_ptr + session)
    start_offset = tl.load(start_offsets_ptr + session)

    # Slots of the keys that any query sees, and their pages.
    first_slot = tl.maximum(context - window + 1, 0) + start_offset
    end_slot = context + num_queries + start_offset
    begin = first_slot >> _PAGE_SHIFT
    end = tl.where(num_queries > 0, ((end_slot - 1) >> _PAGE_SHIFT) + 1, begin)

    warp = tl.arange(0, WARPS)
    table_ptr = page_table_ptr + session * pages_per_session + warp
    head_ptr = kv_layer_ptr + head * (_PAGE_SIZE * HEAD_DIM)
    page = tl.load(table_ptr + begin, mask=begin + warp < end, other=0)
    if USE_PDL:
        _prefetch_pages(head_ptr, page, HEADS, HEAD_DIM)
        if WARPS > 4:  # few programs, whose latency counts
            second = tl.load(table_ptr + begin + WARPS, mask=begin + WARPS + warp < end, other=0)
            _prefetch_pages(head_ptr, second, HEADS, HEAD_DIM)
        gdc_wait()
    if num_queries <= 0:
        return

    d = tl.arange(0, BLOCK_D)
    i = tl.arange(0, BLOCK_Q)
    token = tl.arange(0, _PAGE_SIZE)
    in_queries = i < num_queries
    row = first_row + i
    row_d = row.to(tl.int64)[:, None] * (HEADS * HEAD_DIM) + head * HEAD_DIM + d[None, :]
    mask_d = in_queries[:, None] & (d < HEAD_DIM)[None, :]
    q = tl.load(q_ptr + row_d, mask=mask_d, other=0.0).to(DTYPE)
    q = tl.broadcast_to(q[None, :, :], [WARPS, BLOCK_Q, BLOCK_D])

    # A query sees the slots newest - window + 1 to newest.
    newest = (context + start_offset + i)[None, :, None]
    oldest = tl.maximum(newest - window + 1, start_offset)

    within_page = (token * HEAD_DIM)[None, :, None] + d[None, None, :]
    running_max = tl.full([WARPS, BLOCK_Q], _NO_KEY, tl.float32)
    running_sum = tl.zeros([WARPS, BLOCK_Q], tl.float32)
    acc = tl.zeros([WARPS, BLOCK_Q, BLOCK_D], tl.float32)
    for tile in range(begin, end, WARPS):
        slot = ((tile + warp) << _PAGE_SHIFT)[:, None] + token[None, :]
        # Slots outside hold other tokens or garbage. They are not read: 0 * NaN would be NaN.
        in_slots = (slot >= first_slot) & (slot < end_slot)
        mask = in_slots[:, :, None]
        if BLOCK_D != HEAD_DIM:
            mask = mask & (d < HEAD_DIM)[None, None, :]
        page_index = page.to(tl.int64)
        key_ptr = (head_ptr + page_index * PAGE)[:, None, None] + within_page
        k = tl.load(key_ptr, mask=mask, other=0.0)
        v = tl.load(key_ptr + PART, mask=mask, other=0.0)
        # Of the next tile: so loads of keys never wait for an entry of the page table.
        following = tile + WARPS
        page = tl.load(table_ptr + following, mask=following + warp < end, other=0)

        scores = tl.dot(q, tl.permute(k.to(DTYPE), (0, 2, 1)), input_precision="ieee")  # [W, Q, 16]
        slot = slot[:, None, :]
        scores = tl.where((slot >= oldest) & (slot <= newest), scores, _NO_KEY)

        # If a query has seen no key so far, its maximum is -inf, and -inf - -inf would be NaN.
        new_max = tl.maximum(running_max, tl.max(scores, 2))
        finite_max = tl.where(new_max == _NO_KEY, 0.0, new_max)
        probability = tl.exp(scores - finite_max[:, :, None])
        correction = tl.exp(running_max - finite_max)
        acc = tl.dot(probability.to(DTYPE), v.to(DTYPE), acc * correction[:, :, None], input_precision="ieee")
        running_sum = running_sum * correction + tl.sum(probability, 2)
        running_max = new_max

    # The warps' softmaxes become one.
    largest = tl.max(running_max, 0)
    finite_max = tl.where(largest == _NO_KEY, 0.0, largest)
    weight = tl.exp(running_max - finite_max[None, :])
    total = tl.sum(running_sum * weight, 0)
    weighted = sum_parts(acc * weight[:, :, None])

    tl.store(out_ptr + row_d, weighted / tl.where(total == 0.0, 1.0, total)[:, None], mask=mask_d)


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
    scales: Tensor | None = None,
    new_kv: Tensor | None = None,
    splits: Splits | None = None,
    pdl: bool = False,
) -> None:
    """Compute the attention of all sessions' new tokens. Rows of no session are not written.

    Args:
        q: [R, H], float32.
        kv_layer: [pages, 2, heads, 16, head_dim], float32, bfloat16 or float16; includes the new tokens. Or
            float8_e4m3fn (sm_89 or newer), to which the new tokens are added, see `quantized_attention`.
        page_table: [S, P], int32. Entries behind a session's last page are not read.
        query_start: [S + 1], int32: session s has the rows query_start[s] .. query_start[s + 1] - 1; a session without
            rows is padding.
        context_lens: [S], int32: cached tokens of a session before its new ones.
        start_offsets: [S], int32: slot of key 0 in the session's first page.
        window: keys that a query attends to, its own included; max_position_embeddings for a global layer.
        out: [R, H], float32, bfloat16 or float16; written.
        max_queries: the most rows that a session has: up to `MAX_QUERIES`, or `MAX_PROMPT_QUERIES` without float8.
        scales: [pages, heads, 2, 16], uint8, for float8 only: of keys and values, the exponents of powers of two, plus
            127. Those of the new tokens are written; 255 stands for numbers that are not finite.
        new_kv: [ceil(R / 16), 2, heads, 16, head_dim], float32, bfloat16 or float16, for float8 only: keys and values
            of row r at [r // 16, :, :, r % 16].
        splits: of the visible keys of a session, for float8 only, see `Splits`.
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
    check("kv_layer", kv_layer, (pages, 2, heads, PAGE_SIZE, head_dim), (*KV_DTYPES, torch.float8_e4m3fn), device)
    is_quantized = kv_layer.dtype == torch.float8_e4m3fn
    for name, tensor in (("scales", scales), ("new_kv", new_kv)):
        if (tensor is not None) != is_quantized:
            got = "none" if tensor is None else "one"
            raise ValueError(f"{name}: expected one for float8 pages and none otherwise, got {got}, {kv_layer.dtype}")
    if scales is not None and new_kv is not None:
        check("scales", scales, (pages, heads, 2, PAGE_SIZE), torch.uint8, device)
        new_pages = triton.cdiv(rows, PAGE_SIZE)
        check("new_kv", new_kv, (new_pages, 2, heads, PAGE_SIZE, head_dim), KV_DTYPES, device)
    if heads * head_dim != hidden:
        raise ValueError(f"kv_layer: expected heads * head_dim = {hidden} (columns of q), got {heads} * {head_dim}")
    if not 16 <= head_dim <= 128:
        raise ValueError(f"kv_layer: expected head_dim 16 to 128, got {head_dim}")
    most = MAX_QUERIES if is_quantized else prompt_attention.MAX_PROMPT_QUERIES
    if max_queries > most:
        raise ValueError(f"max_queries: expected at most {most} for {kv_layer.dtype} pages, got {max_queries}")
    check("page_table", page_table, (sessions, pages_per_session), torch.int32, device)
    check("query_start", query_start, (sessions + 1,), torch.int32, device)
    check("context_lens", context_lens, (sessions,), torch.int32, device)
    check("start_offsets", start_offsets, (sessions,), torch.int32, device)
    check("out", out, (rows, hidden), KV_DTYPES, device)
    for name, value in (("window", window), ("max_queries", max_queries)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if splits is not None:
        if not is_quantized:
            raise ValueError(f"splits: expected None for {kv_layer.dtype} pages, whose programs take all keys")
        splits.check(rows, sessions, heads, head_dim, device)

    if scales is not None and new_kv is not None:
        quantized_attention.launch(
            q, kv_layer, scales, new_kv, page_table, query_start, context_lens, start_offsets, out, splits,
            window=window, pdl=pdl,
        )  # fmt: skip
        return
    if max_queries > MAX_QUERIES:
        prompt_attention.launch(
            q, kv_layer, page_table, query_start, context_lens, start_offsets, out,
            window=window, max_queries=max_queries, pdl=pdl,
        )  # fmt: skip
        return
    tile = config(kv_layer.dtype, sessions * heads)
    _paged_attention_kernel[(sessions * heads,)](
        q, kv_layer, page_table, query_start, context_lens, start_offsets, out, pages_per_session, window,
        HEADS=heads, HEAD_DIM=head_dim,
        BLOCK_Q=tile.block_q, BLOCK_D=triton.next_power_of_2(head_dim), WARPS=tile.num_warps,
        DTYPE=triton_dtype(kv_layer.dtype), USE_PDL=pdl,
        num_warps=tile.num_warps, num_stages=tile.num_stages, launch_pdl=pdl,
    )  # fmt: skip
