"""The linear layers of a block.

norm_linear      out = act(LN(x) W^T + b)
norm_qkv         q, k, v = LN(x) W^T; q to a buffer, k and v to the pages of the KV cache
linear_residual  x += a W^T + b

Weights are float32, bfloat16, float16, or int8 with one float32 scale per output. Activations are rounded to the
compute dtype (the weights' dtype; bfloat16 for int8) before a product; products accumulate in float32; x is float32.

Shapes: R rows, H hidden size, N outputs, K inputs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference import dequantize, gelu
from ..reference import layer_norm as layer_norm_reference
from ..reference import linear as linear_reference
from .activations import gelu_new
from .launch import (
    KV_DTYPES,
    PAGE_SIZE,
    WEIGHT_DTYPES,
    check,
    check_dimensions,
    check_scale,
    compute_dtype,
    triton_dtype,
)
from .norm import layer_norm
from .projection import product, scale_and_bias
from .tiles import num_partials, tile_of

_PAGE_SIZE = tl.constexpr(PAGE_SIZE)


def norm_linear_reference(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    with_gelu: bool,
) -> Tensor:
    """Return `norm_linear`'s result in x's dtype."""
    normed = layer_norm_reference(x, norm_weight, norm_bias)
    out = linear_reference(normed, dequantize(weight, scale, x.dtype), bias)
    return gelu(out) if with_gelu else out


def norm_qkv_reference(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    kv_layer: Tensor,
    slot_mapping: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return q, and the pages with the new keys and values.

    Raises:
        ValueError: two rows have the same slot, so that the kernel's result would be either's.
    """
    slots = [slot for slot in slot_mapping.tolist() if slot >= 0]
    if len(set(slots)) < len(slots):
        raise ValueError("slot_mapping: expected a slot of its own for each row, got one that several rows have")
    q, k, v = norm_linear_reference(x, norm_weight, norm_bias, weight, scale, None, False).chunk(3, dim=1)
    _, _, heads, page_size, head_dim = kv_layer.shape
    kv_layer = kv_layer.clone()
    for row, slot in enumerate(slot_mapping.tolist()):
        if slot >= 0:
            kv_layer[slot // page_size, 0, :, slot % page_size] = k[row].view(heads, head_dim).to(kv_layer.dtype)
            kv_layer[slot // page_size, 1, :, slot % page_size] = v[row].view(heads, head_dim).to(kv_layer.dtype)
    return q, kv_layer


def linear_residual_reference(a: Tensor, weight: Tensor, scale: Tensor | None, bias: Tensor, x: Tensor) -> Tensor:
    """Return `linear_residual`'s x, of a weight [H, K]."""
    return x + linear_reference(a, dequantize(weight, scale, x.dtype), bias)


@triton.jit(do_not_specialize=["num_rows"])
def _linear_kernel(
    a_ptr,  # [num_rows, K]
    weight_ptr,  # [N, K]
    scale_ptr,  # [N] float32 or None
    bias_ptr,  # [N] float32 or None
    out_ptr,  # [num_rows, N]
    num_rows,
    N: tl.constexpr,
    K: tl.constexpr,
    GELU: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    WHOLE: tl.constexpr,
    DTYPE: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    # One program: BLOCK_N outputs of BLOCK_M rows.
    first_column = tl.program_id(0) * BLOCK_N
    columns = first_column + tl.arange(0, BLOCK_N)
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    LATE: tl.constexpr = BLOCK_M * BLOCK_N >= 128 * 128
    if not LATE:
        scale, bias = scale_and_bias(scale_ptr, bias_ptr, columns, N)

    acc, _ = product(
        a_ptr, weight_ptr, None, rows, num_rows, first_column, BLOCK_N,
        N, K, K, WHOLE, SPLIT_K, BLOCK_K, DTYPE, USE_PDL,
    )  # fmt: skip
    if LATE:  # earlier they would hold registers over the loop
        scale, bias = scale_and_bias(scale_ptr, bias_ptr, columns, N)
    acc = acc * scale + bias
    if GELU:
        acc = gelu_new(acc)

    mask = (rows < num_rows)[:, None] & (columns < N)[None, :]
    tl.store(out_ptr + rows.to(tl.int64)[:, None] * N + columns[None, :], acc, mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def _qkv_kernel(
    a_ptr,  # [num_rows, H]
    weight_ptr,  # [3 H, H]
    scale_ptr,  # [3 H] float32 or None
    q_out_ptr,  # [num_rows, H] float32
    kv_layer_ptr,  # [pages, 2, H / HEAD_DIM, 16, HEAD_DIM]
    slot_mapping_ptr,  # [num_rows], -1: write nothing
    num_rows,
    H: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    WHOLE: tl.constexpr,
    DTYPE: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    # One program: BLOCK_N of the 3 H outputs of BLOCK_M rows; a block may reach from q into k, or from head to head.
    first_column = tl.program_id(0) * BLOCK_N
    columns = first_column + tl.arange(0, BLOCK_N)
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    scale, bias = scale_and_bias(scale_ptr, None, columns, 3 * H)
    # An input of the step, which no kernel writes.
    slot = tl.load(slot_mapping_ptr + rows, mask=rows < num_rows, other=-1)

    acc, _ = product(
        a_ptr, weight_ptr, None, rows, num_rows, first_column, BLOCK_N,
        3 * H, H, H, WHOLE, SPLIT_K, BLOCK_K, DTYPE, USE_PDL,
    )  # fmt: skip
    acc = acc * scale + bias

    in_rows = (rows < num_rows)[:, None]
    if first_column < H:
        in_q = in_rows & (columns < H)[None, :]
        tl.store(q_out_ptr + rows.to(tl.int64)[:, None] * H + columns[None, :], acc, mask=in_q)
    if first_column + BLOCK_N > H:
        # kv element (page, part, head, offset, d): part 0 is k, 1 is v.
        part = columns // H - 1
        head = (columns % H) // HEAD_DIM
        d = columns % HEAD_DIM
        page_row = (slot // _PAGE_SIZE).to(tl.int64) * (2 * H * _PAGE_SIZE) + (slot % _PAGE_SIZE) * HEAD_DIM
        within_page = part * (H * _PAGE_SIZE) + head * (_PAGE_SIZE * HEAD_DIM) + d
        mask = in_rows & (slot >= 0)[:, None] & ((columns >= H) & (columns < 3 * H))[None, :]
        tl.store(kv_layer_ptr + page_row[:, None] + within_page[None, :], acc, mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def _linear_residual_kernel(
    a_ptr,  # [num_rows, K]
    weight_ptr,  # [N, K]
    scale_ptr,  # [N] float32 or None
    bias_ptr,  # [N] float32
    x_ptr,  # [num_rows, N] float32, updated in place if there is one partial sum
    partial_ptr,  # [NUM_PARTIALS, num_rows, N] float32, written if there are several
    num_rows,
    N: tl.constexpr,
    K: tl.constexpr,
    NUM_PARTIALS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    WHOLE: tl.constexpr,
    DTYPE: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    # One program: BLOCK_N outputs of BLOCK_M rows, which no other program reads or writes, of a part of the inputs.
    first_column = tl.program_id(0) * BLOCK_N
    columns = first_column + tl.arange(0, BLOCK_N)
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    part = tl.program_id(2)
    LATE: tl.constexpr = BLOCK_M * BLOCK_N >= 128 * 128
    if not LATE:
        scale, bias = scale_and_bias(scale_ptr, bias_ptr, columns, N)

    PART: tl.constexpr = K // NUM_PARTIALS
    residual_ptr = x_ptr if NUM_PARTIALS == 1 else None
    acc, x = product(
        a_ptr + part * PART, weight_ptr + part * PART, residual_ptr, rows, num_rows, first_column, BLOCK_N,
        N, PART, K, WHOLE, SPLIT_K, BLOCK_K, DTYPE, USE_PDL,
    )  # fmt: skip
    if LATE:  # earlier they would hold registers over the loop
        scale, bias = scale_and_bias(scale_ptr, bias_ptr, columns, N)
    acc *= scale

    mask = (rows < num_rows)[:, None] & (columns < N)[None, :]
    place = rows.to(tl.int64)[:, None] * N + columns[None, :]
    if NUM_PARTIALS == 1:
        tl.store(x_ptr + place, x + acc + bias, mask=mask)
    else:
        acc += tl.where(part == 0, bias, 0.0)
        tl.store(partial_ptr + part.to(tl.int64) * num_rows * N + place, acc, mask=mask)


def norm_linear(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    out: Tensor,
    *,
    gelu: bool,
    normed: Tensor,
    partial: Tensor | None = None,
    pdl: bool = False,
) -> None:
    """Compute out = act(LN(x) weight^T * scale + bias).

    Args:
        x: [R, H], float32.
        norm_weight: [H], float32.
        norm_bias: [H], float32.
        weight: [N, H], a weight dtype.
        scale: [N], float32, for int8 weights only.
        bias: [N], float32, or None.
        out: [R, N], compute dtype of the weights, or float32; written.
        gelu: act is gelu_new; else the identity.
        normed: [R, H], compute dtype; LN(x) is written to it, by a launch of its own.
        partial: [P, R, H], float32: what `linear_residual` left to be added to x, which is updated.
        pdl: programmatic dependent launch, see `launch` (sm_90 or later).

    Raises:
        ValueError: an argument has another shape, dtype or device than above, or is not contiguous.
    """
    check_dimensions("x", x, 2)
    check_dimensions("weight", weight, 2)
    (rows, hidden), outputs, device = x.shape, weight.shape[0], x.device
    check("x", x, (rows, hidden), torch.float32, device)
    check("norm_weight", norm_weight, (hidden,), torch.float32, device)
    check("norm_bias", norm_bias, (hidden,), torch.float32, device)
    check("weight", weight, (outputs, hidden), WEIGHT_DTYPES, device)
    check_scale(weight, scale, outputs)
    if bias is not None:
        check("bias", bias, (outputs,), torch.float32, device)
    dtype = compute_dtype(weight.dtype)
    check("out", out, (rows, outputs), (dtype, torch.float32), device)

    check("normed", normed, (rows, hidden), dtype, device)
    layer_norm(x, norm_weight, norm_bias, normed, partial=partial, pdl=pdl)
    tile = tile_of(rows, outputs, hidden, weight.dtype)
    _linear_kernel[(triton.cdiv(outputs, tile.block_n), triton.cdiv(rows, tile.block_m))](
        normed, weight, scale, bias, out, rows,
        N=outputs, K=hidden, GELU=gelu,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, SPLIT_K=tile.split_k,
        WHOLE=tile.whole, DTYPE=triton_dtype(dtype), USE_PDL=pdl,
        num_warps=tile.num_warps, num_stages=tile.num_stages, maxnreg=tile.max_registers, launch_pdl=pdl,
    )  # fmt: skip


def norm_qkv(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    q_out: Tensor,
    kv_layer: Tensor,
    slot_mapping: Tensor,
    *,
    normed: Tensor,
    partial: Tensor | None = None,
    pdl: bool = False,
) -> None:
    """Compute q, k, v = LN(x) weight^T * scale; write q to a buffer, k and v to the rows' slots of the KV cache.

    Args:
        x: [R, H], float32.
        norm_weight: [H], float32.
        norm_bias: [H], float32.
        weight: [3 H, H], a weight dtype: rows of q, then k, then v; head h has the rows from h * head_dim of each.
        scale: [3 H], float32, for int8 weights only.
        q_out: [R, H], float32; written.
        kv_layer: [pages, 2, heads, 16, head_dim], float32, bfloat16 or float16; written at the rows' slots.
        slot_mapping: [R], int32: page * 16 + offset, or -1 to write no key and value. Of rows with the same slot, which
            must not occur unless they are equal, any may be the one that is kept.
        normed: as in `norm_linear`.
        partial: as in `norm_linear`.
        pdl: programmatic dependent launch, see `launch` (sm_90 or later).

    Raises:
        ValueError: an argument has another shape, dtype or device than above, or is not contiguous.
    """
    check_dimensions("x", x, 2)
    check_dimensions("kv_layer", kv_layer, 5)
    (rows, hidden), device = x.shape, x.device
    pages, _, heads, _, head_dim = kv_layer.shape

    check("x", x, (rows, hidden), torch.float32, device)
    check("norm_weight", norm_weight, (hidden,), torch.float32, device)
    check("norm_bias", norm_bias, (hidden,), torch.float32, device)
    check("weight", weight, (3 * hidden, hidden), WEIGHT_DTYPES, device)
    check_scale(weight, scale, 3 * hidden)
    check("q_out", q_out, (rows, hidden), torch.float32, device)
    check("kv_layer", kv_layer, (pages, 2, heads, PAGE_SIZE, head_dim), KV_DTYPES, device)
    if heads * head_dim != hidden:
        raise ValueError(f"kv_layer: expected heads * head_dim = {hidden} (columns of x), got {heads} * {head_dim}")
    check("slot_mapping", slot_mapping, (rows,), torch.int32, device)

    dtype = compute_dtype(weight.dtype)
    check("normed", normed, (rows, hidden), dtype, device)
    layer_norm(x, norm_weight, norm_bias, normed, partial=partial, pdl=pdl)
    tile = tile_of(rows, 3 * hidden, hidden, weight.dtype)
    _qkv_kernel[(triton.cdiv(3 * hidden, tile.block_n), triton.cdiv(rows, tile.block_m))](
        normed, weight, scale, q_out, kv_layer, slot_mapping, rows,
        H=hidden, HEAD_DIM=head_dim,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, SPLIT_K=tile.split_k,
        WHOLE=tile.whole, DTYPE=triton_dtype(dtype), USE_PDL=pdl,
        num_warps=tile.num_warps, num_stages=tile.num_stages, maxnreg=tile.max_registers, launch_pdl=pdl,
    )  # fmt: skip


def linear_residual(
    a: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor,
    x: Tensor,
    *,
    partial: Tensor | None = None,
    pdl: bool = False,
) -> None:
    """Compute x += a weight^T * scale + bias, in place; or, in parts, what is to be added to x.

    Args:
        a: [R, K], compute dtype of the weights, or float32.
        weight: [H, K], a weight dtype.
        scale: [H], float32, for int8 weights only.
        bias: [H], float32.
        x: [R, H], float32; updated, unless `partial` is given.
        partial: [P, R, H], float32, of `num_partials`; written instead of x. The P sums, of parts of the inputs, remain
            to be added to x: by `layer_norm`, or by the layers that call it.
        pdl: programmatic dependent launch, see `launch` (sm_90 or later).

    Raises:
        ValueError: an argument has another shape, dtype or device than above, or is not contiguous.
    """
    check_dimensions("a", a, 2)
    check_dimensions("x", x, 2)
    (rows, inputs), outputs, device = a.shape, x.shape[1], x.device
    dtype = compute_dtype(weight.dtype)
    check("a", a, (rows, inputs), (dtype, torch.float32), device)
    check("weight", weight, (outputs, inputs), WEIGHT_DTYPES, device)
    check_scale(weight, scale, outputs)
    check("bias", bias, (outputs,), torch.float32, device)
    check("x", x, (rows, outputs), torch.float32, device)
    parts = 1
    if partial is not None:
        parts = num_partials(rows, outputs, inputs, weight.dtype)
        check("partial", partial, (parts, rows, outputs), torch.float32, device)
        if parts == 1:
            raise ValueError("partial: expected None where `num_partials` is 1, got a tensor")

    tile = tile_of(rows, outputs, inputs, weight.dtype, parts)
    _linear_residual_kernel[(triton.cdiv(outputs, tile.block_n), triton.cdiv(rows, tile.block_m), parts)](
        a, weight, scale, bias, x, partial, rows,
        N=outputs, K=inputs, NUM_PARTIALS=parts,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, SPLIT_K=tile.split_k,
        WHOLE=tile.whole, DTYPE=triton_dtype(dtype), USE_PDL=pdl,
        num_warps=tile.num_warps, num_stages=tile.num_stages, maxnreg=tile.max_registers, launch_pdl=pdl,
    )  # fmt: skip
