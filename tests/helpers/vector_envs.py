"""Helpers for tests of vector environments: short episodes of each domain, and what each agent does in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from jat_engine import JatEngine
from jat_engine.envs import TASKS, make
from jat_engine.evaluation.rollout import run_episode

# Steps that an episode may take (in Atari: frames), and steps to play: so that each agent begins at least its second
# episode, and Breakout loses a life (after 22 steps).
PLAYED = {
    "atari-breakout": ("ale_py", 26, 56),
    "babyai-go-to-obj": ("minigrid", 64, 60),
    "metaworld-drawer-open": ("metaworld", 25, 60),
    "mujoco-reacher": ("mujoco", 20, 70),
}

Episode = tuple[list[Any], float]
"""Actions and return of an episode."""


def options(task: str) -> dict[str, Any]:
    return {"max_episode_steps": PLAYED[task][1], **({"clip_reward": False} if task.startswith("atari") else {})}


class Recorder(gymnasium.vector.VectorWrapper):
    """Vector environment that records each agent's finished episodes."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.episodes: list[list[Episode]] = [[] for _ in range(env.num_envs)]
        self._running: list[Episode] = [([], 0.0) for _ in range(env.num_envs)]
        self._waits = np.zeros(env.num_envs, bool)

    def step(self, actions: Any) -> Any:
        result = super().step(actions)
        _, rewards, terminated, truncated, _ = result
        for agent in range(self.num_envs):
            if self._waits[agent]:  # the step that resets it
                continue
            played, total = self._running[agent]
            self._running[agent] = ([*played, np.asarray(actions[agent]).tolist()], total + float(rewards[agent]))
            if terminated[agent] or truncated[agent]:
                self.episodes[agent].append(self._running[agent])
                self._running[agent] = ([], 0.0)
        if self.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP:
            self._waits = terminated | truncated
        return result


class RecordActions(gymnasium.Wrapper):  # type: ignore[type-arg]
    """Environment that records the actions since its last reset."""

    def reset(self, **kwargs: Any) -> Any:
        self.actions: list[Any] = []
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> Any:
        self.actions.append(np.asarray(action).tolist())
        return self.env.step(action)


def play_alone(engine: JatEngine, task: str, seed: int, deterministic: bool = True, **given: Any) -> Iterator[Episode]:
    """Play an agent on its own: an episode of the seed, then episodes that go on with its random numbers."""
    env = RecordActions(make(task, **(given or options(task))))
    first: int | None = seed
    while True:
        result = run_episode(engine, None, env, task=TASKS[task], seed=first, deterministic=deterministic)
        yield env.actions, result.return_
        first = None
