"""What agents see and do in benchmarks, alike on CPUs and GPUs. Needs no gymnasium."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Box:
    """Has the name and the field that the engine knows gymnasium's by; so none is needed."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class Discrete:
    n: int
    start: int = 0


SPACES: dict[str, Any] = {"continuous": Box((8,)), "babyai": Discrete(7), "atari": Discrete(18)}
"""Action spaces of an Ant, of BabyAI, and of Atari with all its actions."""

REWARD = 0.1


def observation(kind: str, step: int, seed: int = 0) -> dict[str, Any]:
    """27 numbers, 148 integers with a mission, or four frames: random, the same for the same arguments."""
    rng = np.random.default_rng([seed, step])
    if kind == "continuous":
        return {"continuous_observation": rng.standard_normal(27).astype(np.float32)}
    if kind == "babyai":
        return {"discrete_observation": rng.integers(0, 8, 148), "text_observation": "go to the red ball"}
    return {"image_observation": rng.integers(0, 256, (84, 84, 4), dtype=np.uint8)}


def step_arguments(kind: str, step: int, seed: int = 0) -> dict[str, Any]:
    """Keyword arguments of `get_next_action`."""
    return {**observation(kind, step, seed), "action_space": SPACES[kind], "reward": REWARD, "deterministic": True}
