"""Result files of an evaluation: `evaluations.json` in the published layout, and `results.json` with all details."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic_io import hold, write_json
from ..checkpoint_files import local_path
from ..envs import TASKS, Score, Task
from ..installation import versions
from .rollout import EpisodeResult
from .scores import REFERENCES, Reference, normalize, reference_score, undefined_reason
from .statistics import Interval, interquartile_mean

Statistic = dict[str, float]

EVALUATIONS, RESULTS = "evaluations.json", "results.json"
"""Names of the two files."""


class Results:
    """Episodes of an evaluation by task, and the two result files made from them.

    Tasks that a folder already has are kept (`keep_earlier`). Of a task that is played again, the results with more
    episodes are kept: with equal settings they begin with the same episodes.

    Args:
        folder: folder for the files; created at the first `write`.
        num_episodes: planned episodes per task. A task with fewer is marked incomplete.
        arguments: arguments of the command, stored in `results.json`.
        device: description of the device, stored in `results.json`.
        settings: values that all results of a folder have in common, such as the checkpoint and the seed.

    Attributes:
        complete: set it to True after the last episode.
        failed: task -> description of the error that ended it; stored in `results.json`.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        num_episodes: int,
        arguments: dict[str, Any],
        device: str,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.num_episodes = num_episodes
        self.arguments = arguments
        self.device = device
        self.settings = dict(settings or {})
        self.complete = False
        self.failed: dict[str, dict[str, Any]] = {}
        self._tasks: dict[str, Task] = {}
        self._episodes: dict[str, list[EpisodeResult]] = {}
        self._earlier: dict[str, dict[str, Any]] = {}
        self._began = time.perf_counter()

    @property
    def evaluations_path(self) -> Path:
        """Path of `evaluations.json`."""
        return self.folder / EVALUATIONS

    @property
    def results_path(self) -> Path:
        """Path of `results.json`."""
        return self.folder / RESULTS

    def keep_earlier(self) -> None:
        """Keep the results that the folder has.

        Raises:
            ValueError: they have other settings; see `read_earlier`.
        """
        self._earlier = read_earlier(self.folder, self.settings)

    def add(self, task: Task, episode: EpisodeResult) -> None:
        """Add one finished episode of a task.

        Raises:
            ValueError: its return is not a finite number.
        """
        if not np.isfinite(episode.return_):
            raise ValueError(f"return of the episode: expected a finite number, got {episode.return_}")
        self._tasks[task.name] = task
        self._episodes.setdefault(task.name, []).append(episode)

    def episodes(self, task: str) -> list[EpisodeResult]:
        """Return the episodes of a task that were played for these results so far."""
        return list(self._episodes.get(task, []))

    def keeps_earlier(self, task: str) -> bool:
        """Return whether the files keep earlier results of a task, because those have more episodes."""
        return len(self._earlier.get(task, {}).get("returns", [])) > len(self.episodes(task))

    def task_names(self) -> list[str]:
        """Return the names of all tasks in the files, earlier ones first."""
        return list(dict.fromkeys([*self._earlier, *self._episodes]))

    def tasks(self) -> dict[str, Task]:
        """Return all tasks in the files by name, earlier ones first."""
        return {
            name: self._tasks[name] if name in self._tasks else task_of_entry(name, self._earlier[name])
            for name in self.task_names()
        }

    def evaluations(self) -> dict[str, list[float]]:
        """Return the content of `evaluations.json`: task -> returns, in the order of the episodes."""
        return {
            name: self._earlier[name]["returns"]
            if self.keeps_earlier(name)
            else [e.return_ for e in self._episodes[name]]
            for name in self.task_names()
        }

    def task(self, name: str) -> dict[str, Any]:
        """Return the part of `results.json` about one task: episodes, scores, latencies."""
        if self.keeps_earlier(name):
            return self._earlier[name]
        task, episodes = self._tasks[name], self._episodes[name]
        returns = np.array([e.return_ for e in episodes])
        latencies_us = np.concatenate([e.latencies_us for e in episodes])

        summary: dict[str, Any] = {
            "domain": task.domain,
            "adapter": task.rule["adapter"],
            "module": task.module,
            "complete": len(episodes) >= self.num_episodes,
            "seeds": [e.seed for e in episodes],
            "returns": returns.tolist(),
            "lengths": [e.length for e in episodes],
            "capped": [e.capped for e in episodes],
            **_mean_std(returns),
            "random_mean": task.random.mean if task.random else None,
            **{
                f"{reference}_mean": score.mean if (score := reference_score(task, reference)) else None
                for reference in REFERENCES
            },
        }

        for reference in REFERENCES:
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
        evaluations = self.evaluations()
        tasks = self.tasks()
        names = [name for name in evaluations if domain in (None, tasks[name].domain)]
        summary: dict[str, Any] = {
            "tasks": len(names),
            "episodes": sum(len(evaluations[name]) for name in names),
        }
        for reference in REFERENCES:
            summary[f"iqm_{reference}_normalized"] = None
            interval = self.iqm(names, reference)
            if interval is not None:
                defined = [name for name in names if undefined_reason(tasks[name], reference) is None]
                summary[f"iqm_{reference}_normalized"] = {
                    "tasks": len(defined),
                    "value": interval.value,
                    "low": interval.low,
                    "high": interval.high,
                }
        return summary

    def iqm(self, names: Iterable[str], reference: Reference = "expert") -> Interval | None:
        """Return the interquartile mean over those tasks whose normalised score is defined; None if there are none.

        Args:
            names: names of tasks. Those without episodes are left out.
            reference: "expert", "demonstrator" or "human".
        """
        evaluations, tasks = self.evaluations(), self.tasks()
        scores = [normalize(evaluations[name], tasks[name], reference) for name in names if name in evaluations]
        return interquartile_mean(s for s in scores if s is not None)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `results.json`."""
        tasks = {name: self.task(name) for name in self.task_names()}
        domains = dict.fromkeys(task.domain for task in self.tasks().values())
        return {
            "complete": self.complete and all(task["complete"] for task in tasks.values()),
            "tasks": tasks,
            "failed": self.failed,
            "domains": {domain: self.group(domain) for domain in domains},
            "overall": self.group(),
            "settings": self.settings,
            "arguments": self.arguments,
            "device": self.device,
            "versions": versions(),
            "seconds": time.perf_counter() - self._began,
        }

    def write(self) -> None:
        """Write both files atomically.

        Raises:
            OSError: they cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.results_path, self.to_dict(), indent=2)
        write_json(self.evaluations_path, self.evaluations())


