"""Time an evaluation of mixed domains: one environment at a time, many at once, and the simulators alone.

`python -m benchmarks.evaluation_speed --models jat-mini:bfloat16 --out FILE.json` writes that file, and `FILE.md`.
Processes and environments are started before anything is timed; all agents of the engine play the same episodes, whose
hashes are compared.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import json
import pstats
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jat_engine import JatEngine, JatModel, JatProcessor
from jat_engine.bench.workload import open_checkpoint
from jat_engine.envs import Task, get_task
from jat_engine.evaluation import run_episode
from jat_engine.evaluation.environment import evaluation_env
from jat_engine.installation import cpu_features, cpu_name, versions
from jat_engine.machine import available_cores
from jat_engine.runs.agents import ActOptions, EngineAgents
from jat_engine.runs.hosts import Host, LocalHost, WorkerHost
from jat_engine.runs.plan import WorkQueue, plan_items
from jat_engine.runs.play import Player, PlayTiming
from jat_engine.runs.slots import Observed, PlayOptions

TASKS = ("atari-pong", "babyai-go-to-obj", "metaworld-drawer-open", "mujoco-reacher")
SEED = 1_000_000
ONE, MODEL, ALONE = "engine, num_envs 1", "JatModel, one at a time", "simulators alone"


@dataclass(frozen=True)
class Case:
    """Hosts and environments that an evaluation is played with; no workers means this process."""

    name: str
    num_workers: int
    num_envs: int
    num_threads: int | None = None
    is_alone: bool = False


CASES = (
    Case(ONE, 0, 1),
    Case("engine, 16 environments in this process", 0, 16),
    *(Case(f"engine, 2 workers x {n}", 2, n) for n in (2, 4, 8, 16)),
    Case("engine with 1 thread, 2 workers x 8", 2, 8, num_threads=1),
    Case(ALONE, 2, 16, is_alone=True),
)


class RandomAgents:
    """Random actions, which cost nothing compared with a simulator's step."""

    def __init__(self) -> None:
        self.seconds, self.steps = 0.0, 0
        self._spaces: dict[Any, Any] = {}

    def room(self, tasks: Any) -> int | None:
        return None

    def open(self, key: Any, task: Task, seed: int) -> None:
        pass

    def close(self, key: Any) -> None:
        pass

    def act(self, keys: Sequence[Any], observed: Sequence[Observed]) -> list[Any]:
        began = time.perf_counter()
        for key, one in zip(keys, observed, strict=True):
            if one.action_space is not None:
                self._spaces[key] = one.action_space
        actions = [self._spaces[key].sample() for key in keys]
        self.seconds += time.perf_counter() - began
        self.steps += len(keys)
        return [int(action) if np.ndim(action) == 0 else action.tolist() for action in actions]


@contextlib.contextmanager
def started(case: Case, tasks: dict[str, Task], options: PlayOptions) -> Iterator[list[Host]]:
    if case.num_workers == 0:
        hosts: list[Host] = [LocalHost(tasks, options)]
    else:
        hosts = [WorkerHost(number, tasks, options, case.num_envs) for number in range(case.num_workers)]
    try:
        yield hosts
    finally:
        for host in hosts:
            host.close()


def play(agents: Any, hosts: Sequence[Host], tasks: dict[str, Task], episodes: int, num_envs: int) -> Any:
    """Play all episodes, and return timing and digests."""
    queue = WorkQueue(plan_items(dict.fromkeys(tasks, episodes), SEED), lambda task: 1.0)
    for host in hosts:
        host.seconds = 0.0
    agents.seconds, agents.steps = 0.0, 0
    player = Player(agents, hosts, queue, tasks, num_envs)
    found = [one.ended.episode for finished in player.play() for one in finished]
    assert not any(episode.failed for episode in found), [episode.error for episode in found if episode.failed]
    return player.timing, {(episode.task, episode.index): episode.digest for episode in found}


