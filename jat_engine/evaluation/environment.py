"""Environments for evaluation, and checks that they can be built and rendered here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..envs import TASKS, MissingSimulatorError, Task, check_rendering, make

if TYPE_CHECKING:
    import gymnasium

EVALUATION_SEED = 1_000_000
"""First seed of episodes that an agent is evaluated on. Demonstrations have seeds from 0 upwards."""


def evaluation_env(task: Task, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    """Build a task's environment as for the published returns: rewards of Atari are not clipped.

    Args:
        task: the task.
        render_mode: "human", "rgb_array" or None.

    Raises:
        MissingSimulatorError: the simulator is not installed.
    """
    options: dict[str, Any] = {"clip_reward": False} if task.domain == "atari" else {}
    if render_mode is not None:
        options["render_mode"] = render_mode
    return make(task.name, **options)


def missing_simulators(tasks: Iterable[str], render: bool = False) -> dict[str, str]:
    """Build one task of each domain, and return the domains whose simulator is not installed.

    Args:
        tasks: names of tasks.
        render: also check that frames can be rendered.

    Returns:
        Domain -> message with the command that installs the simulator.

    Raises:
        RenderingError: frames cannot be rendered here.
    """
    missing: dict[str, str] = {}
    for domain, task in {TASKS[name].domain: TASKS[name] for name in tasks}.items():
        try:
            evaluation_env(task, "rgb_array" if render else None).close()
        except MissingSimulatorError as error:
            missing[domain] = str(error)
    return missing


def require_simulators(tasks: Iterable[str], render: bool = False) -> None:
    """Check that the simulators of all tasks are installed.

    Args:
        tasks: names of tasks.
        render: also check that frames can be rendered.

    Raises:
        MissingSimulatorError: simulators are missing; the message says how to install all of them.
        RenderingError: frames cannot be rendered here.
    """
    missing = missing_simulators(tasks, render)
    if missing:
        raise MissingSimulatorError("; ".join(missing.values()))


def require_display(task: Task) -> None:
    """Check that a window can be opened for a task.

    Raises:
        RenderingError: there is no display, or it has no OpenGL.
    """
    check_rendering(task.name, "human")