def default_folder(source: str) -> Path:
    """Return the folder for results of a checkpoint: `results/`, and a name made of the checkpoint's.

    It never is a folder that `source` names, or the results would be taken for the checkpoint from then on.

    Args:
        source: a folder, or the name of a repository on the hub.

    Example:
        >>> str(default_folder("jat-project/jat"))
        'results/jat-project--jat'
    """
    path = local_path(source)
    if path.is_dir():
        path, here = path.resolve(), Path.cwd().resolve()
        path = path.relative_to(here) if path != here and path.is_relative_to(here) else Path(path.name)
    parts = [part for part in path.parts if part not in (path.anchor, "..")]
    return Path("results") / ("--".join(parts)[-200:].lstrip(".") or "checkpoint")


def read_earlier(folder: Path, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the results that a folder has already.

    Args:
        folder: a folder, which need not exist.
        settings: values that the results must have been made with; others are not compared.

    Returns:
        Task -> its part of `results.json`. Each has the `arguments`, `device` and `versions` of its run in "run".

    Raises:
        ValueError: the results have other settings, or cannot be read.
    """
    remedy = "name another --output_dir, or add --overwrite to replace them"
    path = folder / RESULTS
    if not path.exists():
        if (folder / EVALUATIONS).exists():
            raise ValueError(f"{folder}: has {EVALUATIONS} without {RESULTS}, of unknown settings; {remedy}")
        return {}

    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        tasks, there = dict(found["tasks"]), dict(found.get("settings") or {})
        run = {key: found.get(key) for key in ("arguments", "device", "versions")}
        entries = {name: {"run": run} | entry for name, entry in tasks.items()}
        for entry in entries.values():
            entry["returns"] = [float(value) for value in entry["returns"]]
            entry["complete"] = bool(entry["complete"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected results of an evaluation, got {type(error).__name__}: {error}; {remedy}"
        ) from None

    differ = [key for key, value in settings.items() if there.get(key) != value]
    if entries and differ:
        key = differ[0]
        raise ValueError(
            f"{folder}: has results of other settings ({key} {there.get(key)}, now {settings[key]}); {remedy}"
        )
    return entries


def check_adapters(earlier: Mapping[str, Mapping[str, Any]], tasks: Iterable[Task], folder: Path) -> None:
    """Check that earlier results of tasks were played with the same adapters.

    Args:
        earlier: the return value of `read_earlier`.
        tasks: that are to be played.
        folder: of the results, for the message.

    Raises:
        ValueError: another adapter converted the observations or actions of a task.
    """
    for task in tasks:
        before, now = earlier.get(task.name, {}).get("adapter"), task.rule["adapter"]
        if task.name in earlier and before != now:
            raise ValueError(
                f"{folder}: has results of {task.name} with another adapter ({before}, now {now}); name another "
                "--output_dir, or add --overwrite to replace them"
            )


def task_of_entry(name: str, entry: Mapping[str, Any]) -> Task:
    """Return a task as a part of `results.json` describes it: its domain and scores.

    Args:
        name: of the task.
        entry: its part of `results.json`.
    """
    means = [entry.get(f"{key}_mean") for key in ("random", *REFERENCES)]
    random, expert, demonstrator, human = (None if mean is None else Score(float(mean), None) for mean in means)
    if name in TASKS:
        return TASKS[name].with_scores(None, demonstrator)
    adapter = entry.get("adapter") or {}
    return Task(
        name=name,
        maker=None,
        observation=adapter.get("observation", "continuous"),
        action=adapter.get("action", "continuous"),
        context_window=256,
        domain=str(entry.get("domain", "own")),
        module=entry.get("module"),
        random=random,
        expert=expert,
        human=human,
        demonstrator=demonstrator,
    )


def weights_sha256(files: Iterable[Path]) -> str:
    """Return the SHA-256 of a checkpoint's weights: of its file, or of the hashes of its shards."""
    hashes = []
    for path in files:
        with path.open("rb") as file:
            hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


@contextlib.contextmanager
def results_lock(folder: Path) -> Iterator[None]:
    """Lock a folder against other evaluations while the `with` block runs; created if needed, removed if left empty.

    Raises:
        ValueError: another process writes its results there.
        OSError: the folder cannot be created.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = None
    try:
        descriptor = hold(folder, wait=False)
    except BlockingIOError:
        raise ValueError(f"{folder}: another evaluation writes its results there; name another --output_dir") from None
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)
        with contextlib.suppress(OSError):  # not empty
            folder.rmdir()


def _mean_std(values: np.ndarray) -> Statistic:
    return {"mean": float(values.mean()), "std": float(values.std())}
