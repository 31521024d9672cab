"""Measure how far keys and values in float8 move jat-mini's actions and returns, on a CPU.

    python -m benchmarks.float8_skill [--tasks babyai-go-to-obj ...] [--episodes 10] [--write]

The torch backend computes in float32 and rounds keys and values as `paged_attention` does with kv_dtype="float8_e4m3",
bit for bit; a GPU's float16 products add less. Two comparisons with the same seeds:

- same history: the unquantised agent plays; the other sees its observations and actions and predicts as well.
- own history: each agent plays by itself; returns with 95 % intervals of the mean of the difference.

--write keeps the table in benchmarks/results/float8_skill.{json,md}.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from jat_engine import JatEngine
from jat_engine.backends import torch as torch_backend
from jat_engine.bench.report import markdown
from jat_engine.envs import TASKS
from jat_engine.evaluation.environment import evaluation_env
from jat_engine.evaluation.rollout import run_episode
from jat_engine.kernels.quantized_attention import quantize_reference

RESULTS = Path(__file__).parent / "results" / "float8_skill"
EPISODES = {"babyai-go-to-obj": 20, "metaworld-door-close": 5, "mujoco-reacher": 20, "atari-pong": 1}
MAX_STEPS = 400
_attend = torch_backend.attend_cached


def rounded(x: Tensor) -> Tensor:
    """Return x [..., D] rounded to float8 with a scale per row."""
    quantized, exponents = quantize_reference(x)
    return quantized.float() * torch.exp2(exponents.float() - 127)[..., None]


def attend_rounded(cache: Tensor, window: int, agents: list[Any], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return the torch backend's attention to rounded keys and values."""
    return _attend(cache, window, agents, q, rounded(k), rounded(v))


class Float8Agent:
    """An agent whose keys and values are rounded."""

    def __init__(self, engine: JatEngine) -> None:
        self._engine = engine

    def reset_rl(self) -> None:
        self._engine.reset_rl()

    def get_next_action(self, *args: Any, **kwargs: Any) -> Any:
        with mock.patch.object(torch_backend, "attend_cached", attend_rounded):
            return self._engine.get_next_action(*args, **kwargs)


class ComparedAgent:
    """An unquantised agent, with one that is rounded and follows it.

    Attributes:
        errors: of each step, how far the rounded prediction is off, and
        sizes: how large the exact one is, root mean squares.
        equal: of each step with discrete actions, whether the most likely one is the same.
    """

    def __init__(self, engine: JatEngine, window: int) -> None:
        self._engine = engine
        self._window = window
        self.errors: list[float] = []
        self.sizes: list[float] = []
        self.equal: list[bool] = []

    def reset_rl(self) -> None:
        self._sessions = [self._engine.open_session(self._window) for _ in range(2)]

    def get_next_action(self, processor: Any, **given: Any) -> Any:
        given.pop("context_window")
        exact, follower = self._sessions
        action, expected = exact.get_next_action(**given, return_prediction=True)
        with mock.patch.object(torch_backend, "attend_cached", attend_rounded):
            _, prediction = follower.get_next_action(**given, return_prediction=True)
        follower.force_action(action)
        self.errors.append(float(np.sqrt(np.mean((prediction - expected) ** 2))))
        self.sizes.append(float(np.sqrt(np.mean(expected**2))))
        if isinstance(action, int):
            self.equal.append(int(np.argmax(prediction)) == int(np.argmax(expected)))
        return action


def measure(engine: JatEngine, name: str, episodes: int) -> dict[str, Any]:
    """Return one task's row."""
    task = TASKS[name]
    env = evaluation_env(task)
    agent = ComparedAgent(engine, task.context_window)
    returns: list[tuple[float, float]] = []
    for seed in range(episodes):
        options: dict[str, Any] = {"task": task, "seed": seed, "deterministic": True, "max_steps": MAX_STEPS}
        exact = run_episode(agent, None, env, **options)
        returns.append((exact.return_, run_episode(Float8Agent(engine), None, env, **options).return_))
    env.close()

    before, after = np.array(returns).T
    errors = np.array(agent.errors) / np.median(agent.sizes)
    error = 1.96 * float(np.std(after - before)) / episodes**0.5
    return {
        "task": name,
        "episodes": episodes,
        "steps": len(agent.errors),
        "relative error, median": round(float(np.median(errors)), 4),
        "relative error, p99": round(float(np.quantile(errors, 0.99)), 4),
        "greedy actions equal": f"{np.mean(agent.equal):.1%}" if agent.equal else "",
        "return": round(float(before.mean()), 3),
        "return, float8": round(float(after.mean()), 3),
        "difference": f"{(after - before).mean():.3f} ± {error:.3f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure jat-mini with keys and values in float8, on a CPU.")
    parser.add_argument("--tasks", nargs="+", default=list(EPISODES), choices=list(TASKS))
    parser.add_argument("--episodes", type=int, help="of every task; by default a number for each")
    parser.add_argument("--write", action="store_true", help=f"keep the table in {RESULTS}.json and .md")
    options = parser.parse_args()

    engine = JatEngine.from_pretrained("jat-mini", device="cpu", backend="torch", dtype="float32")
    table = []
    for name in options.tasks:
        table.append(measure(engine, name, options.episodes or EPISODES.get(name, 10)))
        print(table[-1], flush=True)
    columns = markdown({column: [str(row[column]) for row in table] for column in table[0]})
    print(columns)
    if options.write:
        RESULTS.with_suffix(".json").write_text(json.dumps(table, indent=1) + "\n")
        RESULTS.with_suffix(".md").write_text(
            "# jat-mini with keys and values in float8\n\n"
            "Measured on a CPU by `python -m benchmarks.float8_skill --write`: float32, keys and values rounded as the "
            f"GPU's kernels round them, greedy actions, at most {MAX_STEPS} steps an episode. Errors, relative to the "
            "task's typical prediction, and equal actions are of the same history, returns of each agent's own.\n\n"
            + columns
            + "\n"
        )


if __name__ == "__main__":
    main()
