"""Environments for the commands that play."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..envs import TASKS, MissingSimulatorError, Task, make

if TYPE_CHECKING:
    import gymnasium


def evaluation_env(task: Task, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    """The environment that published returns were measured in: Atari's rewards are not clipped."""
    options: dict[str, Any] = {"clip_reward": False} if task.domain == "atari" else {}
    if render_mode is not None:
        options["render_mode"] = render_mode
    return make(task.name, **options)


def missing_simulators(tasks: Iterable[str]) -> dict[str, str]:
    """Domains of `tasks` that cannot be built here, each with what to install."""
    first = {TASKS[name].domain: TASKS[name] for name in tasks}
    missing = {}
    for domain, task in first.items():
        try:
            evaluation_env(task).close()
        except MissingSimulatorError as error:
            missing[domain] = str(error)
    return missing


def require_simulators(tasks: Iterable[str]) -> None:
    """Raises `MissingSimulatorError` with everything that must be installed, before anything is run."""
    missing = missing_simulators(tasks)
    if missing:
        raise MissingSimulatorError("; ".join(missing.values()))
