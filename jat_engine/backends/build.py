"""Building the selected backend with its KV cache."""

from __future__ import annotations

import warnings
from dataclasses import replace

from ..checkpoint.weights import Weights
from ..config import JatConfig
from ..errors import CheckpointError, InputError
from .base import Backend, without_autocast
from .options import EngineOptions
from .select import Choice, choose_backend, warn_of_plain_torch


def set_up(
    config: JatConfig, weights: Weights, choice: Choice, options: EngineOptions, limit: int
) -> tuple[Choice, Backend, int]:
    """Build the selected backend and allocate its KV cache.

    If an automatically selected GPU fails to initialise, warn and fall back to the CPU.

    Args:
        config: of the model.
        weights: to pack.
        choice: the selection of device, backend and dtype.
        options: sizes and threads.
        limit: the most tokens a session keeps.

    Returns:
        The selection that is in use, its backend, and the number of pages of the KV cache.

    Raises:
        CheckpointError: a weight is missing or invalid.
        InputError: the backend cannot run with these options, or an explicitly requested GPU fails.
    """
    if choice.lacks_native:
        warn_of_plain_torch()
    try:
        with without_autocast(choice.device):
            backend = _make_backend(config, weights, choice, options)
            num_pages = options.num_pages(backend, limit)
            backend.allocate_cache(num_pages)
    except (InputError, CheckpointError):
        raise
    except Exception as error:  # a GPU's driver, compiler and allocator raise any class
        failure = str(error).strip().partition("\n")[0] or type(error).__name__
        if choice.device.type == "cpu":
            raise
        if choice.is_asked:
            raise InputError(f"device: expected one that can run this model, got {choice.device}; {failure}") from error

        dtype = "auto" if choice.dtype == "float16" else choice.dtype  # the native backend has no float16
        instead = choose_backend("cpu", dtype, head_dim=config.hidden_size // config.num_heads)
        what = f"the {instead.backend} backend in {instead.dtype} is"
        warnings.warn(f"{choice.device} is not used: {failure}; {what}", RuntimeWarning, stacklevel=4)
        instead = replace(instead, reason=f"{choice.device} failed: {failure}")
        return set_up(config, weights, instead, options, limit)
    if backend.timing:
        choice = replace(choice, reason=f"{choice.reason}; {backend.timing}")
    return choice, backend, num_pages


def _make_backend(config: JatConfig, weights: Weights, choice: Choice, options: EngineOptions) -> Backend:
    if options.persistent and choice.backend != "cuda":
        raise InputError(
            f"persistent: expected None or False on the {choice.backend} backend, got True; {choice.reason}"
        )
    options.check_kv_dtype(choice.backend, choice.reason)
    if choice.backend == "cpu":
        from .cpu import CpuBackend

        return CpuBackend(
            config,
            weights,
            choice.dtype,
            options.num_threads,
            options.spin_us,
            options.instruction_set,
            options.kv_dtype,
        )
    if choice.backend == "cuda":
        from .cuda.backend import CudaBackend

        return CudaBackend(
            config,
            weights,
            choice.dtype,
            choice.device,
            options.persistent,
            kv_dtype=options.kv_dtype,
        )
    from .torch import TorchBackend

    return TorchBackend(config, weights, choice.dtype, choice.device)
