"""Attention over a KV cache in float8, quantised by the program that first attends to a token.

A cache of float8 has a scale per token and head, a power of two, since e4m3 is as precise at every size. A token counts
the same in every step, the one that adds it included. Products are computed in float16, which holds float8 exactly;
scales are applied to scores and probabilities. A page has its values as [head_dim, 16], so that the keys that a product
sums over are neighbours; all its numbers are finite, also those of slots without a token.

Shapes: see `attention`.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .launch import INTERPRETING, MAX_QUERIES, PAGE_SIZE
from .splits import Splits, combined

_PAGE_SIZE = tl.constexpr(PAGE_SIZE)
_PAGE_SHIFT = tl.constexpr(PAGE_SIZE.bit_length() - 1)
_MAX_QUERIES = tl.constexpr(MAX_QUERIES)
_BLOCK_Q = tl.constexpr(8)  # columns of a product of the tensor cores
_LN_2 = tl.constexpr(math.log(2))
_LOG2_E = tl.constexpr(math.log2(math.e))
_LEAST_SCALE = tl.constexpr(127 - 20)  # numbers below 2^-30 become 0; sums of probabilities / scale stay in range
_NO_KEY = tl.constexpr(float("-inf"))


def quantize_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x [..., D] as float8 e4m3, and the exponents of its scales [...], uint8.

    x is about float8 * 2^(exponent - 127); a row's largest number becomes 128 to 256.
    """
    largest = x.double().abs().amax(-1)
    exponent = torch.where(largest == 0, 0, torch.frexp(largest).exponent - 8 + 127).clamp(_LEAST_SCALE.value, 254)
    scaled = torch.ldexp(x.double(), 127 - exponent[..., None])
    return scaled.to(torch.float32).to(torch.float8_e4m3fn), exponent.to(torch.uint8)


def quantize_pages(kv: Tensor) -> tuple[Tensor, Tensor]:
    """Return pages as this kernel reads them, float8 of the shape of `kv`, and their scales [..., heads, 2, 16], uint8.

    Args:
        kv: [..., 2, heads, 16, head_dim].
    """
    pages, scales = quantize_reference(kv)
    values = pages[..., 1, :, :, :]
    values.copy_(values.mT.clone(memory_format=torch.contiguous_format).view(values.shape))
    return pages, scales.transpose(-3, -2).contiguous()


def dequantize_pages(pages: Tensor, scales: Tensor) -> Tensor:
    """Return keys and values, float32 [..., 2, heads, 16, head_dim], of what `quantize_pages` returned."""
    numbers = pages.float()
    values = numbers[..., 1, :, :, :]
    *outer, tokens, head_dim = values.shape
    values.copy_(values.clone(memory_format=torch.contiguous_format).view(*outer, head_dim, tokens).mT)
    exponents = scales.transpose(-3, -2)
    return numbers * torch.where(exponents == 255, torch.nan, torch.exp2(exponents.float() - 127))[..., None]


@triton.jit
def _power_of_two(exponent):
    """Return 2^(exponent - 127), float32, of an int32 exponent from 1 to 254; 255 gives NaN."""
    return ((exponent << 23) | (((exponent + 1) >> 8) << 22)).to(tl.float32, bitcast=True)


@triton.jit
def _quantize(x):
    """Return x [K, D], float32, as float8 e4m3, and its scales [K]: exponents, int32, as `_power_of_two` takes them.

    A row's largest number becomes 128 to 256. A row that is not finite gets the scale NaN.
    """
    largest = tl.max(tl.abs(x), 1) + 0.0 * tl.sum(x, 1)
    exponent = largest.to(tl.int32, bitcast=True) >> 23 & 255
    scale = tl.where(exponent == 255, 255, tl.maximum(exponent - 7, _LEAST_SCALE))
    scaled = x * _power_of_two(254 - scale)[:, None]
    # To the nearest multiple of the last place, an eighth of the power of two below, by float32's own rounding.
    place = tl.maximum(scaled.to(tl.int32, bitcast=True) >> 23 & 255, 127 - 6) + 20
    rounder = (place << 23 | 1 << 22).to(tl.float32, bitcast=True)  # 1.5 times a power of two: also for x < 0
    rounded = tl.where((scale == 255)[:, None], 0.0, (scaled + rounder) - rounder)
    return rounded.to(tl.float8e4nv), scale


