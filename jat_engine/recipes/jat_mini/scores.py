"""What jat-mini scores, beside a random policy and its demonstrators on the same seeds."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...collect.experts import demonstrate, make_expert
from ...envs import TASKS
from ...evaluation import run_episode
from ...evaluation.environment import evaluation_env
from ...evaluation.progress import simulator_output
from .card import AGENTS, SAME_TOLERANCE

_EPISODES_OF_A_JOB = 5


@dataclass(frozen=True)
class _Job:
    task: str
    agent: str
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class _Played:
    """One episode: its return, its actions, and the median time of a call."""

    return_: float
    actions: list[Any]
    latency_us: float


def evaluate(
    folder: Path,
    tasks: Iterable[str],
    num_episodes: int,
    num_workers: int = 1,
    tell: Callable[[str], object] = print,
) -> dict[str, Any]:
    """Play all tasks with every kind of agent, actions taken greedily, episode i with seed i.

    Args:
        folder: of the checkpoint.
        num_workers: processes, each with one thread.
        tell: called with a line for each task and agent.

    Returns:
        Task -> agent -> returns. Agents are "random", "demonstrator", "engine_float32", "engine_bfloat16",
        "engine_int8" and "reference" (`JatModel`, float32). Beside them: `same_actions`, the number of episodes in
        which the reference took the float32 engine's actions in every step; `largest_difference` of an action's value
        in these two; `lengths`, steps of the float32 engine's episodes; `latency_us`, by agent.
    """
    names = list(tasks)
    agents = ("random", "demonstrator", *AGENTS)
    pieces = [
        tuple(range(first, min(first + _EPISODES_OF_A_JOB, num_episodes)))
        for first in range(0, num_episodes, _EPISODES_OF_A_JOB)
    ]
    jobs = [_Job(task, agent, seeds) for task in names for agent in agents for seeds in pieces]
    played: dict[tuple[str, str], list[_Played]] = {}
    context = multiprocessing.get_context("spawn")
    with context.Pool(num_workers, initializer=_one_thread) as pool:
        for job, episodes in zip(jobs, pool.imap(functools.partial(_play, str(folder)), jobs), strict=True):
            done = played.setdefault((job.task, job.agent), [])
            done += episodes
            if len(done) == num_episodes:
                returns = [episode.return_ for episode in done]
                tell(f"{job.task}: {job.agent}: {np.mean(returns):.2f} +/- {np.std(returns):.2f}")
        pool.close()
        pool.join()
    return {task: _row({agent: played[task, agent] for agent in agents}) for task in names}


def _row(played: dict[str, list[_Played]]) -> dict[str, Any]:
    row: dict[str, Any] = {agent: [episode.return_ for episode in episodes] for agent, episodes in played.items()}
    pairs = [(a.actions, b.actions) for a, b in zip(played["engine_float32"], played["reference"], strict=True)]
    row["same_actions"] = sum(_same(*pair) for pair in pairs)
    row["largest_difference"] = max(_difference(*pair) for pair in pairs)
    row["lengths"] = [len(first) for first, _ in pairs]
    row["latency_us"] = {agent: float(np.median([e.latency_us for e in played[agent]])) for agent in AGENTS}
    return row


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _play(folder: str, job: _Job) -> list[_Played]:
    task = TASKS[job.task]
    with contextlib.closing(evaluation_env(task)) as env, simulator_output():
        if job.agent == "random":
            return [_Played(_random_return(env, job.task, seed), [], 0.0) for seed in job.seeds]
        if job.agent == "demonstrator":
            expert = make_expert(task, env)
            returns = [demonstrate(env, expert, task=task, seed=seed).return_ for seed in job.seeds]
            return [_Played(value, [], 0.0) for value in returns]
        agent, processor = _agent(folder, job.agent)
        recorder = _Recorder(agent)
        episodes = []
        for seed in job.seeds:
            result = run_episode(recorder, processor, env, task=task, seed=seed, deterministic=True)
            episodes.append(_Played(result.return_, recorder.actions, float(np.median(result.latencies_us))))
        return episodes


@functools.cache
def _agent(folder: str, name: str) -> tuple[Any, Any]:
    """An agent, and the processor it is given."""
    import torch

    from ... import JatEngine, JatModel, JatProcessor

    if name == "reference":
        model = JatModel.from_pretrained(folder, dtype=torch.float32).eval()
        return model, JatProcessor.from_pretrained(folder)
    dtype = name.removeprefix("engine_")
    return JatEngine.from_pretrained(folder, device="cpu", dtype=dtype, num_threads=1), None


class _Recorder:
    """An agent that remembers what it did since it began."""

    def __init__(self, agent: Any) -> None:
        self._agent = agent
        self.actions: list[Any] = []

    def reset_rl(self) -> None:
        self._agent.reset_rl()
        self.actions = []

    def get_next_action(self, *args: Any, **kwargs: Any) -> Any:
        action = self._agent.get_next_action(*args, **kwargs)
        self.actions.append(action)
        return action


def _difference(first: list[Any], second: list[Any]) -> float:
    """The largest difference of two episodes' actions, up to where the shorter ends."""
    return max(float(np.abs(np.subtract(a, b)).max()) for a, b in zip(first, second, strict=False))


def _same(first: list[Any], second: list[Any]) -> bool:
    """Equal discrete actions; continuous ones within `SAME_TOLERANCE`, since rounding grows in a simulator."""
    tolerance = SAME_TOLERANCE if np.ndim(first[0]) else 0.0
    return len(first) == len(second) and _difference(first, second) <= tolerance


def _random_return(env: Any, name: str, seed: int) -> float:
    rng = np.random.default_rng(seed)
    env.reset(seed=seed)
    space, total, done = env.action_space, 0.0, False
    while not done:
        action: Any = int(rng.integers(space.n)) if hasattr(space, "n") else rng.uniform(space.low, space.high)
        _, reward, terminated, truncated, info = env.step(action)
        total += float(reward)
        done = terminated or truncated
        if done and TASKS[name].domain == "atari" and "episode" not in info:
            env.reset()  # a life was lost
            done = False
    return total
