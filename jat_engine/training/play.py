"""Episodes that are played while training, by an engine with the present weights."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..engine.engine import JatEngine
from ..envs import Task
from ..evaluation.checks import check_sizes
from ..evaluation.environment import evaluation_env, require_simulators
from ..evaluation.progress import play_episodes
from ..evaluation.scores import normalize, undefined_reason

PLAY_SEED = 500_000
"""Seed of the first episode, apart from demonstrations (from 0) and evaluations (from 1,000,000): the best of several
noisy means is chosen, which on the same episodes would be too high."""


def playable(tasks: Mapping[str, Task | None]) -> tuple[Task, ...]:
    """Return the tasks that have an environment, among tasks by name and text datasets (None)."""
    return tuple(task for task in tasks.values() if task is not None and task.maker is not None)


def metric_names(tasks: Mapping[str, Task | None]) -> list[str]:
    """Return the names of the metrics that episodes of tasks give: `return`, and `<task>_return` for each task."""
    return ["return", *(f"{task.name}_return" for task in playable(tasks))]


@dataclass(frozen=True)
class Player:
    """Player of episodes with the most likely discrete actions.

    Attributes:
        tasks: what to play.
        num_episodes: episodes of each task.
        seed: of each task's first episode; the next ones have the following seeds.
    """

    tasks: tuple[Task, ...]
    num_episodes: int
    seed: int = PLAY_SEED

    @property
    def unscored(self) -> list[str]:
        """Names of the tasks without normalised scores, if others have them: not in the mean of `play`."""
        names = [task.name for task in self.tasks if undefined_reason(task) is not None]
        return names if len(names) < len(self.tasks) else []

    def check(self, model: Any, processor: Any, device: torch.device) -> None:
        """Check that all tasks can be played.

        Args:
            model: the `JatModel` that is trained.
            processor: its processor.
            device: where it is trained.

        Raises:
            ValueError: there is no task, or one is too large for the model.
            MissingSimulatorError: simulators are missing; the message says how to install them.
            InputError: an engine does not support the device.
        """
        if not self.tasks:
            raise ValueError(
                "--eval_episodes: expected a task that can be played, got none with an environment; leave it out"
            )
        require_simulators(self.tasks)
        check_sizes(self.tasks, model.config)
        self._engine(model, processor, device).close()

    def play(self, model: Any, processor: Any, device: torch.device) -> dict[str, float]:
        """Play all episodes. Their seeds are set in torch's global generator.

        Args:
            model: the `JatModel` that is trained, with its present weights.
            processor: its processor.
            device: where it is trained.

        Returns:
            `<task>_return`, the mean return of each task; `<task>_score`, its mean return normalised by the published
            expert or, of other tasks, by the demonstrator, where that is defined; and `return`, the mean over tasks of
            the scores, or of the returns if no task has a score.
        """
        metrics: dict[str, float] = {}
        scores = []
        with self._engine(model, processor, device) as engine:
            for task in self.tasks:
                with contextlib.closing(evaluation_env(task)) as env:
                    episodes = play_episodes(
                        engine,
                        None,
                        env,
                        self.num_episodes,
                        task=task,
                        seed=self.seed,
                        deterministic=True,
                        position=1,
                    )
                    returns = [episode.return_ for episode in episodes]
                metrics[f"{task.name}_return"] = float(np.mean(returns))
                normalized = normalize(returns, task)
                if normalized is not None:
                    scores.append(float(np.mean(normalized)))
                    metrics[f"{task.name}_score"] = scores[-1]

        means = scores or [metrics[f"{task.name}_return"] for task in self.tasks]
        metrics["return"] = float(np.mean(means))
        return metrics

    @staticmethod
    def _engine(model: Any, processor: Any, device: torch.device) -> JatEngine:
        return JatEngine.from_model(model, processor, device=device, dtype="float32")
