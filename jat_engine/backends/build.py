"""Make the backend that was chosen, with its cache."""

from __future__ import annotations

import warnings
from dataclasses import replace

from ..checkpoint.weights import Weights
from ..config import JatConfig
from ..errors import CheckpointError, InputError
from .base import Backend
from .options import EngineOptions
from .select import Choice, choose_backend, warn_of_plain_torch


def set_up(
    config: JatConfig, weights: Weights, choice: Choice, options: EngineOptions, limit: int
) -> tuple[Choice, Backend, int]:
    """Make the chosen backend and its cache; where a GPU was not asked for and fails, the CPU's instead.

    Args:
        config: of the model.
        weights: of the model.
        choice: what `choose_backend` found.
        options: those of the engine.
        limit: the most tokens that a session keeps.

    Returns:
        What was chosen in the end, the backend, and the number of its cache's pages.
    """
    if choice.lacks_native:
        warn_of_plain_torch()
    try:
        backend = _make_backend(config, weights, choice, options)
        num_pages = options.num_pages(backend, limit)
        backend.allocate_cache(num_pages)
    except (InputError, CheckpointError):
        raise
    except Exception as error:  # whatever a GPU's driver, compiler or memory comes up with
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
    return choice, backend, num_pages


def _make_backend(config: JatConfig, weights: Weights, choice: Choice, options: EngineOptions) -> Backend:
    if options.one_launch and choice.backend != "cuda":
        raise InputError(
            f"one_launch: expected None or False on the {choice.backend} backend, got True; {choice.reason}"
        )
    if choice.backend == "cpu":
        from .cpu import CpuBackend

        return CpuBackend(config, weights, choice.dtype, options.num_threads, options.spin_us, options.instruction_set)
    if choice.backend == "cuda":
        from .cuda.backend import CudaBackend

        return CudaBackend(config, weights, choice.dtype, choice.device, options.one_launch, options.fixed_order)
    from .torch import TorchBackend

    return TorchBackend(config, weights, choice.dtype, choice.device)
