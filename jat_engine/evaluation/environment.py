"""Environments for evaluation, and checks that they can be built and rendered here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..envs import MissingSimulatorError, Task, check_rendering, get_domain, make

if TYPE_CHECKING:
    import gymnasium


def evaluation_env(task: Task, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    """Build a task's environment as for the published returns: rewards of Atari are not clipped.

    Args:
        task: the task.
        render_mode: "human", "rgb_array" or None.

    Raises:
        MissingSimulatorError: the simulator is not installed.
    """
    options = dict(get_domain(task.domain).evaluation_options)
    if render_mode is not None:
        options["render_mode"] = render_mode
    return make(task, **options)


def missing_simulators(tasks: Iterable[Task], render: bool = False) -> dict[str, str]:
    """Build one task of each published domain and all others, and return the domains whose simulator is missing.

    Args:
        tasks: the tasks.
        render: also check that frames can be rendered.

    Returns:
        Domain -> message with the command that installs the simulator.

    Raises:
        RenderingError: frames cannot be rendered here.
    """
    missing: dict[str, str] = {}
    for task in {task.domain if task.published_env_id else task.name: task for task in tasks}.values():
        try:
            evaluation_env(task, "rgb_array" if render else None).close()
        except MissingSimulatorError as error:
            missing[task.domain] = str(error)
    return missing


def require_simulators(tasks: Iterable[Task], render: bool = False) -> None:
    """Check that the simulators of all tasks are installed.

    Args:
        tasks: the tasks.
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
    check_rendering(task, "human")
