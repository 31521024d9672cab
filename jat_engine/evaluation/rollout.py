"""Playing episodes: one agent, one environment."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

if TYPE_CHECKING:
    import gymnasium

    from ..envs import Task


class Agent(Protocol):
    """What plays: `JatModel`, or anything with these two methods."""

    def reset_rl(self) -> None: ...

    def get_next_action(self, *args: Any, **kwargs: Any) -> Any: ...


@dataclass(frozen=True)
class EpisodeResult:
    """One finished episode.

    Attributes:
        return_: sum of the rewards the environment gave.
        length: steps.
        seconds: wall time, environment included.
        latencies_us: float64 [length], time of each `get_next_action`.
        seed: of the environment and of the sampling; None if unseeded.
        capped: stopped at `max_steps`, before the environment ended it.
    """

    return_: float
    length: int
    seconds: float
    latencies_us: np.ndarray
    seed: int | None
    capped: bool = False


def run_episode(
    agent: Agent,
    processor: Any,
    env: gymnasium.Env[Any, Any],
    *,
    task: Task,
    seed: int | None = None,
    deterministic: bool = False,
    context_window: int | None = None,
    max_steps: int | None = None,
    on_frame: Callable[[np.ndarray], None] | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> EpisodeResult:
    """Play one episode with the published protocol.

    The agent starts anew (`reset_rl`) and has no reward before its first action. Atari: losing a life looks like an
    end, without `"episode"` in `info`; the environment is then reset and the episode goes on, for the agent too.
    Predictions reach the environment as they are, also those outside the action space's bounds.

    Args:
        agent: `JatModel` or an engine.
        processor: passed to the agent.
        env: of `jat_engine.envs.make(task.name)`; for Atari with `clip_reward=False`, or returns are not comparable.
        seed: seeds the environment and, as sampled actions come from it, torch's global generator. The episode then
            depends on nothing that ran before. None leaves both as they are.
        deterministic: the most likely discrete action instead of a sampled one.
        context_window: tokens the agent looks back on; None takes the task's.
        max_steps: stop after so many steps.
        on_frame: called with `env.render()` after each step; the environment needs `render_mode="rgb_array"`.
        on_step: called with the number of steps and the return so far after each step.
    """
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"max_steps: expected None or at least 1, got {max_steps}")
    window = task.context_window if context_window is None else context_window
    began = time.perf_counter()
    if seed is not None:
        torch.manual_seed(seed)
    agent.reset_rl()
    observation, _ = env.reset(seed=seed)
    reward: float | None = None
    latencies_us: list[float] = []
    total, done = 0.0, False
    while not done and len(latencies_us) != max_steps:
        start = time.perf_counter_ns()
        action = agent.get_next_action(
            processor,
            **observation,
            reward=reward,
            action_space=env.action_space,
            deterministic=deterministic,
            context_window=window,
        )
        latencies_us.append((time.perf_counter_ns() - start) / 1e3)
        if not isinstance(action, int | np.integer):
            action = np.asarray(action, np.float32)
        observation, step_reward, terminated, truncated, info = env.step(action)
        reward = float(step_reward)
        total += reward
        done = terminated or truncated
        if done and task.domain == "atari" and "episode" not in info:
            observation, _ = env.reset()  # a life was lost: no seed, or the game would start again
            done = False
        if on_frame is not None:
            on_frame(_frame(env))
        if on_step is not None:
            on_step(len(latencies_us), total)
    return EpisodeResult(
        return_=total,
        length=len(latencies_us),
        seconds=time.perf_counter() - began,
        latencies_us=np.array(latencies_us),
        seed=seed,
        capped=not done,
    )


def run_episodes(
    agent: Agent,
    processor: Any,
    env: gymnasium.Env[Any, Any],
    num_episodes: int,
    *,
    task: Task,
    seed: int | None = None,
    **options: Any,
) -> Iterator[EpisodeResult]:
    """Play `num_episodes`, episode i with seed `seed + i`. `options` are those of `run_episode`."""
    if num_episodes < 1:
        raise ValueError(f"num_episodes: expected at least 1, got {num_episodes}")
    for i in range(num_episodes):
        episode_seed = None if seed is None else seed + i
        yield run_episode(agent, processor, env, task=task, seed=episode_seed, **options)


def _frame(env: gymnasium.Env[Any, Any]) -> np.ndarray:
    frame = env.render()
    if not isinstance(frame, np.ndarray):
        raise ValueError(f'env.render(): expected a frame, got {frame!r}; pass render_mode="rgb_array" to make')
    return frame
