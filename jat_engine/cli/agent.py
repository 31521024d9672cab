"""Loading of the agent that a command line names."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import logging as transformers_logging

from .. import checkpoint_files
from ..backends.base import PAGE_SIZE, STEP_TOKENS
from ..checkpoint.reader import find_weight_files
from ..config import JatConfig
from ..dtypes import QUANTIZED_DTYPES
from ..engine.engine import JatEngine
from ..runs.agents import ActOptions, LoadedAgents
from ..runs.run import make_agents
from ..runs.settings import machine_settings, weights_sha256
from .arguments import ModelArguments, note

if TYPE_CHECKING:  # their import takes seconds, and an engine does without
    from ..model.modeling import JatModel
    from ..model.processing import JatProcessor


def load_agent(
    arguments: ModelArguments, num_agents: int | None = None, **options: Any
) -> tuple[JatEngine | JatModel, JatProcessor | None]:
    """Load the agent: an engine, or with `--backend reference` a `JatModel` and its processor.

    Args:
        arguments: of the command.
        num_agents: sessions that the engine must have room for; None for its default.
        options: further ones of `JatEngine.from_pretrained`, for an engine.

    Returns:
        `(agent, processor)`; the processor is None for an engine.

    Raises:
        ValueError: there is no such checkpoint, it cannot be read, it belongs to another model, or an option is not
            possible on this machine.
    """
    source = arguments.model_name_or_path
    if arguments.trust_remote_code:
        note("--trust_remote_code is ignored: code in a checkpoint is never run")
    check_source("--model_name_or_path", source)
    with quiet_loading():
        try:
            if arguments.backend == "reference":
                return load_model(arguments)
            engine = JatEngine.from_pretrained(
                source,
                device="cpu" if arguments.use_cpu else "auto",
                dtype=arguments.dtype,
                backend=arguments.backend,
                cache_dir=arguments.cache_dir,
                max_cached_tokens=None if num_agents is None else num_agents * _window_tokens(arguments),
                **options,
            )
        except (OSError, ValueError) as error:
            raise about_source(source, error) from error
    return engine, None


def load_agents(arguments: ModelArguments, options: ActOptions, num_agents: int | None = None) -> LoadedAgents:
    """Load the agent's side of a run; see `load_agent`.

    Args:
        arguments: of the command.
        options: of the choice of actions.
        num_agents: see `load_agent`.
    """
    agent, processor = load_agent(arguments, num_agents)
    settings = machine_settings() | settings_of(agent)
    return LoadedAgents(make_agents(agent, processor, options), settings, describe(agent))


def load_hashed_agents(arguments: ModelArguments, options: ActOptions, num_agents: int | None = None) -> LoadedAgents:
    """Load the agent's side of a run on another machine, with the SHA-256 of the weights that it finds there."""
    loaded = load_agents(arguments, options, num_agents)
    return replace(loaded, settings={**loaded.settings, "weights_sha256": weights_of(arguments)})


def _window_tokens(arguments: ModelArguments) -> int:
    """Return the tokens of the KV cache that a session can need at most, in whole pages."""
    tokens = load_config(arguments).max_context_tokens + STEP_TOKENS
    return (math.ceil(tokens / PAGE_SIZE) + 1) * PAGE_SIZE


def load_config(arguments: ModelArguments) -> JatConfig:
    """Load the configuration of the agent alone, which is quick.

    Raises:
        ValueError: there is no such checkpoint, or its configuration cannot be read.
    """
    source = arguments.model_name_or_path
    check_source("--model_name_or_path", source)
    try:
        with quiet_loading():
            config: JatConfig = JatConfig.from_pretrained(
                checkpoint_files.resolve(source), cache_dir=arguments.cache_dir
            )
    except (OSError, ValueError) as error:
        raise about_source(source, error) from error
    return config


def weights_of(arguments: ModelArguments) -> str:
    """Return the SHA-256 of the agent's weights."""
    source = checkpoint_files.resolve(arguments.model_name_or_path)
    return weights_sha256(find_weight_files(source, None, {"cache_dir": arguments.cache_dir}))


def settings_of(agent: JatEngine | JatModel) -> dict[str, str]:
    """Return the backend, the dtype and the kind of device that compute the agent's actions."""
    if isinstance(agent, JatEngine):
        choice = agent.choice
        return {"backend": str(choice.backend), "dtype": str(choice.dtype), "device": choice.device.type}
    return {"backend": "reference", "dtype": str(agent.dtype).removeprefix("torch."), "device": agent.device.type}


def with_absolute_paths(arguments: ModelArguments) -> ModelArguments:
    """Return arguments that name the same folders in a process with another current folder."""
    found, cache = checkpoint_files.resolve(arguments.model_name_or_path), arguments.cache_dir
    is_folder = isinstance(found, Path) and found != checkpoint_files.JAT_MINI_FOLDER  # which each machine has
    return replace(
        arguments,
        model_name_or_path=str(Path(found).absolute()) if is_folder else arguments.model_name_or_path,
        cache_dir=None if cache is None else str(Path(cache).absolute()),
    )


def check_source(field: str, source: str) -> None:
    """Check that `source` is "jat-mini", a folder, or could be the name of a repository on the hub.

    Raises:
        ValueError: it is none of them; the message begins with `field`.
    """
    try:
        checkpoint_files.check_source(source)
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from None


def about_source(source: str, error: Exception) -> ValueError:
    """Return the error of a checkpoint's files with the flag and the checkpoint's name before it, once each."""
    named = f"--model_name_or_path {source}: "
    return ValueError(named + str(error).removeprefix(named).removeprefix(f"{source}: "))


def load_model(arguments: ModelArguments) -> tuple[JatModel, JatProcessor]:
    """Load the reference model on the selected device, and its processor.

    Raises:
        ValueError: `--dtype` is int8 or int4, which the reference does not support.
    """
    from .. import JatModel, JatProcessor

    source = arguments.model_name_or_path
    dtype = "float32" if arguments.dtype == "auto" else arguments.dtype
    if dtype in QUANTIZED_DTYPES:
        raise ValueError(f"--dtype: expected float32 or bfloat16 with --backend reference, got {dtype}")
    model = JatModel.from_pretrained(source, cache_dir=arguments.cache_dir, dtype=getattr(torch, dtype))
    model.to(default_device(arguments.use_cpu))
    return model, JatProcessor.from_pretrained(source, cache_dir=arguments.cache_dir)


def default_device(use_cpu: bool = False) -> torch.device:
    """Return the GPU if there is one and `use_cpu` is false, else the CPU."""
    if not use_cpu and torch.cuda.is_available():
        return torch.device("cuda")
    if not use_cpu and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def describe(agent: JatEngine | JatModel) -> str:
    """Return a description of an agent and its device, for people."""
    if isinstance(agent, JatEngine):
        choice = agent.choice
        return f"JatEngine, backend {choice.backend}, {choice.dtype}; {device_name(choice.device, agent.num_threads)}"
    return f"JatModel, {str(agent.dtype).removeprefix('torch.')}; {device_name(agent.device, torch.get_num_threads())}"


def device_name(device: Any, num_threads: int) -> str:
    """Return a description of a device, for people."""
    from ..installation import cpu_name

    device = torch.device(device)
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    threads = f"{num_threads} thread{'' if num_threads == 1 else 's'}"
    return f"cpu: {cpu_name()}, {threads}" if device.type == "cpu" else device.type


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Turn off transformers' progress bars and log messages while the `with` block runs."""
    shown, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if shown:
            transformers_logging.enable_progress_bar()
