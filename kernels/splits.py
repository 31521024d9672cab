"""Split the keys of a session over programs, and combine what they find."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import check


class Splits(NamedTuple):
    """Memory of S programs that share the keys of a (session, head). The one that arrives last combines their parts.

    Attributes:
        partial: [S, R, heads, head_dim], float32: sums of exp(score - max) v; written.
        partial_max: [S, R, heads], float32: max of the scores, -inf for a range without keys; written.
        partial_sum: [S, R, heads], float32: sum of exp(score - max), 0 for a range without keys; written.
        arrivals: [sessions * heads], int32, zeros, and zeros again afterwards.
    """

    partial: Tensor
    partial_max: Tensor
    partial_sum: Tensor
    arrivals: Tensor

    @property
    def number(self) -> int:
        """Return S."""
        return self.partial.shape[0]

    def check(self, rows: int, sessions: int, heads: int, head_dim: int, device: torch.device) -> None:
        """Check the tensors.

        Raises:
            ValueError: one has another shape, dtype or device than above, or is not contiguous.
        """
        by_head = self.number, rows, heads
        check("partial", self.partial, (*by_head, head_dim), torch.float32, device)
        check("partial_max", self.partial_max, by_head, torch.float32, device)
        check("partial_sum", self.partial_sum, by_head, torch.float32, device)
        check("arrivals", self.arrivals, (sessions * heads,), torch.int32, device)
        if self.partial.numel() >= 2**31:
            raise ValueError(f"partial: expected fewer than 2^31 elements, got {self.partial.numel()}; split less")


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