def measure(source: Path, model: str, dtype: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    tasks = {name: get_task(name) for name in TASKS}
    options = PlayOptions(max_steps=arguments.max_steps)
    cases = [case for case in CASES if not case.name.startswith(tuple(arguments.without))]
    timings: dict[str, list[PlayTiming]] = {case.name: [] for case in cases}
    model_rates: list[float] = []
    with contextlib.ExitStack() as stack:
        hosts = {case: stack.enter_context(started(case, tasks, options)) for case in cases}
        engines = {
            threads: stack.enter_context(
                JatEngine.from_pretrained(source, device="cpu", dtype=dtype, num_threads=threads)
            )
            for threads in {case.num_threads for case in CASES}
        }
        reference = JatModel.from_pretrained(source, dtype="float32"), JatProcessor.from_pretrained(source)
        envs = {name: stack.enter_context(contextlib.closing(evaluation_env(task))) for name, task in tasks.items()}
        published: Callable[[], float] = lambda: play_model(reference, tasks, envs, arguments.max_steps)  # noqa: E731

        digests: Any = None
        for number in range(arguments.rounds + 1):  # the first makes environments, and is not counted
            order = list(cases)
            random.Random(number).shuffle(order)
            for case in order:
                episodes = arguments.episodes if number or case.num_envs > 1 else 1
                agents = RandomAgents() if case.is_alone else EngineAgents(engines[case.num_threads], ActOptions())
                timing, found = play(agents, hosts[case], tasks, episodes, case.num_envs)
                if number and not case.is_alone:
                    assert digests in (None, found), f"{case.name}: other episodes"
                    digests = found
                if number:
                    timings[case.name].append(timing)
                print(f"{model} {dtype} round {number}: {case.name}: {timing.rate:.0f} steps/s", flush=True)
            if number:
                model_rates.append(published())
                print(f"{model} {dtype} round {number}: {MODEL}: {model_rates[-1]:.1f} steps/s", flush=True)

        shares = profile(EngineAgents(engines[None], ActOptions()), tasks, arguments)
    steps_per_episode = timings[ONE][0].steps / timings[ONE][0].episodes
    rows = [row(model, dtype, case.name, timings[case.name], timings[ONE], model_rates, shares) for case in cases]
    return [*rows, {**rows[0], "case": MODEL, **spread(model_rates, steps_per_episode)}]


def play_model(reference: Any, tasks: dict[str, Task], envs: dict[str, Any], max_steps: int) -> float:
    """Play an episode of each task with `JatModel`, and return its steps per second."""
    began, steps = time.perf_counter(), 0
    for name, task in tasks.items():
        steps += run_episode(*reference, envs[name], task=task, seed=SEED, max_steps=max_steps).length
    return steps / (time.perf_counter() - began)


def profile(agents: EngineAgents, tasks: dict[str, Task], arguments: argparse.Namespace) -> dict[str, float]:
    """Return the shares of encode, decode and the rest of choosing actions, in one process with 16 environments."""
    with started(CASES[1], tasks, PlayOptions(max_steps=arguments.max_steps)) as hosts:
        profiler = cProfile.Profile()
        profiler.enable()
        play(agents, hosts, tasks, arguments.episodes, CASES[1].num_envs)
        profiler.disable()
    seconds = {"encode": 0.0, "decode": 0.0}
    for (_, _, function), (_, _, own, _, _) in pstats.Stats(profiler).stats.items():  # type: ignore[attr-defined]
        for name in seconds:
            if function == f"<built-in method jat_engine._cpu.{name}>":
                seconds[name] += own
    others = agents.seconds - sum(seconds.values())
    return {**{name: value / agents.seconds for name, value in seconds.items()}, "other": others / agents.seconds}


def spread(rates: Sequence[float], steps_per_episode: float) -> dict[str, float]:
    return {
        "steps_per_second": float(np.median(rates)),
        "low": min(rates),
        "high": max(rates),
        "episodes_per_second": float(np.median(rates)) / steps_per_episode,
    }


def row(
    model: str,
    dtype: str,
    name: str,
    timings: Sequence[PlayTiming],
    one: Sequence[PlayTiming],
    model_rates: Sequence[float],
    shares: dict[str, float],
) -> dict[str, Any]:
    rates = [timing.rate for timing in timings]
    median = timings[int(np.argsort(rates)[len(rates) // 2])]
    return {
        "model": model,
        "dtype": dtype,
        "case": name,
        **spread(rates, median.steps / median.episodes),
        "times_one": float(np.median([a.rate / b.rate for a, b in zip(timings, one, strict=True)])),
        "times_model": float(np.median([a.rate / b for a, b in zip(timings, model_rates, strict=True)])),
        "batch": median.steps / median.batches,
        "agent_share": median.agent_seconds / median.seconds,
        "environments_share": median.env_seconds / median.hosts / median.seconds,
        "demand": median.demand,
        "supply": median.supply,
        "of_agent": shares,
    }


def write_markdown(content: dict[str, Any]) -> str:
    lines = [
        f"Evaluations of {', '.join(TASKS)}, {content['episodes']} episodes each of at most {content['max_steps']} "
        f"steps, random weights for the published size; {content['cpu']}, {content['cores']} cores. Medians of "
        f"{content['rounds']} rounds in turns, lowest and highest in brackets; processes and environments are started "
        "before. Agent and environments: share of the wall time in which actions were chosen, and in which a process's "
        "environments worked.",
        "",
    ]
    for model in dict.fromkeys((row["model"], row["dtype"]) for row in content["rows"]):
        rows = [row for row in content["rows"] if (row["model"], row["dtype"]) == model]
        alone = next(row for row in rows if row["case"] == ALONE)["steps_per_second"]
        lines += [f"{model[0]}, {model[1]}:", ""]
        lines += [
            "| | steps/s | episodes/s | times num_envs 1 | times JatModel | of the simulators' limit | batch | agent | "
            "environments |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for one in rows:
            is_model = one["case"] == MODEL
            cells = [
                one["case"],
                f"{one['steps_per_second']:.0f} [{one['low']:.0f}, {one['high']:.0f}]",
                f"{one['episodes_per_second']:.2f}",
                "" if is_model else f"{one['times_one']:.2f}",
                "" if is_model else f"{one['times_model']:.1f}",
                f"{100 * one['steps_per_second'] / alone:.0f} %",
                "" if is_model else f"{one['batch']:.1f}",
                "" if is_model else f"{100 * one['agent_share']:.0f} %",
                "" if is_model else f"{100 * one['environments_share']:.0f} %",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        shares = ", ".join(f"{name} {100 * value:.0f} %" for name, value in rows[0]["of_agent"].items())
        lines += ["", f"Choosing actions, 16 environments in one process: {shares}.", ""]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["small:bfloat16", "jat-mini:bfloat16"])
    parser.add_argument("--episodes", type=int, default=12)
    parser.add_argument("--max_steps", type=int, default=150)
    parser.add_argument("--without", nargs="*", default=[], help="beginnings of the names of cases to leave out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    rows = []
    for text in arguments.models:
        model, _, dtype = text.partition(":")
        with open_checkpoint(model) as source:
            rows += measure(source, model, dtype, arguments)
    content = {
        "cpu": f"{cpu_name()} ({', '.join(cpu_features())})",
        "cores": available_cores(),
        "versions": versions(),
        "episodes": arguments.episodes,
        "max_steps": arguments.max_steps,
        "rounds": arguments.rounds,
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    arguments.out.with_suffix(".md").write_text(write_markdown(content))
    return 0


if __name__ == "__main__":
    sys.exit(main())
