"""Numbers of the published recipe: segment lengths, loss weights and sampling weights (arXiv 2402.09844)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from ..config import JatConfig
from ..envs import Task, UnknownTaskError
from ..keywords import did_you_mean

Number = TypeVar("Number", int, float)

TEXT_TASKS = ("conceptual-captions", "oscar", "wikipedia")
"""Text and caption datasets of the published training, in addition to the RL tasks."""

_IMAGE_STEPS = 32
_TEXT_SAMPLING_WEIGHT = 10.0


Chosen = Mapping[str, Task | None]
"""Tasks of a training by name; None for a text dataset."""


def loss_weight(task: Task | None) -> float:
    """Return the factor of the loss of every step of a task; 1 for text datasets."""
    return 1.0 if task is None else task.loss_weight


def sampling_weight(task: Task | None) -> float:
    """Return how often batches of this task are drawn, relative to other tasks."""
    return _TEXT_SAMPLING_WEIGHT if task is None else 1.0


def segment_length(task: Task | None, config: JatConfig) -> int:
    """Return the length of a task's longest segments, in steps for RL tasks and in tokens for texts.

    A step takes two tokens of the model's context. Tasks with pictures have shorter segments, as published.

    Args:
        task: the task; None for a text dataset.
        config: of the model; `max_position_embeddings` limits the length.
    """
    if task is None:
        return int(config.max_position_embeddings)
    longest = int(config.max_position_embeddings) // 2
    return min(_IMAGE_STEPS, longest) if task.observation == "image" else longest


def choose(names: Sequence[str], find: Callable[[str], list[Task]]) -> dict[str, Task | None]:
    """Find the tasks and text datasets of some names, each once.

    Args:
        names: names of tasks and domains, or a name of `TEXT_TASKS`, or `text:NAME` for any other text dataset.
        find: returns the tasks of a name.

    Returns:
        Tasks by name, and None for text datasets (without the prefix), in the order given.

    Raises:
        UnknownTaskError: no such task; names the nearest ones.
    """
    chosen: dict[str, Task | None] = {}
    for name in names:
        if name in TEXT_TASKS:
            chosen[name] = None
        elif name.startswith("text:") and len(name) > len("text:"):
            chosen[name.removeprefix("text:")] = None
        else:
            try:
                chosen.update((task.name, task) for task in find(name))
            except UnknownTaskError as error:
                raise UnknownTaskError(
                    f"{error}; text datasets are {', '.join(TEXT_TASKS)}, another is given as text:NAME"
                ) from None
    return chosen


def overrides(flag: str, given: Iterable[str], tasks: Chosen, number: Callable[[str], Number]) -> dict[str, Number]:
    """Parse numbers per task or domain, such as `["mujoco=5", "mujoco-ant=7"]`.

    Args:
        flag: the command line's flag, for error messages.
        given: strings of the form NAME=NUMBER; NAME is a task or a domain.
        tasks: the tasks and text datasets that are trained.
        number: `int` or `float`.

    Returns:
        Task -> number, for the tasks that were given one. A task's own number overrides its domain's.

    Raises:
        ValueError: another form, a name that is not trained, or a number that is not above 0.
    """
    by_name: dict[str, Number] = {}
    domains: list[str] = [task.domain for task in tasks.values() if task is not None]
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
    for name in (*domains, *tasks):
        if name in by_name:
            members = [name] if name in tasks else [t for t, task in tasks.items() if task and task.domain == name]
            chosen.update(dict.fromkeys(members, by_name[name]))
    return chosen
