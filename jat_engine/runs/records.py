"""Records of an evaluation: `Episode`, the episodes of a task, and an `Evaluation` with all tasks of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..envs import TASKS, Task
from ..evaluation.scores import Reference, normalize


@dataclass(frozen=True)
class Episode:
    """One episode that was played to its end, or that failed.

    Attributes:
        task: name of the task.
        index: of the episode, from 0.
        seed: of the environment and of the sampling: the run's base seed + index.
        return_: sum of the environment's rewards; None if the episode failed.
        length: steps that were taken.
        success: True if the task was solved; None if the task does not define success, or the episode failed.
        lives: lives that are left at the end, of Atari games; None for other tasks.
        capped: the episode was stopped at `max_steps`, before the environment ended it.
        digest: SHA-256 of the chain over (observation, action, reward), hexadecimal; "" if the episode failed.
        error: error that ended the episode, in one line; "" if there was none.
    """

    task: str
    index: int
    seed: int
    return_: float | None
    length: int
    success: bool | None = None
    lives: int | None = None
    capped: bool = False
    digest: str = ""
    error: str = ""

    @property
    def failed(self) -> bool:
        """True if an error ended the episode."""
        return bool(self.error)


@dataclass(frozen=True)
class TaskEpisodes:
    """Episodes of a task.

    Attributes:
        task: the task, with the scores that it is compared with.
        planned: episodes that were asked for, 0 to `planned - 1`.
        episodes: those that ended, in the order of their indices, with those that failed.
        description: of the task as it was played: "rule" and "versions".
    """

    task: Task
    planned: int
    episodes: tuple[Episode, ...] = ()
    description: Mapping[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> list[Episode]:
        """The episodes without those that failed."""
        return [episode for episode in self.episodes if not episode.failed]

    @property
    def complete(self) -> bool:
        """True if all planned episodes were played to their end."""
        return len(self.finished) >= self.planned

    @property
    def returns(self) -> np.ndarray:
        """Returns of the finished episodes, float64 [N]."""
        return np.array([episode.return_ for episode in self.finished], np.float64)

    @property
    def successes(self) -> np.ndarray | None:
        """Success of the finished episodes, bool [N]; None if the task does not define it."""
        if self.task.success is None:
            return None
        return np.array([bool(episode.success) for episode in self.finished], bool)

    def scores(self, reference: Reference = "expert") -> np.ndarray | None:
        """Return the normalised returns of the finished episodes, float64 [N]; None if they are undefined."""
        return normalize(self.returns, self.task, reference)


@dataclass(frozen=True)
class Evaluation:
    """All episodes of a run.

    Attributes:
        settings: what an episode depends on besides its seed: "weights_sha256", "backend", "dtype", "seed",
            "deterministic", "max_steps", options of sampling, "versions" of simulators, "instruction_set".
        tasks: name -> episodes, in the order of `sort_tasks`.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    tasks: Mapping[str, TaskEpisodes] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """True if all planned episodes of all tasks were played to their end."""
        return all(task.complete for task in self.tasks.values())

    def domains(self) -> dict[str, list[TaskEpisodes]]:
        """Return the tasks of each domain, in order."""
        groups: dict[str, list[TaskEpisodes]] = {}
        for task in self.tasks.values():
            groups.setdefault(task.task.domain, []).append(task)
        return groups


def sort_tasks(names: Iterable[str]) -> list[str]:
    """Return names of tasks in the order of all files and tables: published ones as listed, then others by name."""
    order = {name: number for number, name in enumerate(TASKS)}
    return sorted(set(names), key=lambda name: (order.get(name, len(order)), name))
