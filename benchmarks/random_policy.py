"""Compare returns of a random policy with the published ones: are these the environments of the published agent?

    python benchmarks/random_policy.py --tasks metaworld mujoco babyai-go-to atari-pong \
        --num_workers 2 --out benchmarks/results/random_policy.json --markdown docs/environments.md

Actions are drawn uniformly from the action space. An Atari episode goes on to the game's real end, across lost lives,
with unclipped rewards. Every task has its own seeds, made from --seed and its name, so that results depend neither on
the other tasks nor on the number of workers.

Differences are counted in standard errors:
  babyai, metaworld, mujoco: (ours - published) / sqrt(SE_ours^2 + SE_published^2), where SE = std / sqrt(episodes). The
      published figures are of 1,000,000 steps; that many steps have 1,000,000 / (our mean length) episodes.
  atari: (ours - published) / SE_ours. The published figures are from the literature, without standard deviation, and
      from play that begins and ends otherwise: large differences are expected here, see docs/environments.md.
With rare large returns (drawer-close, handle-press) an SE estimated from few episodes is itself uncertain.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
import time
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from jat_engine import installation
from jat_engine.bench.report import by_column, markdown
from jat_engine.envs import DOMAINS, TASKS, Task, expand_tasks, make

NUM_EPISODES = {"atari": 30, "babyai": 500, "metaworld": 150, "mujoco": 200}
PUBLISHED_STEPS = 1_000_000
PACKAGES = ("gymnasium", "ale-py", "minigrid", "metaworld", "mujoco", "numpy", "opencv-python-headless")
BEGIN, END = "<!-- random returns: written by benchmarks/random_policy.py -->", "<!-- end of random returns -->"


@dataclass(frozen=True)
class Result:
    """Returns of one task. `length` is in agent steps; `published_se` and the deviation are None where unknown."""

    task: str
    episodes: int
    mean: float
    std: float
    se: float
    length: float
    published_mean: float
    published_std: float | None
    published_se: float | None
    difference_in_se: float | None
    seconds: float


def play(task: Task, num_episodes: int, seed: int) -> tuple[list[float], list[int]]:
    """Return the returns and lengths of all episodes."""
    env_seed, action_seed = np.random.SeedSequence([seed, zlib.crc32(task.name.encode())]).generate_state(2)
    env = make(task.name, seed=int(env_seed), **({"clip_reward": False} if task.domain == "atari" else {}))
    env.action_space.seed(int(action_seed))  # apart from the environment's, or goals and actions would go together
    returns, lengths = [], []
    for _ in range(num_episodes):
        env.reset()
        total, length, over = 0.0, 0, False
        while not over:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total, length = total + float(reward), length + 1
            over = terminated or truncated
        returns.append(total)
        lengths.append(length)
    env.close()
    return returns, lengths


def measure(job: tuple[str, int, int]) -> Result:
    """Play one task's episodes and compare."""
    name, num_episodes, seed = job
    task, start = TASKS[name], time.perf_counter()
    returns, lengths = play(task, num_episodes, seed)
    mean, std, length = float(np.mean(returns)), float(np.std(returns, ddof=1)), float(np.mean(lengths))
    se = std / math.sqrt(num_episodes)

    published = task.random
    assert published is not None, f"{name} has no published random return"
    published_se = None if published.std is None else published.std / math.sqrt(PUBLISHED_STEPS / length)
    combined = math.hypot(se, published_se or 0.0)
    return Result(
        task=name,
        episodes=num_episodes,
        mean=mean,
        std=std,
        se=se,
        length=length,
        published_mean=published.mean,
        published_std=published.std,
        published_se=published_se,
        difference_in_se=(mean - published.mean) / combined if combined > 0 else None,
        seconds=time.perf_counter() - start,
    )


def number(value: float, digits: int = 4) -> str:
    """Return that many significant digits, or all of the integer part."""
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:,.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def table(results: list[Result]) -> str:
    """Return one table for each domain, and what the differences amount to."""
    lines = []
    for domain in DOMAINS:
        rows = [result for result in results if TASKS[result.task].domain == domain]
        if rows:
            columns = by_column(cells(row) for row in rows)
            lines += [markdown(columns, right=[name for name in columns if name != domain]), ""]
    known = [r.difference_in_se for r in results if r.published_se is not None and r.difference_in_se is not None]
    if known:
        rms = math.sqrt(sum(difference**2 for difference in known) / len(known))
        beyond = sum(abs(difference) > 3 for difference in known)
        lines += [
            f"Of the {len(known)} tasks whose published standard error is known, {beyond} differ by more than 3 SE; "
            f"the root mean square difference is {rms:.2f} SE (1 is what chance gives)."
        ]
    return "\n".join(lines).rstrip() + "\n"


def cells(row: Result) -> dict[str, str]:
    """Return one row of a table, by header."""
    domain, _, name = row.task.partition("-")
    published = number(row.published_mean)
    if row.published_se is not None:
        published += f" ± {number(row.published_se, 2)}"
    return {
        domain: name,
        "episodes": str(row.episodes),
        "ours ± SE": f"{number(row.mean)} ± {number(row.se, 2)}",
        "literature" if domain == "atari" else "published ± SE": published,
        "difference / SE": "-" if row.difference_in_se is None else f"{row.difference_in_se:+.1f}",
    }


def write_markdown(path: Path, text: str) -> None:
    """Put `text` between the two marks in `path`."""
    content = path.read_text(encoding="utf-8")
    before, begin, rest = content.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{path}: expected the lines {BEGIN!r} and {END!r}")
    path.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a return."""
    installed = installation.versions()
    return {name: version for name in ("python", *PACKAGES) if (version := installed.get(name))}


def main() -> None:
    """Parse the flags, play, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", required=True, help="task names, domains or all")
    parser.add_argument("--num_episodes", type=int, help=f"of every task (default: by domain, {NUM_EPISODES})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_workers", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--markdown", type=Path, help="file whose table between two marks is replaced")

    args = parser.parse_args()
    if args.num_episodes is not None and args.num_episodes < 2:
        parser.error(f"--num_episodes: expected at least 2, for a standard error, got {args.num_episodes}")
    names = expand_tasks(args.tasks)
    jobs = [(name, args.num_episodes or NUM_EPISODES[TASKS[name].domain], args.seed) for name in names]
    start, results = time.perf_counter(), []
    with multiprocessing.get_context("spawn").Pool(args.num_workers) as pool:
        for result in pool.imap(measure, jobs):
            results.append(result)
            print(f"{result.task:38s} {result.mean:12.4g} ± {result.se:.3g}, {result.seconds:.0f} s", file=sys.stderr)

    text = table(results)
    print(text)
    if args.out:
        report = {
            "command": "random_policy.py",
            "tasks": args.tasks,
            "seed": args.seed,
            "num_workers": args.num_workers,
            "seconds": round(time.perf_counter() - start, 1),
            "cpu": f"{installation.cpu_name()}, {os.cpu_count()} cores",
            "versions": versions(),
            "results": [asdict(result) for result in results],
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if args.markdown:
        write_markdown(args.markdown, text)


if __name__ == "__main__":
    main()
