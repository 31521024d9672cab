"""Loading the agent that a command line names."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

import jat_engine

from .arguments import ModelArguments, note


def load_agent(arguments: ModelArguments) -> tuple[jat_engine.JatModel, jat_engine.JatProcessor]:
    """Model and processor, the model on the device asked for.

    Raises:
        ValueError: there is no such checkpoint, it cannot be read, or it is not JAT's.
    """
    source = arguments.model_name_or_path
    if arguments.trust_remote_code:
        note("--trust_remote_code is ignored: code in a checkpoint is never run")
    if not Path(source).is_dir() and (source.startswith((".", "/", "~")) or source.count("/") != 1):
        raise ValueError(f"--model_name_or_path: there is no folder {source}, and it is no name on the hub")
    with quiet_loading():
        try:
            model = jat_engine.AutoModelForCausalLM.from_pretrained(source, cache_dir=arguments.cache_dir)
            if not isinstance(model, jat_engine.JatModel):
                raise ValueError(f"expected a checkpoint of model type 'jat', got {model.config.model_type!r}")
            processor = jat_engine.AutoProcessor.from_pretrained(source, cache_dir=arguments.cache_dir)
        except (OSError, ValueError) as error:
            raise ValueError(f"--model_name_or_path {source}: {error}") from error
    model.to(default_device(arguments.use_cpu))  # type: ignore[arg-type]  # transformers' wrapper is mistyped
    return model, processor


def default_device(use_cpu: bool = False) -> torch.device:
    """The GPU where there is one and it is wanted."""
    if not use_cpu and torch.cuda.is_available():
        return torch.device("cuda")
    if not use_cpu and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def device_name(device: Any) -> str:
    """What `device` is, in words."""
    from ..info import cpu_name

    device = torch.device(device)
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    return f"cpu: {cpu_name()}, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Without transformers' progress bars and remarks."""
    shown, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if shown:
            transformers_logging.enable_progress_bar()
