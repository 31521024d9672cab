"""Small environments of one's own, which worker processes can make: random numbers of all kinds, errors, and deaths."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from jat_engine.envs import Task

DEATHS = "JAT_ENGINE_TEST_DEATHS"
"""Environment variable with a folder: an episode whose seed is the name of a file there kills its process, as many
times as the file has bytes."""

RESET_FAILS, STEP_FAILS, BAD_REWARD = 1001, 1002, 1003
"""Seeds of episodes that fail: in the reset, by an error of the third step, by a reward that is no number."""

LARGE = 5000
"""Numbers of a large observation, 40,000 bytes."""


class Dice(gymnasium.Env[Any, Any]):
    """Throw dice for five steps. They come from the environment's own generator and from the two global ones.

    Args:
        size: numbers of an observation.

    Attributes:
        closed: environments that were closed in this process.
    """

    closed = 0

    def __init__(self, size: int = 4) -> None:
        self.observation_space = spaces.Dict({"continuous_observation": spaces.Box(-np.inf, np.inf, (size,))})
        self.action_space = spaces.Discrete(3)
        self._seed, self._step = 0, 0
        self._numbers = np.zeros(size)
        random.random(), np.random.rand()  # noqa: NPY002  # as some environments draw a layout

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self._seed, self._step = seed or 0, 0
        if seed == RESET_FAILS:
            raise RuntimeError("no\ndice")
        return self._throw(), {}

    def step(self, action: int) -> Any:
        self._step += 1
        if self._step == 2:
            die_if_told(self._seed)
        if self._step == 3 and self._seed == STEP_FAILS:
            raise RuntimeError("lost a die")
        reward = action + random.random() + float(self._numbers.mean())
        info = {"success": self._step == 4}
        return self._throw(), np.nan if self._seed == BAD_REWARD else reward, self._step == 5, False, info

    def close(self) -> None:
        Dice.closed += 1

    def _throw(self) -> dict[str, np.ndarray]:
        self._numbers[:] = self.np_random.normal(size=self._numbers.shape) + np.random.rand()  # noqa: NPY002
        return {"continuous_observation": self._numbers}  # the same array in every step


def die_if_told(seed: int) -> None:
    """Kill this process if a test has planned that."""
    path = Path(os.environ.get(DEATHS, "/nowhere")) / str(seed)
    if path.exists() and (left := len(path.read_bytes())):
        path.write_bytes(b"." * (left - 1))
        os.kill(os.getpid(), signal.SIGKILL)


def make_dice() -> Dice:
    return Dice()


def make_large() -> Dice:
    return Dice(LARGE)


DICE = Task("dice", "helpers.dice:make_dice", "continuous", "discrete", 8, success="info")
"""Four dice."""

MANY_DICE = Task("many-dice", "helpers.dice:make_large", "continuous", "discrete", 8)
"""`LARGE` dice."""
