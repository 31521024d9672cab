"""Numbers of the published recipe: segment lengths, loss weights and sampling weights (arXiv 2402.09844)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from ..config import JatConfig
from ..envs import DOMAINS, TASKS, UnknownTaskError, expand_tasks
from ..keywords import did_you_mean

Number = TypeVar("Number", int, float)

TEXT_TASKS = ("conceptual-captions", "oscar", "wikipedia")
"""Text and caption datasets of the published training, in addition to the RL tasks."""

_ATARI_STEPS = 32
_LOSS_WEIGHTS = {"mujoco": 10.0, "metaworld": 50.0}
_TASK_LOSS_WEIGHTS = {"mujoco-pendulum": 50.0, "mujoco-doublependulum": 20.0}
_TEXT_SAMPLING_WEIGHT = 10.0


def loss_weight(task: str) -> float:
    """Return the factor of the loss of every step of a task; 1 for text datasets."""
    if task in _TASK_LOSS_WEIGHTS:
        return _TASK_LOSS_WEIGHTS[task]
    return _LOSS_WEIGHTS.get(TASKS[task].domain, 1.0) if task in TASKS else 1.0


def sampling_weight(task: str) -> float:
    """Return how often batches of this task are drawn, relative to other tasks."""
    return 1.0 if task in TASKS else _TEXT_SAMPLING_WEIGHT


def segment_length(task: str, config: JatConfig) -> int:
    """Return the length of a task's longest segments, in steps for RL tasks and in tokens for texts.

    A step takes two tokens of the model's context. Atari has shorter segments, as published.

    Args:
        task: name of a task or of a text dataset.
        config: of the model; `max_position_embeddings` limits the length.
    """
    if task not in TASKS:
        return int(config.max_position_embeddings)
    longest = int(config.max_position_embeddings) // 2
    return min(_ATARI_STEPS, longest) if TASKS[task].domain == "atari" else longest


def expand(names: Sequence[str]) -> list[str]:
    """Expand names of tasks, domains and text datasets to a list without duplicates.

    Args:
        names: as `expand_tasks` takes them, or a name of `TEXT_TASKS`, or `text:NAME` for any other text dataset.

    Returns:
        Names of tasks and of text datasets (without the prefix), in the order given.

    Raises:
        UnknownTaskError: no such task; names the nearest ones.
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
    """Parse numbers per task or domain, such as `["mujoco=5", "mujoco-ant=7"]`.

    Args:
        flag: the command line's flag, for error messages.
        given: strings of the form NAME=NUMBER; NAME is a task or a domain.
        tasks: names of the tasks and text datasets that are trained.
        number: `int` or `float`.

    Returns:
        Task -> number, for the tasks that were given one. A task's own number overrides its domain's.

    Raises:
        ValueError: another form, a name that is not trained, or a number that is not above 0.
    """
    by_name: dict[str, Number] = {}
    domains: set[str] = {TASKS[task].domain for task in tasks if task in TASKS}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"{flag}: expected task=number or domain=number, got {text!r}")

        if name not in tasks and name not in domains:
            hint = did_you_mean(name, [*tasks, *domains], "see --tasks", most=3)
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
