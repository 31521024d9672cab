"""What jat-mini scores, beside a random policy, its demonstrators and the published expert, on the same seeds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..cli.environment import evaluation_env
from ..envs import TASKS, Task
from ..evaluation import run_episode
from ..experts import demonstrate, make_expert

Returns = list[float]


def evaluate(
    folder: Path, tasks: Iterable[str], num_episodes: int, tell: Callable[[str], object] = print
) -> dict[str, Any]:
    """Play all tasks with every kind of agent, actions taken greedily, episode i with seed i.

    Args:
        folder: of the checkpoint.
        tell: called with a line for each task and agent.

    Returns:
        Task -> agent -> returns. Agents are "random", "demonstrator", "engine_float32", "engine_bfloat16",
        "engine_int8" and "reference" (`JatModel`, float32). Beside them: `same_actions`, the number of episodes in
        which the reference took the float32 engine's actions in every step.
    """
    import torch

    from .. import JatEngine, JatModel, JatProcessor

    engines = {
        f"engine_{dtype}": JatEngine.from_pretrained(folder, device="cpu", dtype=dtype)
        for dtype in ("float32", "bfloat16", "int8")
    }
    model, processor = (
        JatModel.from_pretrained(folder, dtype=torch.float32).eval(),
        JatProcessor.from_pretrained(folder),
    )
    scores: dict[str, Any] = {}
    for name in tasks:
        task = TASKS[name]
        with contextlib.closing(evaluation_env(task)) as env:
            seeds = range(num_episodes)
            row: dict[str, Any] = {
                "random": [_random_return(env, task, seed) for seed in seeds],
                "demonstrator": _demonstrator_returns(env, task, seeds),
            }
            actions: dict[str, list[list[Any]]] = {}
            for agent, player in {**engines, "reference": model}.items():
                recorder = _Recorder(player)
                episodes = [
                    run_episode(recorder, processor, env, task=task, seed=seed, deterministic=True) for seed in seeds
                ]
                row[agent] = [episode.return_ for episode in episodes]
                row.setdefault("lengths", {})[agent] = [episode.length for episode in episodes]
                actions[agent] = recorder.episodes
                latency = float(np.median(np.concatenate([e.latencies_us for e in episodes])))
                row.setdefault("latency_us", {})[agent] = latency
                tell(f"{name}: {agent}: {np.mean(row[agent]):.2f} +/- {np.std(row[agent]):.2f}")
            row["same_actions"] = sum(map(_same, actions["engine_float32"], actions["reference"]))
            row["largest_difference"] = max(map(_difference, actions["engine_float32"], actions["reference"]))
            tell(f"{name}: random {np.mean(row['random']):.2f}, demonstrator {np.mean(row['demonstrator']):.2f}, same ")
        scores[name] = row
    return scores


class _Recorder:
    """An agent that remembers what it did."""

    def __init__(self, agent: Any) -> None:
        self._agent = agent
        self.episodes: list[list[Any]] = []

    def reset_rl(self) -> None:
        self._agent.reset_rl()
        self.episodes.append([])

    def get_next_action(self, *args: Any, **kwargs: Any) -> Any:
        action = self._agent.get_next_action(*args, **kwargs)
        self.episodes[-1].append(action)
        return action


def _difference(first: list[Any], second: list[Any]) -> float:
    """The largest difference of two episodes' actions, up to where the shorter ends."""
    return max(float(np.abs(np.subtract(a, b)).max()) for a, b in zip(first, second, strict=False))


def _same(first: list[Any], second: list[Any], tolerance: float = 1e-3) -> bool:
    """Equal discrete actions; continuous ones within `tolerance`, since rounding grows in a simulator."""
    return len(first) == len(second) and _difference(first, second) <= (tolerance if np.ndim(first[0]) else 0)


def _random_return(env: Any, task: Task, seed: int) -> float:
    rng = np.random.default_rng(seed)
    env.reset(seed=seed)
    space, total, done = env.action_space, 0.0, False
    while not done:
        action = (
            int(rng.integers(space.n)) if hasattr(space, "n") else rng.uniform(space.low, space.high).astype(np.float32)
        )
        _, reward, terminated, truncated, info = env.step(action)
        total += float(reward)
        done = terminated or truncated
        if done and task.domain == "atari" and "episode" not in info:
            env.reset()
            done = False
    return total


def _demonstrator_returns(env: Any, task: Task, seeds: Iterable[int]) -> Returns:
    expert = make_expert(task, env)
    return [demonstrate(env, expert, task=task, seed=seed).return_ for seed in seeds]