@triton.jit
def _append(kv_layer_ptr, scales_ptr, new_kv_ptr, table_ptr, head, first_row, first_new, begin_slot, end_slot,
            HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """Quantise new keys and values of a head to their slots, those from `begin_slot` to `end_slot`.

    Row first_row + i of new_kv goes to slot first_new + i. The program attends to them as any later step will.
    """
    PART: tl.constexpr = HEADS * _PAGE_SIZE * HEAD_DIM
    d = tl.arange(0, BLOCK_D)
    slot = first_new + tl.arange(0, _MAX_QUERIES)
    is_new = (slot >= begin_slot) & (slot < end_slot)
    mask = is_new[:, None] & (d < HEAD_DIM)[None, :]
    row = first_row + tl.arange(0, _MAX_QUERIES)
    within_head = (head * (_PAGE_SIZE * HEAD_DIM) + d)[None, :]
    from_row = (row >> _PAGE_SHIFT).to(tl.int64) * (2 * PART) + (row % _PAGE_SIZE) * HEAD_DIM
    new_ptr = new_kv_ptr + from_row[:, None] + within_head
    page = tl.load(table_ptr + (slot >> _PAGE_SHIFT), mask=is_new, other=0).to(tl.int64)
    page_ptr = kv_layer_ptr + page[:, None] * (2 * PART) + head * (_PAGE_SIZE * HEAD_DIM)
    place = (slot % _PAGE_SIZE)[:, None]
    scale_ptr = scales_ptr + (page * HEADS + head) * (2 * _PAGE_SIZE) + slot % _PAGE_SIZE
    for part in tl.static_range(2):
        x, scale = _quantize(tl.load(new_ptr + part * PART, mask=mask, other=0.0).to(tl.float32))
        within_page = place * HEAD_DIM + d[None, :] if part == 0 else PART + d[None, :] * _PAGE_SIZE + place
        tl.store(page_ptr + within_page, x, mask=mask)
        tl.store(scale_ptr + part * _PAGE_SIZE, scale.to(tl.uint8), mask=is_new)
    tl.debug_barrier()  # the program's other threads read them


@triton.jit(do_not_specialize=["num_rows", "pages_per_session", "window"])
def _quantized_attention_kernel(
    q_ptr,  # [R, HEADS * HEAD_DIM] float32
    kv_layer_ptr,  # [pages, 2, HEADS, 16, HEAD_DIM], values as [HEAD_DIM, 16]
    scales_ptr,  # [pages, HEADS, 2, 16] uint8 exponents of powers of two
    new_kv_ptr,  # [ceil(R / 16), 2, HEADS, 16, HEAD_DIM]
    page_table_ptr,  # [S, pages_per_session]
    query_start_ptr,  # [S + 1]
    context_lens_ptr,  # [S]
    start_offsets_ptr,  # [S]
    out_ptr,  # [R, HEADS * HEAD_DIM]
    partial_ptr,  # [NUM_SPLITS, R, HEADS, HEAD_DIM] float32, with NUM_SPLITS > 1
    partial_max_ptr,  # [NUM_SPLITS, R, HEADS] float32
    partial_sum_ptr,  # [NUM_SPLITS, R, HEADS] float32
    arrivals_ptr,  # [S * HEADS] int32, zeros, with NUM_SPLITS > 1
    num_rows,
    pages_per_session,
    window,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    # One program of one warp: one head of one session, one range of the pages its queries see, two pages at a time.
    # Keys are rows of the products, and queries columns: a product has at least 16 rows, but only 8 columns.
    pair = tl.program_id(0)
    PART: tl.constexpr = HEADS * _PAGE_SIZE * HEAD_DIM  # keys of a page, behind which its values lie
    PAGE: tl.constexpr = 2 * PART
    TILE: tl.constexpr = 2 * _PAGE_SIZE
    session = pair // HEADS
    head = pair % HEADS
    split = tl.program_id(1)
    if USE_PDL:
        gdc_launch_dependents()

    # No kernel of the step writes the inputs, nor the slots of cached tokens: they are read before the wait.
    first_row = tl.load(query_start_ptr + session)
    num_queries = tl.load(query_start_ptr + session + 1) - first_row
    context = tl.load(context_lens_ptr + session)
    start_offset = tl.load(start_offsets_ptr + session)

    # Slots of the keys that any query sees, in whole pages, and this split's share of the pages.
    first_slot = tl.maximum(context - window + 1, 0) + start_offset
    end_slot = context + num_queries + start_offset
    first_page = first_slot >> _PAGE_SHIFT
    num_pages = tl.where(num_queries > 0, ((end_slot - 1) >> _PAGE_SHIFT) + 1 - first_page, 0)
    pages_per_split = tl.cdiv(num_pages, NUM_SPLITS)
    begin = first_page + split * pages_per_split
    end = first_page + tl.minimum((split + 1) * pages_per_split, num_pages)
    end_slot = tl.minimum(end_slot, end << _PAGE_SHIFT)

    # Page numbers are loaded a tile ahead of the scales, and these a tile ahead of their use.
    table_ptr = page_table_ptr + session * pages_per_session
    last = tl.where(num_queries > 0, end - 1, 0)
    page0 = tl.load(table_ptr + tl.minimum(begin, last))
    page1 = tl.load(table_ptr + tl.minimum(begin + 1, last))
    page2 = tl.load(table_ptr + tl.minimum(begin + 2, last))
    page3 = tl.load(table_ptr + tl.minimum(begin + 3, last))
    if USE_PDL:
        gdc_wait()
    if num_queries <= 0:
        return

    d = tl.arange(0, BLOCK_D)
    i = tl.arange(0, _BLOCK_Q)
    key = tl.arange(0, TILE)
    token = key % _PAGE_SIZE
    is_first = key < _PAGE_SIZE
    in_queries = i < num_queries
    row = first_row + i
    row_d = row.to(tl.int64)[:, None] * (HEADS * HEAD_DIM) + head * HEAD_DIM + d[None, :]
    mask_d = in_queries[:, None] & (d < HEAD_DIM)[None, :]
    q = tl.trans(tl.load(q_ptr + row_d, mask=mask_d, other=0.0).to(tl.float16))

    _append(
        kv_layer_ptr, scales_ptr, new_kv_ptr, table_ptr, head, first_row,
        context + start_offset, begin << _PAGE_SHIFT, end_slot, HEADS, HEAD_DIM, BLOCK_D,
    )  # fmt: skip

    # A query sees num_seen slots from the oldest, as far as they are this split's.
    newest = tl.minimum(context + start_offset + i, end_slot - 1)
    oldest = tl.maximum(context + start_offset + i - window + 1, start_offset)
    num_seen = tl.maximum(newest - oldest + 1, 0).to(tl.uint32)

    head_ptr = kv_layer_ptr + head * (_PAGE_SIZE * HEAD_DIM)
    scale_ptr = scales_ptr + head * (2 * _PAGE_SIZE) + token
    within_keys = (token * HEAD_DIM)[:, None] + d[None, :]
    within_values = PART + (d * _PAGE_SIZE)[:, None] + token[None, :]
    running_max = tl.full([_BLOCK_Q], _NO_KEY, tl.float32)
    running_sum = tl.zeros([TILE, _BLOCK_Q], tl.float32)
    acc = tl.zeros([BLOCK_D, _BLOCK_Q], tl.float32)
    scale_page = scale_ptr + tl.where(is_first, page0, page1).to(tl.int64) * (HEADS * 2 * _PAGE_SIZE)
    k_exponent = tl.load(scale_page)
    v_exponent = tl.load(scale_page + _PAGE_SIZE)
    for tile in range(begin, end, 2):
        # All numbers in pages are finite, also where no token is: a probability of 0 leaves nothing of them.
        page = tl.where(is_first, page0, page1).to(tl.int64)
        key_ptr = head_ptr + (page * PAGE)[:, None] + within_keys
        value_ptr = head_ptr + (page * PAGE)[None, :] + within_values
        if BLOCK_D == HEAD_DIM:
            k = tl.load(key_ptr)
            v = tl.load(value_ptr)
        else:
            k = tl.load(key_ptr, mask=(d < HEAD_DIM)[None, :], other=0.0)
            v = tl.load(value_ptr, mask=(d < HEAD_DIM)[:, None], other=0.0)
        scale_page = scale_ptr + tl.where(is_first, page2, page3).to(tl.int64) * (HEADS * 2 * _PAGE_SIZE)
        next_k_exponent = tl.load(scale_page)
        next_v_exponent = tl.load(scale_page + _PAGE_SIZE)
        page0 = page2
        page1 = page3
        page2 = tl.load(table_ptr + tl.minimum(tile + 4, last))
        page3 = tl.load(table_ptr + tl.minimum(tile + 5, last))

        scores = tl.dot(k.to(tl.float16), q)  # [TILE, Q]
        # Exponents 1 to 254 are those of a float32; 255 gives an infinity, and it times a product of zeros NaN.
        k_scale = (k_exponent.to(tl.int32) << 23).to(tl.float32, bitcast=True) * _LOG2_E
        v_exp = v_exponent.to(tl.int32)
        # A probability times its value's scale is one exponential, so that no value has to be multiplied.
        log_scale = v_exp.to(tl.float32) + 0.0 * (v_exp << 23).to(tl.float32, bitcast=True)
        scores = scores * k_scale[:, None] + log_scale[:, None]
        slot = tile * _PAGE_SIZE + key
        scores = tl.where((slot[:, None] - oldest[None, :]).to(tl.uint32) < num_seen[None, :], scores, _NO_KEY)

        # If a query has seen no key so far, its maximum is -inf, and -inf - -inf would be NaN.
        new_max = tl.maximum(running_max, tl.max(scores, 0))
        finite_max = tl.where(new_max == _NO_KEY, 0.0, new_max)
        probability = tl.exp2(scores - finite_max[None, :])
        correction = tl.exp2(running_max - finite_max)[None, :]
        acc = tl.dot(v.to(tl.float16), probability.to(tl.float16), acc * correction)
        inverse = (tl.maximum(254 - v_exp, 0) << 23).to(tl.float32, bitcast=True)
        running_sum = running_sum * correction + probability * inverse[:, None]
        running_max = new_max
        k_exponent = next_k_exponent
        v_exponent = next_v_exponent

    total = tl.sum(running_sum, 0)
    weighted = tl.trans(acc)
    if NUM_SPLITS == 1:
        tl.store(out_ptr + row_d, weighted / tl.where(total == 0.0, 1.0, total)[:, None], mask=mask_d)
    else:
        offset = split.to(tl.int64) * num_rows
        tl.store(partial_ptr + offset * (HEADS * HEAD_DIM) + row_d, weighted, mask=mask_d)
        row_head = (offset + row) * HEADS + head
        tl.store(partial_max_ptr + row_head, (running_max - 127) * _LN_2, mask=in_queries)
        tl.store(partial_sum_ptr + row_head, total, mask=in_queries)
        # The program that arrives last combines the splits, always in the same order.
        tl.debug_barrier()
        if tl.atomic_add(arrivals_ptr + pair, 1, sem="acq_rel") == NUM_SPLITS - 1:
            out = combined(
                partial_ptr, partial_max_ptr, partial_sum_ptr, (row * HEADS + head)[:, None], in_queries[:, None],
                d[None, :], mask_d, num_rows * HEADS, HEAD_DIM, NUM_SPLITS,
            )  # fmt: skip
            tl.store(out_ptr + row_d, out, mask=mask_d)
            tl.store(arrivals_ptr + pair, 0)


def launch(
    q: Tensor,
    kv_layer: Tensor,
    scales: Tensor,
    new_kv: Tensor,
    page_table: Tensor,
    query_start: Tensor,
    context_lens: Tensor,
    start_offsets: Tensor,
    out: Tensor,
    splits: Splits | None,
    *,
    window: int,
    pdl: bool,
) -> None:
    """Compute what `paged_attention` promises for float8 pages, of arguments that it has checked."""
    (sessions, pages_per_session), (_, _, heads, _, head_dim) = page_table.shape, kv_layer.shape
    num_splits = splits.number if splits else 1
    _quantized_attention_kernel[(sessions * heads, num_splits)](
        q, kv_layer, scales, new_kv, page_table, query_start, context_lens, start_offsets, out,
        *(splits or (None, None, None, None)), q.shape[0], pages_per_session, window,
        HEADS=heads, HEAD_DIM=head_dim, NUM_SPLITS=num_splits, BLOCK_D=triton.next_power_of_2(head_dim), USE_PDL=pdl,
        num_warps=1, num_stages=1 if INTERPRETING else 3, launch_pdl=pdl,
    )  # fmt: skip
