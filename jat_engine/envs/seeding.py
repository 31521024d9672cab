"""The seed that an environment is made with."""

from __future__ import annotations

from typing import Any

import gymnasium as gym


class FirstSeed(gym.Wrapper[Any, Any, Any, Any]):
    """The first `reset()` without a seed uses `seed`; the action space samples from it from the start."""

    def __init__(self, env: gym.Env[Any, Any], seed: int) -> None:
        super().__init__(env)
        self._seed: int | None = seed
        self.action_space.seed(seed)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        first, self._seed = self._seed, None
        return self.env.reset(seed=first if seed is None else seed, options=options)
