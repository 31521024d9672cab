"""Selection of an engine's device, backend and dtype."""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from dataclasses import dataclass
from importlib import util
from typing import Any

import torch

from ..dtypes import CPU_DTYPES, DTYPES
from ..errors import InputError, NativeModuleWarning

BACKENDS = ("auto", "torch", "cpu", "cuda")

GET_NATIVE = "install a C++17 compiler (Debian: g++) and reinstall jat-engine, or install a wheel that has the module"

_CUDA_HEAD_DIMS = range(16, 129)
_OLDEST_GPU = 8


@dataclass(frozen=True)
class Choice:
    """Device, backend and dtype that an engine runs with.

    Attributes:
        device: with its index if it is a GPU.
        backend: "torch", "cpu" or "cuda".
        dtype: one of `DTYPES`.
        reason: why this backend was selected, as a phrase.
        is_asked: the caller named the device or the backend; there is no fallback to another.
        lacks_native: the torch backend replaces the native one, whose module is missing.
    """

    device: torch.device
    backend: str
    dtype: str
    reason: str
    is_asked: bool = False
    lacks_native: bool = False


def native_module(head_dim: int = 64) -> tuple[Any, str]:
    """Import the compiled module `jat_engine._cpu`.

    Returns:
        The module and "", or None and the reason why it cannot be used.
    """
    try:
        _cpu = importlib.import_module("jat_engine._cpu")
    except ImportError as error:
        return None, f"the native module does not load ({error}); {GET_NATIVE}"
    if head_dim > _cpu.MAX_HEAD_DIM:
        return None, f"the native kernels take a head_dim of at most {_cpu.MAX_HEAD_DIM}, got {head_dim}"
    return _cpu, ""


@functools.cache
def warn_of_plain_torch() -> None:
    """Warn, once per process, that an engine uses the torch backend because the native module is missing."""
    warnings.warn(
        f"JatEngine computes in plain torch, which is slower than its native kernels: {native_module()[1]}; "
        'backend="torch" takes plain torch without this warning',
        NativeModuleWarning,
        stacklevel=5,  # the line that makes the engine
    )


def why_no_gpu() -> str:
    """Return the reason why torch has no NVIDIA GPU here; "" if it has one."""
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reason is returned instead
        if torch.cuda.is_available():
            return ""
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as error:
            return str(error).partition("\n")[0]
    return "torch finds none"


def why_not_cuda(device: torch.device, head_dim: int = 64) -> str:
    """Return the reason why the kernels for NVIDIA GPUs cannot run on a device; "" if they can."""
    if head_dim not in _CUDA_HEAD_DIMS:
        return f"its kernels take a head_dim of 16 to 128, got {head_dim}"
    if util.find_spec("triton") is None:
        return "triton is not installed; pip install 'jat-engine[cuda]'"
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return ""  # for tests: Triton's interpreter
    if device.type != "cuda":
        return why_no_gpu() or f"the device is {device}"
    major, minor = torch.cuda.get_device_capability(device)
    if major < _OLDEST_GPU:
        return f"it needs compute capability {_OLDEST_GPU}.0, {torch.cuda.get_device_name(device)} has {major}.{minor}"
    return ""


def choose_backend(
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    backend: str = "auto",
    head_dim: int = 64,
    stored: str | None = None,
) -> Choice:
    """Select a value for each argument that is "auto", and check the others.

    On an NVIDIA GPU: the cuda backend if Triton is installed, else torch; in bfloat16 if the GPU supports it. On a CPU:
    the native backend if it was built, in bfloat16 (a step reads half the bytes of float32), else torch in float32. On
    any other device: torch.

    Args:
        device: "auto", or a device that torch has here.
        dtype: "auto", one of `DTYPES`, or a torch dtype.
        backend: one of `BACKENDS`.
        head_dim: of the model; kernels support some only.
        stored: of a quantised checkpoint, the dtype of its codes, which the native backend runs by itself.

    Raises:
        InputError: a name is unknown, or the combination is not supported on this machine.
    """
    dtype = str(dtype).removeprefix("torch.")
    if dtype != "auto" and dtype not in DTYPES:
        raise InputError(f"dtype: expected one of auto, {', '.join(DTYPES)}, got {dtype!r}")
    if not isinstance(backend, str) or backend not in BACKENDS:
        raise InputError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")

    chosen = _device(device, backend)
    is_asked, lacks_native = backend != "auto" or str(device) != "auto", False
    if backend != "auto":
        reason = "asked for"
        _check_asked(backend, chosen, head_dim)
    else:
        backend, reason = _best(chosen, head_dim)
        lacks_native = backend == "torch" and chosen.type == "cpu" and native_module()[0] is None

    if dtype == "auto" and stored is not None and backend == "cpu":
        dtype = stored
    elif dtype == "auto":
        if backend == "cpu" or (chosen.type == "cuda" and torch.cuda.is_bf16_supported()):
            dtype = "bfloat16"
        else:
            dtype = "float32"
    if backend == "cpu" and dtype not in CPU_DTYPES:
        raise InputError(f"dtype: expected one of {', '.join(CPU_DTYPES)} on the cpu backend, got {dtype!r}")
    if backend != "cpu" and dtype == "int4":
        others = ", ".join(name for name in DTYPES if name != "int4")
        raise InputError(
            f"dtype: expected one of {others} on the {backend} backend, got 'int4'; pass device='cpu', backend='cpu'"
        )
    if stored is not None:
        is_as_stored = dtype == stored and backend == "cpu"
        reason += f"; the checkpoint's {stored} codes" + ("" if is_as_stored else f" are converted to {dtype}")
    return Choice(chosen, backend, dtype, reason, is_asked, lacks_native)


def _check_asked(backend: str, device: torch.device, head_dim: int) -> None:
    """Raise `InputError` if a backend that the caller named cannot run on the device."""
    if backend == "cpu":
        if device.type != "cpu":
            raise InputError(f"backend: expected torch or cuda on device {device}, got 'cpu'")
        module, missing = native_module(head_dim)
        if module is None:
            raise InputError(f"backend: expected torch here, got 'cpu'; {missing}")
    elif backend == "cuda":
        missing = why_not_cuda(device, head_dim)
        if missing:
            raise InputError(f"backend: expected cpu or torch here, got 'cuda'; {missing}")


def _best(device: torch.device, head_dim: int) -> tuple[str, str]:
    """Return the backend for a device, and the reason."""
    if device.type == "cuda":
        missing = why_not_cuda(device, head_dim)
        if missing:
            return "torch", f"not the cuda backend: {missing}"
        return "cuda", f"Triton kernels in CUDA graphs; the GPU is {torch.cuda.get_device_name(device)}"
    if device.type != "cpu":
        return "torch", f"the native backend runs on a CPU, the device is {device}"
    module, missing = native_module(head_dim)
    no_gpu = why_no_gpu()
    without = f"; no NVIDIA GPU: {no_gpu}" if no_gpu else ""
    if module is None:
        return "torch", missing + without
    return "cpu", f"native kernels; this processor runs {', '.join(module.instruction_sets())}{without}"


def _device(device: str | torch.device, backend: str) -> torch.device:
    """Return the device, a GPU with its index: plain "cuda" would change its meaning with `torch.cuda.set_device`."""
    if isinstance(device, str) and device == "auto":
        device = "cuda" if backend != "cpu" and torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:  # torch raises any of them
        raise InputError(f"device: expected auto or a device that torch has here, got {device!r} ({error})") from None
    if str(chosen) == "cuda":
        chosen = torch.device("cuda", torch.cuda.current_device())
    return chosen
