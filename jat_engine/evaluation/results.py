"""Result files of an evaluation: `evaluations.json` in the published layout, and `results.json` with all details."""

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
    """Episodes of an evaluation by task, and the two result files made from them.

    Args:
        folder: folder for the files; created at the first `write`.
        num_episodes: planned episodes per task. A task with fewer is marked incomplete.
        arguments: arguments of the command, stored in `results.json`.
        device: description of the device, stored in `results.json`.

    Attributes:
        complete: set it to True after the last episode.
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
        """Path of `evaluations.json`."""
        return self.folder / "evaluations.json"

    @property
    def results_path(self) -> Path:
        """Path of `results.json`."""
        return self.folder / "results.json"

    def add(self, task: Task, episode: EpisodeResult) -> None:
        """Add one finished episode of a task."""
        self._tasks[task.name] = task
        self._episodes.setdefault(task.name, []).append(episode)

    def episodes(self, task: str) -> list[EpisodeResult]:
        """Return the episodes of a task so far."""
        return list(self._episodes.get(task, []))

    def evaluations(self) -> dict[str, list[float]]:
        """Return the content of `evaluations.json`: task -> returns, in the order of the episodes."""
        return {name: [e.return_ for e in episodes] for name, episodes in self._episodes.items()}

    def task(self, name: str) -> dict[str, Any]:
        """Return the part of `results.json` about one task: episodes, scores, latencies."""
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
        """Return interquartile means over the tasks of a domain, or over all tasks."""
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
        """Return the interquartile mean over those tasks whose normalised score is defined; None if there are none.

        Args:
            names: names of tasks that have episodes.
            reference: "expert" or "human".
        """
        scores = [normalize([e.return_ for e in self._episodes[name]], self._tasks[name], reference) for name in names]
        return interquartile_mean(s for s in scores if s is not None)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `results.json`."""
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
        """Write both files atomically."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.evaluations_path, self.evaluations())
        write_json(self.results_path, self.to_dict(), indent=2)


_REFERENCES: tuple[Reference, ...] = ("expert", "human")


def _mean_std(values: np.ndarray) -> Statistic:
    return {"mean": float(values.mean()), "std": float(values.std())}
