"""Which device, backend and dtype an engine takes, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..errors import InputError

BACKENDS = ("auto", "torch", "cpu")
DTYPES = ("auto", "float32", "bfloat16", "int8")


@dataclass(frozen=True)
class Choice:
    """`reason` says why this backend, for people."""

    device: torch.device
    backend: str
    dtype: str
    reason: str


def native_module(head_dim: int = 64) -> tuple[Any, str]:
    """The compiled module `jat_engine._cpu`, or None and why it cannot be used."""
    try:
        from .. import _cpu
    except ImportError as error:
        return None, f"the native module does not load ({error}); a C++ compiler at install time builds it"
    if head_dim > _cpu.MAX_HEAD_DIM:
        return None, f"the native kernels take a head_dim of at most {_cpu.MAX_HEAD_DIM}, got {head_dim}"
    return _cpu, ""


def choose_backend(
    device: str | torch.device = "auto", dtype: str | torch.dtype = "auto", backend: str = "auto", head_dim: int = 64
) -> Choice:
    """Fill in what is "auto".

    On a CPU: the native backend if it was built, in bfloat16 (half the bytes of float32 to read in each step), else
    plain torch in float32. On any other device: plain torch, in bfloat16 on a GPU that has it.

    Raises:
        InputError: a name is unknown, or what was asked for does not go together here.
    """
    dtype = str(dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise InputError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    if backend not in BACKENDS:
        raise InputError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    chosen = _device(device, backend)
    module, missing = native_module(head_dim)
    if backend == "cpu":
        if chosen.type != "cpu":
            raise InputError(f"backend: expected torch on device {chosen}, got 'cpu'")
        if module is None:
            raise InputError(f"backend: expected torch here, got 'cpu'; {missing}")
        reason = "asked for"
    elif backend == "torch":
        reason = "asked for"
    elif chosen.type != "cpu":
        backend, reason = "torch", f"the native backend runs on a CPU, the device is {chosen}"
    elif module is None:
        backend, reason = "torch", missing
    else:
        backend, reason = "cpu", f"native kernels; this processor runs {', '.join(module.instruction_sets())}"
    if dtype == "auto":
        has_bf16 = chosen.type == "cuda" and torch.cuda.is_bf16_supported()
        dtype = "bfloat16" if backend == "cpu" or has_bf16 else "float32"
    return Choice(chosen, backend, dtype, reason)


def _device(device: str | torch.device, backend: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if backend != "cpu" and torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, TypeError) as error:  # torch raises any of them
        raise InputError(f"device: expected auto or a device that torch has here, got {device!r} ({error})") from None
    return chosen
