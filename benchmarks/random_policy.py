"""Random policies against the published random returns: do the environments here give what the agent was scored on?

    python benchmarks/random_policy.py --num_episodes 500 --output benchmarks/results/random_policy.json

Each task runs seeded episodes with uniform random actions, Atari with unclipped rewards and whole games. The last
column is (ours - published) / sqrt(se_ours^2 + se_published^2). The published figures of BabyAI, Meta-World and MuJoCo
come from 1,000,000 steps, so their standard error is std / sqrt(1,000,000 / mean length). Those of Atari are literature
figures without a spread; theirs is taken as 0.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from jat_engine.envs import TASKS, expand_tasks, make

TASKS_BY_DEFAULT = [
    "atari-boxing", "atari-breakout", "atari-freeway", "atari-pong", "atari-spaceinvaders", "atari-tennis",
    "babyai-go-to-door", "babyai-go-to-local", "babyai-go-to-red-ball", "babyai-open-door", "babyai-one-room-s8",
    "metaworld-assembly", "metaworld-button-press", "metaworld-disassemble", "metaworld-door-open",
    "metaworld-drawer-close", "metaworld-push", "metaworld-reach", "metaworld-window-open",
    "mujoco-ant", "mujoco-doublependulum", "mujoco-halfcheetah", "mujoco-hopper", "mujoco-humanoid",
    "mujoco-pendulum", "mujoco-pusher", "mujoco-reacher", "mujoco-standup", "mujoco-swimmer", "mujoco-walker",
]  # fmt: skip
PUBLISHED_STEPS = 1_000_000
PACKAGES = ("gymnasium", "ale-py", "minigrid", "metaworld", "mujoco", "numpy")


def play(job: tuple[str, int, int, float]) -> dict[str, Any]:
    """Episodes of one task until `num_episodes` or the time is up; at least 10."""
    name, num_episodes, seed, seconds = job
    task, start = TASKS[name], time.perf_counter()
    options = {"clip_reward": False, "episodic_life": False} if task.domain == "atari" else {}
    env = make(name, seed=seed, **options)
    returns: list[float] = []
    lengths: list[int] = []
    while len(returns) < num_episodes and (len(returns) < 10 or time.perf_counter() - start < seconds):
        env.reset()
        total, length, done = 0.0, 0, False
        while not done:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total, length, done = total + float(reward), length + 1, terminated or truncated
        returns.append(total)
        lengths.append(length)
    env.close()
    mean, std = float(np.mean(returns)), float(np.std(returns, ddof=1))
    error = std / np.sqrt(len(returns))
    published = task.random
    assert published is not None
    published_error = 0.0
    if published.std is not None:
        published_error = published.std / np.sqrt(PUBLISHED_STEPS / np.mean(lengths))
    spread = float(np.hypot(error, published_error))
    return {
        "task": name,
        "episodes": len(returns),
        "mean": mean,
        "std": std,
        "standard_error": float(error),
        "mean_length": float(np.mean(lengths)),
        "published_mean": published.mean,
        "published_std": published.std,
        "difference_in_standard_errors": (mean - published.mean) / spread if spread else None,
        "seconds": round(time.perf_counter() - start, 1),
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| task | episodes | mean ± standard error | std | published mean | published std | difference, in errors |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        std = "" if row["published_std"] is None else f"{row['published_std']:.4g}"
        difference = row["difference_in_standard_errors"]
        lines.append(
            f"| {row['task']} | {row['episodes']} | {row['mean']:.4g} ± {row['standard_error']:.2g} | {row['std']:.4g} "
            f"| {row['published_mean']:.4g} | {std} | {'' if difference is None else f'{difference:+.1f}'} |"
        )
    return "\n".join(lines)


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=TASKS_BY_DEFAULT, help="tasks, domains or all")
    parser.add_argument("--num_episodes", type=int, default=1000, help="per task, at most")
    parser.add_argument("--seconds", type=float, default=45, help="per task; stop then, but not before 10 episodes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument("--output", type=Path, help="JSON file")
    args = parser.parse_args()
    jobs = [(name, args.num_episodes, args.seed, args.seconds) for name in expand_tasks(args.tasks)]
    with multiprocessing.get_context("spawn").Pool(args.num_workers) as pool:
        rows = list(pool.imap(play, jobs, chunksize=1))
    print(markdown(rows))
    if args.output:
        report = {
            "arguments": {"num_episodes": args.num_episodes, "seconds": args.seconds, "seed": args.seed},
            "python": platform.python_version(),
            "versions": {package: installed(package) for package in PACKAGES},
            "tasks": rows,
        }
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
