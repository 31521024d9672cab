"""Tasks whose environment goes wrong in chosen episodes. `--task_module helpers.strange_tasks` registers them."""

from __future__ import annotations

import functools
import os
import signal
import sys
import time
from typing import Any

import gymnasium
import numpy as np

from jat_engine.envs import register_task

MODULE = __name__
LENGTH = 12
CHANGED = "STRANGE_TASKS_CHANGED_STEP"
"""Environment variable: the step, from 1, whose reward `strange-changed` changes in episodes with an odd seed."""
HELD = "STRANGE_TASKS_HELD_FILE"
"""Environment variable: while this file exists, `strange-held` stays in its 6th step."""


class Walk(gymnasium.Env[Any, Any]):
    """A random walk of `LENGTH` steps. Its rewards depend on the seed and the actions.

    Args:
        kind: what goes wrong, in the 6th step of episodes whose seed is odd unless it says otherwise.
    """

    observation_space = gymnasium.spaces.Box(-100, 100, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)

    def __init__(self, kind: str) -> None:
        self._kind, self._step, self._is_odd = kind, 0, False
        self._place = np.zeros(3, np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._is_odd, self._step = bool(seed and seed % 2), 0
        self._place = self.np_random.normal(size=3).astype(np.float32)
        if self._kind == "crashes-in-reset" and self._is_odd:
            os.kill(os.getpid(), signal.SIGSEGV)
        return self._place, {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._step += 1
        self._place = self._place + self.np_random.normal(size=3).astype(np.float32)
        reward = float(self._place[int(action)])
        if self._kind == "changed" and self._step == int(os.environ.get(CHANGED, "0")) and self._is_odd:
            reward += 0.5
        if self._kind == "held" and self._step == 6:
            while os.path.exists(os.environ[HELD]):  # noqa: PTH110
                time.sleep(0.02)
        if self._step == 6 and self._is_odd:
            reward = self._go_wrong(reward)
        return self._place, reward, self._step >= LENGTH and self._kind != "endless", False, {}

    def _go_wrong(self, reward: float) -> float:
        if self._kind == "raises":
            raise RuntimeError("the pole\nhas broken")
        if self._kind == "nan":
            return float("nan")
        if self._kind == "nan-observation":
            self._place[:] = np.nan
        if self._kind == "crashes":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self._kind == "exits":
            os._exit(3)
        if self._kind == "leaves":
            sys.exit(0)
        if self._kind == "hangs":
            while True:
                time.sleep(0.1)
        return reward


KINDS = (
    "plain",
    "changed",
    "held",
    "raises",
    "nan",
    "nan-observation",
    "crashes",
    "crashes-in-reset",
    "exits",
    "leaves",
    "hangs",
    "endless",
)

for _kind in KINDS:
    register_task(f"strange-{_kind}", functools.partial(Walk, _kind), domain="test-strange")
