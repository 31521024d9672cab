"""Command `jat-engine tasks`: list the registered tasks, or check that they run here."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tqdm import tqdm

from ..envs import MissingSimulatorError, Score, Task, domain_names, get_task, make, registered_names
from ..evaluation.progress import simulator_output
from .arguments import TaskArguments, parse
from .report import print_table, score

_CHECK_STEPS = 10


@dataclass
class TasksArguments:
    """Arguments of `jat-engine tasks`."""

    domain: str | None = field(default=None, metadata={"help": "only this domain"})
    search: str | None = field(default=None, metadata={"help": "only tasks whose name contains this"})
    json: bool = field(default=False, metadata={"help": "print JSON"})
    check: bool = field(default=False, metadata={"help": f"build each task and take {_CHECK_STEPS} random steps in it"})


def run(argv: Sequence[str]) -> int:
    """Run `jat-engine tasks`.

    Returns:
        The exit code: 1 if `--check` found a task that fails, else 0. A simulator that is not installed is not a
        failure.
    """
    arguments, choice = parse(
        "tasks", "The tasks the agent was published with, and registered ones.", [TasksArguments, TaskArguments], argv
    )
    choice.load()
    if arguments.domain not in (None, *domain_names()):
        raise ValueError(f"--domain: expected one of {', '.join(domain_names())}, got {arguments.domain!r}")
    chosen = [
        task
        for task in map(get_task, registered_names())
        if arguments.domain in (None, task.domain) and (arguments.search or "") in task.name
    ]
    checks = {}
    if arguments.check:
        checks = {task.name: check(task) for task in tqdm(chosen, unit="task", disable=None, leave=False)}
    if arguments.json:
        print(json.dumps([_json(task) | checks.get(task.name, {}) for task in chosen], indent=2))
    else:
        _print(chosen, checks)
    return int(any(result["status"] == "failed" for result in checks.values()))


def _json(task: Task) -> dict[str, Any]:
    scores = {name: None if found is None else asdict(found) for name, found in _scores(task).items()}
    names = ("name", "domain", "env_id", "published_env_id", "success", "loss_weight")
    return {name: getattr(task, name) for name in names} | task.rule | scores


def _scores(task: Task) -> dict[str, Score | None]:
    return {"random": task.random, "expert": task.expert, "human": task.human}


def check(task: Task) -> dict[str, str]:
    """Build the environment of a task and take a few random steps in it.

    Returns:
        "status" ("ok", "not installed" or "failed"), and "reason" unless it is "ok".
    """
    try:
        with simulator_output(), contextlib.closing(make(task, seed=0)) as env:
            env.reset()
            for _ in range(_CHECK_STEPS):
                _, _, terminated, truncated, _ = env.step(env.action_space.sample())
                if terminated or truncated:
                    env.reset()
    except MissingSimulatorError as error:
        return {"status": "not installed", "reason": str(error)}
    except Exception as error:  # the check reports any error of a simulator
        return {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
    return {"status": "ok"}


def _print(tasks: list[Task], checks: dict[str, dict[str, str]]) -> None:
    columns: dict[str, list[str]] = {
        "task": [task.name for task in tasks],
        "environment": [task.env_id for task in tasks],
        "observation": [task.observation for task in tasks],
        "window": [str(task.context_window) for task in tasks],
        "random": [score(task.random) for task in tasks],
        "expert": [score(task.expert) for task in tasks],
        "human": [score(task.human) for task in tasks],
    }
    if checks:
        columns["check"] = [checks[task.name]["status"] for task in tasks]

    left = ["task", "environment", "observation", "check"]
    optional = ["environment", "observation", "window"]
    print_table(f"{len(tasks)} task{'' if len(tasks) == 1 else 's'}", columns, left=left, optional=optional)

    if checks:
        for name, result in checks.items():
            if "reason" in result:
                print(f"{name}: {result['status']}: {result['reason']}")
        counts = [result["status"] for result in checks.values()]
        print(", ".join(f"{counts.count(status)} {status}" for status in dict.fromkeys(counts)))
