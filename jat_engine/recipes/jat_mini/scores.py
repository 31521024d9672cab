"""Scores of jat-mini, compared with a random policy and the demonstrators on the same seeds."""

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
    """Result of one episode: return, actions, and median duration of a call in microseconds."""

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
    """Play episodes of all tasks with every kind of agent. Actions are greedy, and episode i has seed i.

    Args:
        folder: folder of the checkpoint.
        tasks: names of the tasks.
        num_episodes: episodes per task and agent.
        num_workers: number of processes, each with one thread.
        tell: function that is called with a line for each task and agent.

    Returns:
        Task -> agent -> returns. Agents are "random", "demonstrator", "engine_float32", "engine_bfloat16",
        "engine_int8" and "reference" (`JatModel`, float32). Each task also has `same_actions`, the number of episodes
        in which reference and float32 engine chose the same action at every step; `largest_difference` between their
        action values; `lengths`, the steps of the float32 engine's episodes; `latency_us`, by agent.
    """
    names = list(tasks)
    agents = ("random", "demonstrator", *AGENTS)
    seed_groups = [
        tuple(range(first, min(first + _EPISODES_OF_A_JOB, num_episodes)))
        for first in range(0, num_episodes, _EPISODES_OF_A_JOB)
    ]
    jobs = [_Job(task, agent, seeds) for task in names for agent in agents for seeds in seed_groups]

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
            return [_Played(_random_return(env, seed), [], 0.0) for seed in job.seeds]
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
    """Load an agent by name, and return it with the processor that its calls need, or None."""
    import torch

    from ... import JatEngine, JatModel, JatProcessor

    if name == "reference":
        model = JatModel.from_pretrained(folder, dtype=torch.float32).eval()
        return model, JatProcessor.from_pretrained(folder)
    dtype = name.removeprefix("engine_")
    return JatEngine.from_pretrained(folder, device="cpu", dtype=dtype, num_threads=1), None


class _Recorder:
    """Agent that records the actions of the current episode of another agent."""

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
    """Return the largest difference between the actions of two episodes, over the steps of the shorter one."""
    return max(float(np.abs(np.subtract(a, b)).max()) for a, b in zip(first, second, strict=False))


def _same(first: list[Any], second: list[Any]) -> bool:
    """Return whether two episodes have equal actions; continuous ones may differ by `SAME_TOLERANCE`.

    A simulator amplifies rounding errors from step to step.
    """
    tolerance = SAME_TOLERANCE if np.ndim(first[0]) else 0.0
    return len(first) == len(second) and _difference(first, second) <= tolerance


def _random_return(env: Any, seed: int) -> float:
    rng = np.random.default_rng(seed)
    env.reset(seed=seed)
    space, total, done = env.action_space, 0.0, False
    while not done:
        action: Any = int(rng.integers(space.n)) if hasattr(space, "n") else rng.uniform(space.low, space.high)
        _, reward, terminated, truncated, _ = env.step(action)
        total += float(reward)
        done = terminated or truncated
    return total
