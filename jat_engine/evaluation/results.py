"""What an evaluation leaves on disk: `evaluations.json`, as published, and `results.json`, which says everything."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..atomic_io import write_json
from ..installation import versions
from .rollout import EpisodeResult
from .scores import Interval, Reference, interquartile_mean, normalize, undefined_reason

if TYPE_CHECKING:
    from ..envs import Task

Statistic = dict[str, float]


class Results:
    """Episodes of an evaluation by task, and the two files made of them.

    Args:
        folder: where the files go; created with the first `write`.
        num_episodes: asked for per task; a task with fewer is marked incomplete.
        arguments: of the command, kept for the record.
        device: what the model ran on, in words.
    """

    def __init__(self, folder: str | Path, *, num_episodes: int, arguments: dict[str, Any], device: str) -> None:
        self.folder = Path(folder)
        self.num_episodes = num_episodes
        self.arguments = arguments
        self.device = device
        self.complete = False
        self._tasks: dict[str, Task] = {}
        self._episodes: dict[str, list[EpisodeResult]] = {}
        self._began = time.perf_counter()

    @property
    def evaluations_path(self) -> Path:
        return self.folder / "evaluations.json"

    @property
    def results_path(self) -> Path:
        return self.folder / "results.json"

    def add(self, task: Task, episode: EpisodeResult) -> None:
        self._tasks[task.name] = task
        self._episodes.setdefault(task.name, []).append(episode)

    def episodes(self, task: str) -> list[EpisodeResult]:
        return list(self._episodes.get(task, []))

    def evaluations(self) -> dict[str, list[float]]:
        """The published layout: task -> returns in the order they were played."""
        return {name: [e.return_ for e in episodes] for name, episodes in self._episodes.items()}

    def task(self, name: str) -> dict[str, Any]:
        """One task's part of `results.json`."""
        task, episodes = self._tasks[name], self._episodes[name]
        returns = np.array([e.return_ for e in episodes])
        latencies_us = np.concatenate([e.latencies_us for e in episodes])
        summary: dict[str, Any] = {
            "domain": task.domain,
            "complete": len(episodes) >= self.num_episodes,
            "seeds": [e.seed for e in episodes],
            "returns": returns.tolist(),
            "lengths": [e.length for e in episodes],
            "capped": [e.capped for e in episodes],
            **_mean_std(returns),
            "random_mean": task.random.mean if task.random else None,
            "expert_mean": task.expert.mean if task.expert else None,
            "human_mean": task.human.mean if task.human else None,
        }
        for reference in _REFERENCES:
            scores, key = normalize(returns, task, reference), f"{reference}_normalized"
            summary[key] = None if scores is None else _mean_std(scores)
            if scores is None:
                summary[f"{key}_reason"] = undefined_reason(task, reference)
        p50, p99 = np.percentile(latencies_us, [50, 99])
        summary["latency_us"] = {"p50": float(p50), "p99": float(p99)}
        summary["seconds"] = sum(e.seconds for e in episodes)
        return summary

    def group(self, domain: str | None = None) -> dict[str, Any]:
        """Interquartile means of one domain, or of all tasks."""
        names = [name for name, task in self._tasks.items() if domain in (None, task.domain)]
        summary: dict[str, Any] = {
            "tasks": len(names),
            "episodes": sum(len(self._episodes[name]) for name in names),
        }
        for reference in _REFERENCES:
            summary[f"iqm_{reference}_normalized"] = None
            interval = self.iqm(names, reference)
            if interval is not None:
                defined = [name for name in names if undefined_reason(self._tasks[name], reference) is None]
                summary[f"iqm_{reference}_normalized"] = {
                    "tasks": len(defined),
                    "value": interval.value,
                    "low": interval.low,
                    "high": interval.high,
                }
        return summary

    def iqm(self, names: list[str], reference: Reference = "expert") -> Interval | None:
        """Over the tasks whose normalised score is defined; None if there is none."""
        scores = [normalize([e.return_ for e in self._episodes[name]], self._tasks[name], reference) for name in names]
        return interquartile_mean(s for s in scores if s is not None)

    def to_dict(self) -> dict[str, Any]:
        """`results.json`."""
        domains = dict.fromkeys(task.domain for task in self._tasks.values())
        return {
            "complete": self.complete,
            "tasks": {name: self.task(name) for name in self._tasks},
            "domains": {domain: self.group(domain) for domain in domains},
            "overall": self.group(),
            "arguments": self.arguments,
            "device": self.device,
            "versions": versions(),
            "seconds": time.perf_counter() - self._began,
        }

    def write(self) -> None:
        """Write both files, each as a whole or not at all: a reader never sees half of one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.evaluations_path, self.evaluations())
        write_json(self.results_path, self.to_dict(), indent=2)


_REFERENCES: tuple[Reference, ...] = ("expert", "human")


def _mean_std(values: np.ndarray) -> Statistic:
    return {"mean": float(values.mean()), "std": float(values.std())}
