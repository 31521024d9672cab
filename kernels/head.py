"""The head of a step: final LayerNorm of each session's last row, the rows of its decoder, the choice of an action.

out[s, n] = LN(x[last row of s]) . head_s[n] + head_bias_s[n]
choice[s] = argmax_n(out[s, n] - log_noise[s, n]) with noise, argmax_n out[s, n] without; the lowest index among equals
finite[s] = 1 if all of out[s, :n] are finite, else 0 (choice[s] is then some index below n)

If log_noise has the logarithms of Exp(1) noise, choice[s] is a sample of softmax(out[s]).

Shapes: R rows, S sessions, H hidden size, n outputs of a session, at most `capacity`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import reference
from .launch import INTERPRETING, check, check_dimensions, launch_and_wait, launch_dependents, wait

SINGLE_CAPACITY = 512
"""Up to this many outputs, one program per session also chooses; beyond, several do, and a second kernel chooses."""
_EPSILON = tl.constexpr(reference.LAYER_NORM_EPSILON)
_PART = tl.constexpr(128)
"""Columns that a warp loads at once."""
_FAR = tl.constexpr(2**31 - 1)
_FEW_OUTPUTS = 4 if INTERPRETING else 32
_FEW_SESSIONS = 2 if INTERPRETING else 128


def head_reference(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    query_start: Tensor,
    heads: list[tuple[Tensor, Tensor | None]],
    log_noise: Tensor,
    has_noise: Tensor,
) -> list[tuple[Tensor, int, bool] | None]:
    """Return (out[s, :n], choice, finite) of each session, None for a padding session.

    heads: (rows [n, H], bias [n] or None) of each session.
    """
    answers: list[tuple[Tensor, int, bool] | None] = []
    for session, (rows, bias) in enumerate(heads):
        end = int(query_start[session + 1])
        if end == int(query_start[session]):
            answers.append(None)
            continue
        bias = None if bias is None else bias.to(x.dtype)
        out = reference.head(x[end - 1], (norm_weight, norm_bias), rows.to(x.dtype), bias)
        scores = out - log_noise[session, : len(out)].to(x.dtype) if has_noise[session] else out
        answers.append((out, int(scores.argmax()), bool(out.isfinite().all())))
    return answers


@triton.jit
def _best(scores, n, valid, best_score, best):
    """Update (best_score, best) with the maximum of `scores`: the lowest index among equals; NaN never wins."""
    scores = tl.where(valid & (scores == scores), scores, float("-inf"))
    highest = tl.max(scores, 0)
    first = tl.min(tl.where(scores == highest, n, _FAR), 0)
    better = highest > best_score
    return tl.where(better, highest, best_score), tl.where(better, first, best)


@triton.jit
def _decoder_rows(head_ptr, n, end_output, H: tl.constexpr):
    """Return rows n of a decoder [end_output, H], 0 outside, as parts [n, PART]."""
    parts: tl.tuple = ()
    for start in tl.static_range(0, H, _PART):
        column = start + tl.arange(0, _PART)[None, :]
        pointers = head_ptr + n[:, None] * H + column
        if H % 4 == 0:  # the compiler cannot see that a pointer which is loaded is aligned
            pointers = tl.multiple_of(pointers, (1, 16))
        parts += (tl.load(pointers, mask=(n < end_output)[:, None] & (column < H), other=0.0),)
    return parts


@triton.jit
def _vector(ptr, H: tl.constexpr, WARPS: tl.constexpr):
    """Return a vector [H] for each warp, 0 outside, as parts [WARPS, PART]."""
    parts: tl.tuple = ()
    for start in tl.static_range(0, H, _PART):
        column = start + tl.arange(0, _PART)[None, :] + tl.zeros([WARPS, 1], tl.int32)
        parts += (tl.load(ptr + column, mask=column < H, other=0.0),)
    return parts


@triton.jit
def _added(a, b):
    """Return the sum of two vectors that `_vector` returned."""
    parts: tl.tuple = ()
    for part in tl.static_range(len(a)):
        parts += (a[part] + b[part],)
    return parts


@triton.jit
def _normalised(x, weight, bias, H: tl.constexpr):
    """Return LN(x); all vectors as `_vector` returns them."""
    PARTS: tl.constexpr = len(x)
    total = x[0]
    for part in tl.static_range(1, PARTS):
        total += x[part]
    mean = tl.sum(total, 1, keep_dims=True) / H

    centred: tl.tuple = ()
    squares = tl.zeros_like(total)
    for part in tl.static_range(PARTS):
        in_row = part * _PART + tl.arange(0, _PART)[None, :] < H
        centred += (tl.where(in_row, x[part] - mean, 0.0),)
        squares += centred[part] * centred[part]
    total = tl.sum(squares, 1, keep_dims=True)
    # A variance that overflowed would make every row its bias, finite and wrong: 0 * inf makes it NaN.
    rstd = tl.rsqrt(total / H + _EPSILON) + 0.0 * total

    normed: tl.tuple = ()
    for part in tl.static_range(PARTS):
        normed += (centred[part] * rstd * weight[part] + bias[part],)
    return normed


@triton.jit
def _products(weight, normed):
    """Return the products [n] of a decoder's rows with a vector."""
    N: tl.constexpr = weight[0].shape[0]
    WARPS: tl.constexpr = normed[0].shape[0]
    total = tl.zeros([N // WARPS, WARPS, _PART], tl.float32)
    for part in tl.static_range(len(normed)):
        total += tl.reshape(weight[part], [N // WARPS, WARPS, _PART]) * normed[part][None, :, :]
    return tl.reshape(tl.sum(total, 2), [N])


@triton.jit(do_not_specialize=["num_rows", "capacity"])
def _head_kernel(
    x_ptr,  # [num_rows, H] float32
    partial_ptr,  # [NUM_PARTIALS, num_rows, H] float32, or None
    norm_weight_ptr,  # [H]
    norm_bias_ptr,  # [H]
    query_start_ptr,  # [S + 1]
    head_ptrs_ptr,  # [S] int64 addresses of float32 [n, H]
    head_bias_ptrs_ptr,  # [S] int64 addresses of float32 [n], or 0
    head_sizes_ptr,  # [S]
    log_noise_ptr,  # [S, capacity] float32
    has_noise_ptr,  # [S]
    out_ptr,  # [S, capacity] float32
    choice_ptr,  # [S]
    finite_ptr,  # [S]
    num_rows,
    capacity,
    H: tl.constexpr,
    NUM_PARTIALS: tl.constexpr,
    CHOOSE: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WARPS: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    # One program: OUTPUTS outputs of one session, BLOCK_N at a time; with CHOOSE that is all of them, and it chooses.
    # A row of a decoder lies in one warp, its parts in the same threads: sums over columns need no other warp. So every
    # warp has the row of x.
    session = tl.program_id(0)
    launch_dependents(USE_PDL)

    # No kernel of the step writes its inputs or the decoders: they are read before the wait.
    start_row = tl.load(query_start_ptr + session)
    end_row = tl.load(query_start_ptr + session + 1)
    head_size = tl.load(head_sizes_ptr + session)
    head_ptr = tl.load(head_ptrs_ptr + session).to(tl.pointer_type(tl.float32))
    bias_address = tl.load(head_bias_ptrs_ptr + session)
    has_noise = tl.load(has_noise_ptr + session)
    norm_weight = _vector(norm_weight_ptr, H, WARPS)
    norm_bias = _vector(norm_bias_ptr, H, WARPS)

    size = tl.where(end_row > start_row, head_size, 0)
    first_output = tl.program_id(1) * OUTPUTS
    end_output = tl.minimum(first_output + OUTPUTS, size)
    bias_ptr = bias_address.to(tl.pointer_type(tl.float32))
    # "Has a bias" and "has noise" are expressed as limits of n: Triton's interpreter rejects scalars in a mask.
    bias_end = tl.where(bias_address != 0, end_output, 0)
    noise_end = tl.where(has_noise != 0, end_output, 0)
    n = first_output + tl.arange(0, BLOCK_N)
    weight = _decoder_rows(head_ptr, n, end_output, H)
    bias = tl.load(bias_ptr + n, mask=n < bias_end, other=0.0)
    noise = tl.load(log_noise_ptr + session * capacity + n, mask=n < noise_end, other=0.0)
    wait(USE_PDL)
    if end_row == start_row:
        return

    place = (end_row - 1).to(tl.int64) * H
    x = _vector(x_ptr + place, H, WARPS)
    for index in tl.static_range(NUM_PARTIALS):
        x = _added(x, _vector(partial_ptr + index * num_rows.to(tl.int64) * H + place, H, WARPS))
    normed = _normalised(x, norm_weight, norm_bias, H)

    best_score = tl.full([], float("-inf"), tl.float32)
    best = tl.full([], 0, tl.int32)
    num_finite = tl.full([], 0, tl.int32)
    for first in range(first_output, end_output, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        valid = n < end_output
        out = bias + _products(weight, normed)
        tl.store(out_ptr + session * capacity + n, out, mask=valid)
        if CHOOSE:
            best_score, best = _best(out - noise, n, valid, best_score, best)
            num_finite += tl.sum((valid & (tl.abs(out) < float("inf"))).to(tl.int32), 0)
        if OUTPUTS > BLOCK_N:  # of the next iteration
            n += BLOCK_N
            weight = _decoder_rows(head_ptr, n, end_output, H)
            bias = tl.load(bias_ptr + n, mask=n < bias_end, other=0.0)
            noise = tl.load(log_noise_ptr + session * capacity + n, mask=n < noise_end, other=0.0)
    if CHOOSE:
        tl.store(choice_ptr + session, best)
        tl.store(finite_ptr + session, (num_finite == size).to(tl.int32))


@triton.jit(do_not_specialize=["capacity"])
def _choose_kernel(
    query_start_ptr,  # [S + 1]
    head_sizes_ptr,  # [S]
    log_noise_ptr,  # [S, capacity] float32
    has_noise_ptr,  # [S]
    out_ptr,  # [S, capacity] float32, read
    choice_ptr,  # [S]
    finite_ptr,  # [S]
    capacity,
    BLOCK_N: tl.constexpr,
    USE_PDL: tl.constexpr,
):
    # One program: one session.
    session = tl.program_id(0)
    launch_and_wait(USE_PDL)
    if tl.load(query_start_ptr + session + 1) == tl.load(query_start_ptr + session):
        return

    size = tl.load(head_sizes_ptr + session)
    noise_end = tl.where(tl.load(has_noise_ptr + session) != 0, size, 0)
    best_score = tl.full([], float("-inf"), tl.float32)
    best = tl.full([], 0, tl.int32)
    num_finite = tl.full([], 0, tl.int32)

    for first in range(0, size, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        valid = n < size
        out = tl.load(out_ptr + session * capacity + n, mask=valid, other=0.0)
        noise = tl.load(log_noise_ptr + session * capacity + n, mask=n < noise_end, other=0.0)
        best_score, best = _best(out - noise, n, valid, best_score, best)
        num_finite += tl.sum((valid & (tl.abs(out) < float("inf"))).to(tl.int32), 0)
    tl.store(choice_ptr + session, best)
    tl.store(finite_ptr + session, (num_finite == size).to(tl.int32))


def head(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    query_start: Tensor,
    head_ptrs: Tensor,
    head_bias_ptrs: Tensor,
    head_sizes: Tensor,
    log_noise: Tensor,
    has_noise: Tensor,
    out: Tensor,
    choice: Tensor,
    finite: Tensor,
    *,
    partial: Tensor | None = None,
    pdl: bool = False,
) -> None:
    """Compute the predictions and choices of S sessions.

    Nothing is written for padding sessions, nor behind a session's n outputs.

    Args:
        x: [R, H], float32: the residual stream after the last block.
        norm_weight: [H], float32, of the final LayerNorm.
        norm_bias: [H], float32, of the final LayerNorm.
        query_start: [S + 1], int32: a session's last row is query_start[s + 1] - 1; a session without rows is padding.
        head_ptrs: [S], int64: device addresses of float32 [n, H], multiples of 16.
        head_bias_ptrs: [S], int64: device addresses of float32 [n]; 0 for no bias.
        head_sizes: [S], int32: n, at most capacity.
        log_noise: [S, capacity], float32; read if has_noise.
        has_noise: [S], int32: 1 to subtract the noise, else 0.
        out: [S, capacity], float32; written.
        choice: [S], int32; written.
        finite: [S], int32; written.
        partial: [P, R, H], float32: what `linear_residual` left to be added to x, or None.
        pdl: programmatic dependent launch, see `launch` (sm_90 or later).

    Raises:
        ValueError: an argument has another shape, dtype or device than above, or is not contiguous.
    """
    check_dimensions("x", x, 2)
    check_dimensions("out", out, 2)
    (rows, hidden), (sessions, capacity), device = x.shape, out.shape, x.device

    check("x", x, (rows, hidden), torch.float32, device)
    check("norm_weight", norm_weight, (hidden,), torch.float32, device)
    check("norm_bias", norm_bias, (hidden,), torch.float32, device)
    check("query_start", query_start, (sessions + 1,), torch.int32, device)
    check("head_ptrs", head_ptrs, (sessions,), torch.int64, device)
    check("head_bias_ptrs", head_bias_ptrs, (sessions,), torch.int64, device)
    check("head_sizes", head_sizes, (sessions,), torch.int32, device)
    check("log_noise", log_noise, (sessions, capacity), torch.float32, device)
    check("has_noise", has_noise, (sessions,), torch.int32, device)
    check("out", out, (sessions, capacity), torch.float32, device)
    check("choice", choice, (sessions,), torch.int32, device)
    check("finite", finite, (sessions,), torch.int32, device)

    if partial is not None:
        check_dimensions("partial", partial, 3)
        check("partial", partial, (partial.shape[0], rows, hidden), torch.float32, device)

    # A long head is bound by memory bandwidth, which takes many programs to use.
    single = capacity <= SINGLE_CAPACITY
    outputs = SINGLE_CAPACITY if single or INTERPRETING else 64
    if sessions > _FEW_SESSIONS:
        block_n, num_warps = 4, 4  # several programs fit on a multiprocessor
    elif capacity <= _FEW_OUTPUTS:
        block_n, num_warps, outputs = _FEW_OUTPUTS, 8, _FEW_OUTPUTS  # all rows are in flight before the wait
    else:
        block_n, num_warps = 16, 8
    _head_kernel[(sessions, 1 if single else triton.cdiv(capacity, outputs))](
        x, partial, norm_weight, norm_bias, query_start, head_ptrs, head_bias_ptrs, head_sizes, log_noise, has_noise,
        out, choice, finite, rows, capacity,
        H=hidden, NUM_PARTIALS=0 if partial is None else partial.shape[0],
        CHOOSE=single, OUTPUTS=outputs, BLOCK_N=block_n, WARPS=num_warps,
        USE_PDL=pdl, num_warps=num_warps, launch_pdl=pdl,
    )  # fmt: skip
    if not single:
        _choose_kernel[(sessions,)](
            query_start, head_sizes, log_noise, has_noise, out, choice, finite, capacity,
            BLOCK_N=1024, USE_PDL=pdl, num_warps=4, launch_pdl=pdl,
        )  # fmt: skip
