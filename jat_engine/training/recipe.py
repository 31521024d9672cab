"""The published recipe's numbers: lengths of pieces, weights of losses, weights of sampling (arXiv 2402.09844)."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from ..config import JatConfig
from ..envs import DOMAINS, TASKS, UnknownTaskError, expand_tasks

Number = TypeVar("Number", int, float)

TEXT_TASKS = ("conceptual-captions", "oscar", "wikipedia")
"""Text and caption datasets that the published model was trained on beside the RL tasks."""

_ATARI_STEPS = 32
_LOSS_WEIGHTS = {"mujoco": 10.0, "metaworld": 50.0}
_TASK_LOSS_WEIGHTS = {"mujoco-pendulum": 50.0, "mujoco-doublependulum": 20.0}
_TEXT_SAMPLING_WEIGHT = 10.0


def loss_weight(task: str) -> float:
    """What the loss of every step of an RL task is multiplied by."""
    if task in _TASK_LOSS_WEIGHTS:
        return _TASK_LOSS_WEIGHTS[task]
    return _LOSS_WEIGHTS.get(TASKS[task].domain, 1.0) if task in TASKS else 1.0


def sampling_weight(task: str) -> float:
    """How often a batch is of this task, relative to the others."""
    return 1.0 if task in TASKS else _TEXT_SAMPLING_WEIGHT


def piece_length(task: str, config: JatConfig) -> int:
    """Steps of an RL task's longest pieces: a step is two tokens; Atari's are shorter. Tokens of a text's."""
    if task not in TASKS:
        return int(config.max_position_embeddings)
    longest = int(config.max_position_embeddings) // 2
    return min(_ATARI_STEPS, longest) if TASKS[task].domain == "atari" else longest


def expand(names: Sequence[str]) -> list[str]:
    """`expand_tasks`, and names of text datasets, which are no tasks to play: those published, or any `text:NAME`.

    Raises:
        UnknownTaskError: names what came and the nearest that exist.
    """
    expanded: dict[str, None] = {}
    for name in names:
        if name in TEXT_TASKS:
            expanded[name] = None
        elif name.startswith("text:") and len(name) > len("text:"):
            expanded[name.removeprefix("text:")] = None
        else:
            try:
                expanded.update(dict.fromkeys(expand_tasks([name])))
            except UnknownTaskError as error:
                raise UnknownTaskError(
                    f"{error}; text datasets are {', '.join(TEXT_TASKS)}, another is given as text:NAME"
                ) from None
    return list(expanded)


def overrides(
    flag: str, given: Iterable[str], tasks: Sequence[str], number: Callable[[str], Number]
) -> dict[str, Number]:
    """`["mujoco=5", "mujoco-ant=7"]` -> task -> number, for the tasks that are trained; a task's own goes before its
    domain's.

    Raises:
        ValueError: not of the form NAME=NUMBER, a name that is not trained, or a number that is not above 0.
    """
    by_name: dict[str, Number] = {}
    domains: set[str] = {TASKS[task].domain for task in tasks if task in TASKS}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"{flag}: expected task=number or domain=number, got {text!r}")
        if name not in tasks and name not in domains:
            near = difflib.get_close_matches(name, [*tasks, *domains], n=3)
            hint = f"did you mean {', '.join(near)}?" if near else "see --tasks"
            raise ValueError(f"{flag}: expected a task or domain that is trained, got {name!r}; {hint}")
        try:
            by_name[name] = number(value)
        except ValueError:
            raise ValueError(f"{flag}: {name}: expected a number above 0, got {value!r}") from None
        if not (math.isfinite(by_name[name]) and by_name[name] > 0):
            raise ValueError(f"{flag}: {name}: expected a number above 0, got {value!r}")
    chosen = {}
    for name in (*DOMAINS, *tasks):
        if name in by_name:
            members = [name] if name in tasks else [t for t in tasks if t in TASKS and TASKS[t].domain == name]
            chosen.update(dict.fromkeys(members, by_name[name]))
    return chosen
