"""What every kernel file shares: argument checks, compute dtypes, and programmatic dependent launch (PDL).

With PDL a kernel may start while the one before it still runs: `launch_and_wait` lets the next kernel start, then waits
until all work before this kernel is complete and visible. Only weights, which no kernel writes, are touched before.
Every program of every kernel calls it before its first read of something an earlier kernel writes and before any early
return, so completion is transitive along a stream.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

INTERPRETING = bool(triton.knobs.runtime.interpret)
"""TRITON_INTERPRET=1 was set when the kernels were imported: they run on the CPU, program by program."""

PAGE_SIZE = 16
"""Tokens in a page of the KV cache, `jat_engine.backends.base.PAGE_SIZE`."""

WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
KV_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_TRITON_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def compute_dtype(weight_dtype: torch.dtype) -> torch.dtype:
    """What products with weights of this dtype are computed in (accumulated in float32)."""
    if weight_dtype == torch.int8:
        return torch.float32 if INTERPRETING else torch.bfloat16  # the interpreter multiplies bfloat16 as raw bits
    return weight_dtype


def triton_dtype(dtype: torch.dtype) -> tl.dtype:
    return _TRITON_DTYPES[dtype]


def check(
    name: str,
    tensor: Tensor,
    shape: tuple[int, ...],
    dtypes: torch.dtype | tuple[torch.dtype, ...],
    device: torch.device,
) -> None:
    """Raise ValueError unless `tensor` is contiguous, of this shape, one of these dtypes, and on this device."""
    dtypes = dtypes if isinstance(dtypes, tuple) else (dtypes,)
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(tensor.shape)}")
    if tensor.dtype not in dtypes:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"{name}: expected {names}, got {str(tensor.dtype).removeprefix('torch.')}")
    if tensor.device != device:
        raise ValueError(f"{name}: expected it on {device}, got {tensor.device}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous tensor, got strides {tensor.stride()}; call .contiguous()")


def check_dimensions(name: str, tensor: Tensor, dimensions: int) -> None:
    if tensor.dim() != dimensions:
        raise ValueError(f"{name}: expected {dimensions} dimensions, got shape {tuple(tensor.shape)}")


def check_scale(weight: Tensor, scale: Tensor | None, num_outputs: int) -> None:
    """int8 weights come with a float32 scale an output, others without."""
    if (scale is not None) != (weight.dtype == torch.int8):
        got = "none" if scale is None else str(tuple(scale.shape))
        raise ValueError(
            f"scale: expected one an output for int8 weights and none otherwise, got {got}, {weight.dtype}"
        )
    if scale is not None:
        check("scale", scale, (num_outputs,), torch.float32, weight.device)


@triton.jit
def launch_and_wait(USE_PDL: tl.constexpr):
    if USE_PDL:
        gdc_launch_dependents()
        gdc_wait()
