"""Helpers for tests of kernels: device, dtypes, random and poisoned tensors, and comparison with a reference.

On a GPU kernels are compiled. Without one they run in Triton's interpreter, which conftest.py makes right for bfloat16,
or, with the plugin helpers.ptx.plugin, from the PTX they compile to.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", torch.cuda.current_device()) if HAS_GPU else torch.device("cpu")

# Of the GPU, or what helpers.ptx.plugin compiles for; the interpreter has all dtypes.
COMPUTE_CAPABILITY = (
    torch.cuda.get_device_capability() if HAS_GPU else divmod(int(os.environ.get("JAT_PTX_ARCH", "90")), 10)
)

HALVES = [pytest.param(dtype, id=str(dtype)[6:]) for dtype in (torch.bfloat16, torch.float16)]
FLOAT32 = pytest.param(torch.float32, id="float32")
INT8 = pytest.param(torch.int8, id="int8")
WEIGHT_DTYPES = [FLOAT32, INT8, *HALVES]
CACHE_DTYPES = [FLOAT32, *HALVES]


class Random:
    """Source of random tensors on DEVICE from one seed."""

    def __init__(self, seed: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
        return (torch.randn(shape, generator=self._generator) * scale).to(DEVICE, dtype)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=self._generator, dtype=torch.int32).to(DEVICE)

    def permutation(self, count: int) -> Tensor:
        return torch.randperm(count, generator=self._generator).int().to(DEVICE)

    def weight(self, dtype: torch.dtype, outputs: int, inputs: int) -> tuple[Tensor, Tensor | None]:
        """Return a weight and its scale, which is None except for int8."""
        weight = self.normal(outputs, inputs, scale=inputs**-0.5)
        if dtype != torch.int8:
            return weight.to(dtype), None
        scale = weight.abs().amax(1) / 127
        return (weight / scale[:, None]).round().to(torch.int8), scale


def poisoned(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(shape, torch.nan, dtype=dtype, device=DEVICE)


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def addresses(*tensors: Tensor | None) -> Tensor:
    """Return device addresses, int64, 0 for None. The tensors must outlive their use."""
    return torch.tensor([0 if t is None else t.data_ptr() for t in tensors], dtype=torch.int64, device=DEVICE)


def coarsest(*dtypes: torch.dtype) -> torch.dtype:
    """Return the dtype with the fewest digits. int8 counts as what its operands are rounded to, bfloat16."""
    digits = {torch.int8: 7, torch.bfloat16: 7, torch.float16: 10, torch.float32: 23}
    return min(dtypes, key=digits.__getitem__)


def agrees(got: Tensor, reference: Callable[..., Tensor], *arguments: Any, dtype: torch.dtype) -> None:
    """Assert that `got` agrees with `reference(*arguments)` in float64.

    The limit is 1e-5, relative to the largest element. If the kernel rounds to `dtype` (bfloat16 for int8), it is 1.5
    times the error of the reference itself in that dtype.
    """

    def evaluate(precision: torch.dtype) -> Tensor:
        moved = (
            a.to(precision) if isinstance(a, Tensor) and (a.is_floating_point() or a.dtype == torch.int8) else a
            for a in arguments
        )
        return reference(*moved).double()

    exact = evaluate(torch.float64)
    bound = 1e-5 * float(exact.abs().max())
    if dtype == torch.int8:
        dtype = torch.bfloat16
    if dtype in (torch.bfloat16, torch.float16):
        bound = 1.5 * float((evaluate(dtype) - exact).abs().max())
    assert got.isfinite().all()
    assert float((got.double() - exact).abs().max()) <= bound
