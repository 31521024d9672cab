"""Command `jat-engine check`: load a checkpoint, compare engine and model on recorded observations, play episodes."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from ..checkpoint.trained_tasks import as_trained, read_trained_tasks
from ..dtypes import DTYPES
from ..envs import MissingSimulatorError, Task
from ..evaluation import main_reference, run_episode
from ..evaluation.environment import evaluation_env
from ..evaluation.progress import simulator_output
from ..evaluation.scores import reference_score
from ..testing.checkpoint_checks import CheckpointChecks
from ..testing.outcome import CheckFailedError, Outcome, SkipCheckError, run_check
from .agent import check_source, quiet_loading
from .arguments import TaskArguments, parse
from .tables import milliseconds, number, score

TASKS_PLAYED = ("babyai-go-to-obj", "metaworld-drawer-open", "mujoco-reacher")
"""Default tasks: one of each domain whose episodes take seconds. A game of Atari takes a minute."""


@dataclass
class CheckArguments:
    """Arguments of `jat-engine check`."""

    tasks: list[str] = field(
        default_factory=lambda: list(TASKS_PLAYED), metadata={"help": "tasks or domains to play an episode of"}
    )
    dtype: str = field(
        default="float32",
        metadata={
            "help": "dtype of the engine, which is compared with JatModel in float32",
            "choices": list(DTYPES),
        },
    )
    backend: str = field(
        default="auto", metadata={"help": "backend of the engine", "choices": ["auto", "cpu", "cuda", "torch"]}
    )
    use_cpu: bool = field(default=False, metadata={"help": "run on the CPU even if there is a GPU"})
    cache_dir: str | None = field(default=None, metadata={"help": "folder for downloads"})
    json: bool = field(default=False, metadata={"help": "print JSON"})


def run(argv: Sequence[str]) -> int:
    """Run the checks and print their outcomes.

    Returns:
        The exit code: 1 if a check failed, else 0. A check that was skipped is not a failure.
    """
    arguments, choice, positional = parse(
        "check",
        "Load a checkpoint in JatModel and JatEngine, compare the two on recorded observations, and play episodes.",
        [CheckArguments, TaskArguments],
        argv,
        positional={"source": "folder of a checkpoint, its name on the hub, or jat-mini"},
    )
    source: str = positional.source
    check_source("source", source)
    tasks = choice.find(arguments.tasks)

    began = time.perf_counter()
    outcomes = []
    for outcome in check(source, arguments, tasks):
        outcomes.append(outcome)
        if not arguments.json:
            print(f"{outcome.status:<7}  {outcome.name:<29} {outcome.seconds:5.1f} s  {outcome.detail}", flush=True)
    seconds = time.perf_counter() - began

    statuses = [outcome.status for outcome in outcomes]
    counts = {status: statuses.count(status) for status in ("PASS", "FAIL", "SKIPPED")}
    if arguments.json:
        found = {"source": source, "seconds": seconds, "counts": counts}
        print(json.dumps(found | {"checks": [asdict(outcome) for outcome in outcomes]}, indent=2))
    else:
        words = f"{counts['PASS']} passed, {counts['FAIL']} failed, {counts['SKIPPED']} skipped"
        print(f"{source}: {words}, in {seconds:.1f} s")
    return int(counts["FAIL"] > 0)


def check(source: str, arguments: CheckArguments, tasks: Sequence[Task]) -> Iterator[Outcome]:
    """Run the checks of a checkpoint, then play one episode of each task.

    Args:
        source: a folder, a repository id on the hub, or "jat-mini".
        arguments: arguments of the command.
        tasks: tasks to play.

    Yields:
        The outcome of each check and each episode. If the files cannot be read, only that of the first check.
    """
    checks = CheckpointChecks(
        source,
        device="cpu" if arguments.use_cpu else "auto",
        dtype=arguments.dtype,
        backend=arguments.backend,
        cache_dir=arguments.cache_dir,
    )
    outcomes = checks.run()
    files = next(outcomes)  # not in quiet_loading, to show the progress of a download
    yield files
    if files.status == "FAIL":
        return

    with quiet_loading():
        yield from outcomes
    for task in tasks:
        yield run_check(
            f"episode {task.name}", functools.partial(play_episode, checks, task, source, arguments.cache_dir)
        )


def play_episode(checks: CheckpointChecks, task: Task, source: str, cache_dir: str | None) -> str:
    """Play one greedy episode with the engine, and return a line about it.

    The return is reported without a limit, because a single episode says little about an agent.

    Args:
        checks: checks of the checkpoint, which hold its engine.
        task: the task.
        source: the checkpoint, as `check` takes it.
        cache_dir: folder for downloads.

    Raises:
        SkipCheckError: the simulator is not installed, or the task does not fit the checkpoint.
        CheckFailedError: the return is not finite.
        TaskError: the checkpoint was trained on another environment of this name.
    """
    engine = checks.require_engine()
    task = as_trained(task, read_trained_tasks(source, {"cache_dir": cache_dir}))
    with simulator_output(), contextlib.ExitStack() as stack:
        try:
            env = stack.enter_context(contextlib.closing(evaluation_env(task)))
        except MissingSimulatorError as error:
            raise SkipCheckError(str(error)) from None
        observation, _ = env.reset(seed=0)
        checks.require_input(observation, env.action_space)
        episode = run_episode(engine, None, env, task=task, seed=0, deterministic=True)

    if not math.isfinite(episode.return_):
        raise CheckFailedError(f"expected a finite return, got {episode.return_} after {episode.length} steps")
    reference = main_reference(task)
    origin = "published" if task.is_published else "measured"
    known = f"{origin} random {score(task.random)}, {reference} {score(reference_score(task, reference))}"
    latency = milliseconds(float(np.median(episode.latencies_us)))
    return f"return {number(episode.return_)} ({known}), {episode.length} steps, {latency} each"
