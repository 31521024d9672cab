"""A demonstration without a checkpoint: one task of every domain, played by a model with random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from .config import JatConfig
from .envs import TASKS, Task
from .evaluation import Agent, EpisodeResult
from .modeling import JatModel
from .processing import JatProcessor

DEMO_TASKS = ("atari-pong", "babyai-go-to-local", "metaworld-reach", "mujoco-hopper")

MAX_STEPS = 150
"""Per task: enough for whole episodes but Atari's, which take thousands of steps."""


def random_agent(preset: str = "small", seed: int = 0) -> tuple[JatModel, JatProcessor]:
    """A model of a published size with random weights, always the same for a seed, and a processor without files."""
    config = JatConfig.from_preset(preset)
    generator_state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = JatModel(config).eval()
    torch.set_rng_state(generator_state)
    return model, JatProcessor.byte_level(config)
