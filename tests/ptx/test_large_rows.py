"""Rows of 43 and more agents at the published width: tiles of wgmma with four and eight warps."""

from __future__ import annotations

import pytest
import torch
from helpers.kernel_cases import HALVES, INT8, Random, agrees, coarsest, poisoned

from jat_engine.kernels import linear
from jat_engine.kernels.launch import PAGE_SIZE, compute_dtype


@pytest.mark.parametrize("dtype", [*HALVES, INT8])
@pytest.mark.parametrize(("rows", "inputs", "hidden"), [(300, 768, 256), (200, 3072, 96), (130, 768, 96)])
def test_linear_residual(dtype: torch.dtype, rows: int, inputs: int, hidden: int) -> None:
    random = Random()
    a = random.normal(rows, inputs, dtype=compute_dtype(dtype))
    weight, scale = random.weight(dtype, hidden, inputs)
    bias, x = random.normal(hidden), random.normal(rows, hidden)
    out = x.clone()
    linear.linear_residual(a, weight, scale, bias, out)
    agrees(out, linear.linear_residual_reference, a, weight, scale, bias, x, dtype=dtype)


@pytest.mark.parametrize("dtype", [*HALVES, INT8])
@pytest.mark.parametrize("rows", [300, 200])
def test_norm_linear(dtype: torch.dtype, rows: int) -> None:
    random = Random()
    hidden, outputs = 768, 320
    x, norm_weight, norm_bias = random.normal(rows, hidden), random.normal(hidden), random.normal(hidden)
    weight, scale = random.weight(dtype, outputs, hidden)
    bias = random.normal(outputs)
    out, normed = (poisoned(rows, columns, dtype=compute_dtype(dtype)) for columns in (outputs, hidden))
    linear.norm_linear(x, norm_weight, norm_bias, weight, scale, bias, out, gelu=True, normed=normed)
    agrees(out, linear.norm_linear_reference, x, norm_weight, norm_bias, weight, scale, bias, True, dtype=dtype)


@pytest.mark.parametrize("dtype", [*HALVES, INT8])
def test_norm_qkv(dtype: torch.dtype) -> None:
    """12 heads of 64, as published; one row has no slot."""
    random = Random()
    rows, heads, head_dim = 300, 12, 64
    hidden = heads * head_dim
    x, norm_weight, norm_bias = random.normal(rows, hidden), random.normal(hidden), random.normal(hidden)
    weight, scale = random.weight(dtype, 3 * hidden, hidden)
    slots = random.permutation(24 * PAGE_SIZE)[:rows]
    slots[5] = -1
    q, pages = poisoned(rows, hidden), poisoned(24, 2, heads, PAGE_SIZE, head_dim, dtype=compute_dtype(dtype))
    normed = poisoned(rows, hidden, dtype=compute_dtype(dtype))
    linear.norm_qkv(x, norm_weight, norm_bias, weight, scale, q, pages, slots, normed=normed)

    def reference(*tensors: torch.Tensor) -> torch.Tensor:
        *inputs, scales = tensors
        empty = poisoned(24, 2, heads, PAGE_SIZE, head_dim, dtype=torch.float64)
        q, pages = linear.norm_qkv_reference(*inputs, scales, empty, slots)
        return torch.cat([q.flatten().double(), pages[~pages.isnan()]])

    got = torch.cat([q.flatten().double(), pages[~pages.isnan()].double()])
    agrees(got, reference, x, norm_weight, norm_bias, weight, scale, dtype=coarsest(dtype, pages.dtype))
