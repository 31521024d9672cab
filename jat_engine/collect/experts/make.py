"""Find and make the expert of a task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...envs import TASKS, Task
from .demonstration import Expert

if TYPE_CHECKING:
    import gymnasium

_NO_POLICY = frozenset({"metaworld-peg-insert-side"})  # metaworld 3.1 exports none under the task's name
_MUJOCO = frozenset({"mujoco-doublependulum", "mujoco-pendulum", "mujoco-reacher", "mujoco-swimmer"})

EXPERT_TASKS: frozenset[str] = frozenset(
    name
    for name, task in TASKS.items()
    if task.domain == "babyai"
    or (task.domain == "metaworld" and name not in _NO_POLICY)
    or name in _MUJOCO
    or name == "atari-pong"
)
"""Tasks that have an expert. Some experts fail sometimes; `jat-engine collect` reports how often they succeed."""


def make_expert(task: Task, env: gymnasium.Env[Any, Any]) -> Expert:
    """Make the expert of a task.

    Args:
        task: one of `EXPERT_TASKS`.
        env: an environment of the task; the expert reads its state.

    Raises:
        ValueError: the task has no expert.
    """
    if task.name not in EXPERT_TASKS:
        near = sorted(name for name in EXPERT_TASKS if TASKS[name].domain == task.domain)
        shown = ", ".join(near[:5]) + (f" and {len(near) - 5} more" if len(near) > 5 else "")
        raise ValueError(f"task: expected one with an expert, got {task.name!r}; of its domain {shown} have one")

    if task.domain == "babyai":
        from .babyai import BotExpert

        return BotExpert(env)
    if task.domain == "metaworld":
        from .metaworld import ScriptedExpert

        return ScriptedExpert(env, task)
    if task.domain == "mujoco":
        from .mujoco import make_controller

        return make_controller(task, env)
    from .pong import PongExpert

    return PongExpert(env)
