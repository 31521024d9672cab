"""Expert for gym:Pendulum-v1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

UPRIGHT_ENERGY = 5.0
"""Of a rod of 1 kg and 1 m at rest, against its axis, at 10 m/s²."""


def swing_up(env: gymnasium.Env[Any, Any]) -> Callable[[dict[str, Any]], np.ndarray]:
    """Pump energy until the rod has that of the upright position, then hold it there by linear feedback."""
    limit = env.action_space.high

    def policy(observation: dict[str, Any]) -> np.ndarray:
        cosine, sine, speed = observation["continuous_observation"]
        energy = speed**2 / 6 + UPRIGHT_ENERGY * cosine
        if cosine > 0.9 and abs(speed) < 2.5:
            torque = -10 * np.arctan2(sine, cosine) - 2 * speed
        else:
            torque = (UPRIGHT_ENERGY - energy) * (speed if abs(speed) > 0.1 else 0.1)
        return np.clip(np.full(limit.shape, torque), -limit, limit).astype(np.float32)

    return policy
