"""Command `jat-engine tasks`: list the registered tasks, or check that they run here."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tqdm import tqdm

from ..envs import MissingSimulatorError, Score, Task, domain_names, expand_tasks, find_tasks, make, registered_names
from ..envs.kinds import Observation
from ..errors import describe_error
from ..evaluation.progress import simulator_output
from .arguments import TaskArguments, parse
from .tables import print_table, score

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
        failure. A registered task whose environment cannot be made does not end the list.
    """
    arguments, choice = parse(
        "tasks", "The tasks the agent was published with, and registered ones.", [TasksArguments, TaskArguments], argv
    )
    choice.load()
    if arguments.domain not in (None, *domain_names()):
        raise ValueError(f"--domain: expected one of {', '.join(domain_names())}, got {arguments.domain!r}")
    names = registered_names() if arguments.domain is None else expand_tasks([arguments.domain])
    chosen, broken = find([name for name in names if (arguments.search or "") in name], choice.adapter)
    checks = {}
    if arguments.check:
        shown = tqdm(chosen.items(), unit="task", disable=None, leave=False)
        checks = {name: broken[name] if task is None else check(task) for name, task in shown}
    if arguments.json:
        rows = [_json(name, task) | broken.get(name, {}) | checks.get(name, {}) for name, task in chosen.items()]
        print(json.dumps(rows, indent=2))
    else:
        _print(chosen, broken, checks)
    return int(any(result["status"] == "failed" for result in checks.values()))


def find(
    names: Sequence[str], adapter: Observation | None = None
) -> tuple[dict[str, Task | None], dict[str, dict[str, str]]]:
    """Return tasks by name, with None for those that cannot be made, and the status and reason of these by name.

    Args:
        names: names of tasks.
        adapter: kind of observation for those that are not published.
    """
    found: dict[str, Task | None] = {}
    broken: dict[str, dict[str, str]] = {}
    for name in names:
        try:
            with simulator_output():
                (found[name],) = find_tasks([name], adapter)
        except Exception as error:  # of an environment: any class
            found[name], broken[name] = None, _problem(error)
    return found, broken


def _json(name: str, task: Task | None) -> dict[str, Any]:
    if task is None:
        return {"name": name}
    scores = {name: None if found is None else asdict(found) for name, found in _scores(task).items()}
    keys = ("name", "domain", "env_id", "published_env_id", "success", "loss_weight")
    return {key: getattr(task, key) for key in keys} | task.rule | scores


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
    except Exception as error:  # the check reports any error of a simulator
        return _problem(error)
    return {"status": "ok"}


def _problem(error: Exception) -> dict[str, str]:
    """Return the status and the reason of a task that cannot be made or played."""
    if isinstance(error, MissingSimulatorError):
        return {"status": "not installed", "reason": str(error)}
    return {"status": "failed", "reason": describe_error(error)}


def _print(
    tasks: Mapping[str, Task | None], broken: Mapping[str, dict[str, str]], checks: Mapping[str, dict[str, str]]
) -> None:
    cells = [_cells(name, task) for name, task in tasks.items()]
    columns = {header: [row[header] for row in cells] for header in _HEADERS}
    if checks:
        columns["check"] = [checks[name]["status"] for name in tasks]

    left = ["task", "environment", "observation", "check"]
    optional = ["environment", "observation", "window"]
    print_table(f"{len(tasks)} task{'' if len(tasks) == 1 else 's'}", columns, left=left, optional=optional)

    for name, result in (checks or broken).items():
        if "reason" in result:
            print(f"{name}: {result['status']}: {result['reason']}")
    if checks:
        counts = [result["status"] for result in checks.values()]
        print(", ".join(f"{counts.count(status)} {status}" for status in dict.fromkeys(counts)))


_HEADERS = ("task", "environment", "observation", "window", "random", "expert", "human")


def _cells(name: str, task: Task | None) -> dict[str, str]:
    """Return a task's row of the table; one that cannot be made has only its name."""
    if task is None:
        return dict.fromkeys(_HEADERS, "") | {"task": name}
    return {
        "task": name,
        "environment": task.env_id,
        "observation": task.observation,
        "window": str(task.context_window),
    } | {header: score(found) for header, found in _scores(task).items()}
