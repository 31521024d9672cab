"""What is measured: models of the published sizes with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jat_engine import EngineOptions, JatConfig, JatEngine, JatModel, JatProcessor
from jat_engine.backends import choose_backend
from jat_engine.bench.workload import open_checkpoint
from jat_engine.checkpoint.weights import parameter_shapes
from jat_engine.engine.missions import Missions


def small_checkpoint() -> Path:
    """The published size with random weights; kept for the next run."""
    with open_checkpoint("small") as folder:
        return folder


class RandomWeights:
    """Weights of any size that are in no file; what the arithmetic costs does not depend on them."""

    def __init__(self, config: JatConfig) -> None:
        self._shapes = parameter_shapes(config)

    def get(self, name: str) -> Tensor:
        shape = self._shapes[name]
        if len(shape) == 1:
            return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
        return torch.randn(shape) * 0.02

    def pieces(self, name: str, rows: int = 2048) -> Any:
        yield from self.get(name).split(rows)

    def rows(self, name: str, count: int) -> Tensor:
        return self.get(name)[:count].contiguous()


def random_engine(preset: str, dtype: str, **options: Any) -> JatEngine:
    """An engine of a published size without a checkpoint."""
    config = JatConfig.from_preset(preset)
    missions = Missions.of_processor(JatProcessor.byte_level(config), config.vocab_size)
    return JatEngine(
        config, RandomWeights(config), choose_backend("cpu", dtype, "cpu"), EngineOptions(**options), missions
    )


def force_action(session: Any, action: Any) -> None:
    """Let the next step follow on `action` instead of the one that was chosen, so that runs stay comparable."""
    if isinstance(session, JatEngine | JatModel):
        raise TypeError("expected a session")
    session.force_action(action)
