"""Combine the parts that programs find for ranges of a session's keys."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import check, check_dimensions


def combine_splits_reference(partial: Tensor, partial_max: Tensor, partial_sum: Tensor) -> Tensor:
    """Return sum_s exp(max_s - max) partial_s / sum_s exp(max_s - max) sum_s, [R, H].

    partial: [num_splits, R, heads, head_dim].
    """
    weight = (partial_max - partial_max.amax(0)).exp()
    return ((weight[..., None] * partial).sum(0) / (weight * partial_sum).sum(0)[..., None]).flatten(1)


@triton.jit
def combined(partial_ptr, partial_max_ptr, partial_sum_ptr, row_head, row_head_mask, d, mask, num_row_heads,
             HEAD_DIM: tl.constexpr, NUM_SPLITS: tl.constexpr):  # fmt: skip
    """Combine the splits, and return the normalised attention output, float32, of the shape of `mask`.

    row_head: row * heads + head. d: elements of a head. Both broadcast to the shape of `mask`; `row_head_mask` has the
    shape of `row_head`.
    """
    # From the L2 cache (.cg): another multiprocessor may just have written them.
    largest = tl.load(partial_max_ptr + row_head, mask=row_head_mask, other=0.0, cache_modifier=".cg")
    for split in tl.static_range(1, NUM_SPLITS):
        offset = split * num_row_heads + row_head
        split_max = tl.load(partial_max_ptr + offset, mask=row_head_mask, other=0.0, cache_modifier=".cg")
        largest = tl.maximum(largest, split_max)
    total = tl.zeros_like(largest)
    weighted = tl.zeros(mask.shape, tl.float32)
    for split in tl.static_range(NUM_SPLITS):
        # The weight of an empty split is exp(-inf) = 0. At least one is not empty: a row attends to its own key.
        offset = split * num_row_heads + row_head
        split_max = tl.load(partial_max_ptr + offset, mask=row_head_mask, other=0.0, cache_modifier=".cg")
        split_sum = tl.load(partial_sum_ptr + offset, mask=row_head_mask, other=1.0, cache_modifier=".cg")
        split_out = tl.load(partial_ptr + offset * HEAD_DIM + d, mask=mask, other=0.0, cache_modifier=".cg")
        weight = tl.exp(split_max - largest)
        total += weight * split_sum
        weighted += weight * split_out
    return weighted / tl.where(total == 0.0, 1.0, total)  # 0 for a row of no session


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
