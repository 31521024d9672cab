"""Argument checks, compute dtypes and programmatic dependent launch (PDL), shared by all kernel files.

With PDL a kernel may start while the previous one still runs: `launch_dependents` lets the next kernel start, `wait`
waits until all earlier work is complete and visible. Before that only weights and the step's
inputs may be read: no kernel writes them, and the first kernel behind the copy of the inputs does not start early.
Every program of every kernel calls both, also one that returns early. So a kernel that has passed it can rely on all
earlier kernels of its stream, not only on the previous one.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

INTERPRETING = bool(triton.knobs.runtime.interpret)
"""True if TRITON_INTERPRET=1 was set when the kernels were imported: they run on the CPU, program by program."""

PAGE_SIZE = 16
"""Tokens in a page of the KV cache, `jat_engine.backends.base.PAGE_SIZE`."""

MAX_QUERIES = 4
"""Most rows that a session of an agent may have in a step, for the attention."""

WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
KV_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_TRITON_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def compute_dtype(weight_dtype: torch.dtype) -> torch.dtype:
    """Return the operand dtype of products with weights of this dtype. They accumulate in float32."""
    return torch.bfloat16 if weight_dtype == torch.int8 else weight_dtype


def triton_dtype(dtype: torch.dtype) -> tl.dtype:
    """Return Triton's name of a floating-point dtype."""
    return _TRITON_DTYPES[dtype]


def check(
    name: str,
    tensor: Tensor,
    shape: tuple[int, ...],
    dtypes: torch.dtype | tuple[torch.dtype, ...],
    device: torch.device,
) -> None:
    """Check that a tensor is contiguous, has this shape and one of these dtypes, and is on this device.

    Raises:
        ValueError: it is not; the message names the argument and says what was expected.
    """
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
    """Check a tensor's number of dimensions.

    Raises:
        ValueError: it is another.
    """
    if tensor.dim() != dimensions:
        raise ValueError(f"{name}: expected {dimensions} dimensions, got shape {tuple(tensor.shape)}")


def check_scale(weight: Tensor, scale: Tensor | None, num_outputs: int) -> None:
    """Check that int8 weights have a float32 scale per output, [num_outputs], and other weights none.

    Raises:
        ValueError: they do not.
    """
    if (scale is not None) != (weight.dtype == torch.int8):
        got = "none" if scale is None else str(tuple(scale.shape))
        raise ValueError(
            f"scale: expected one per output for int8 weights and none otherwise, got {got}, {weight.dtype}"
        )
    if scale is not None:
        check("scale", scale, (num_outputs,), torch.float32, weight.device)


@triton.jit
def launch_dependents(USE_PDL: tl.constexpr):
    """Let the next kernel of the stream start; without PDL do nothing."""
    if USE_PDL:
        gdc_launch_dependents()


@triton.jit
def wait(USE_PDL: tl.constexpr):
    """Wait for all earlier kernels of the stream; without PDL do nothing."""
    if USE_PDL:
        gdc_wait()


@triton.jit
def launch_and_wait(USE_PDL: tl.constexpr):
    """Let the next kernel of the stream start, and wait for all earlier ones; without PDL do nothing."""
    launch_dependents(USE_PDL)
    wait(USE_PDL)
