"""Device functions: LayerNorm statistics of rows of x, and the plain torch form of the whole."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LAYER_NORM_EPSILON = 1e-5
_EPSILON = tl.constexpr(LAYER_NORM_EPSILON)


def layer_norm_reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.nn.functional.layer_norm(x, (x.shape[-1],), weight, bias, LAYER_NORM_EPSILON)


@triton.jit
def layer_norm_statistics(x_ptr, rows, num_rows, H: tl.constexpr, BLOCK_H: tl.constexpr):
    """Mean and 1 / sqrt(variance + epsilon), both [BLOCK_M], of the rows `rows` of x [num_rows, H]. Two passes: the
    variance is that of the centred values. BLOCK_H may be smaller than H."""
    in_rows = (rows < num_rows)[:, None]
    total = tl.zeros([rows.shape[0]], tl.float32)
    for start in range(0, H, BLOCK_H):
        column = start + tl.arange(0, BLOCK_H)[None, :]
        x = tl.load(x_ptr + rows[:, None] * H + column, mask=in_rows & (column < H), other=0.0)
        total += tl.sum(x, 1)
    mean = total / H
    total = tl.zeros([rows.shape[0]], tl.float32)
    for start in range(0, H, BLOCK_H):
        column = start + tl.arange(0, BLOCK_H)[None, :]
        x = tl.load(x_ptr + rows[:, None] * H + column, mask=in_rows & (column < H), other=0.0)
        centred = tl.where(column < H, x - mean[:, None], 0.0)
        total += tl.sum(centred * centred, 1)
    return mean, tl.rsqrt(total / H + _EPSILON)
