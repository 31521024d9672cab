"""Summary of an evaluation: means, intervals and aggregates of its tasks, domains and all tasks, and words for them.

Tables, figures and the card on the hub are made of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..envs import Task, get_domain
from ..evaluation.scores import REFERENCES, Reference, normalize, reference_words
from ..evaluation.statistics import RESAMPLES, Aggregates, Interval, aggregate, mean_interval, success_rate
from .records import Evaluation, TaskEpisodes

OVERALL = "overall"
"""Name of the group of all tasks."""


@dataclass(frozen=True)
class TaskSummary:
    """Results of a task's finished episodes.

    Attributes:
        task: the task.
        episodes, planned: numbers of finished episodes and of those that were asked for.
        mean: mean return.
        std: standard deviation of the episodes' returns.
        success: success rate with Wilson's interval; None if the task does not define success.
        scores: mean normalised return by each reference for which it is defined.
        score_stds: standard deviation of the episodes' normalised returns, by the same references.
        run: how its episodes were played, in words; see `describe_run`.
    """

    task: Task
    episodes: int
    planned: int
    mean: Interval
    std: float
    success: Interval | None
    scores: Mapping[Reference, Interval]
    score_stds: Mapping[Reference, float]
    run: str


@dataclass(frozen=True)
class GroupSummary:
    """Results of several tasks together.

    Attributes:
        name: of the domain, or `OVERALL`.
        tasks, episodes: numbers of tasks and of finished episodes.
        success: share of the episodes that succeeded, of the `success_tasks` tasks that define success, with Wilson's
            interval; None if there is none.
        scores: aggregates of the normalised returns by each reference; `Aggregates.tasks` is the number of tasks for
            which they are defined.
    """

    name: str
    tasks: int
    episodes: int
    success: Interval | None
    success_tasks: int
    scores: Mapping[Reference, Aggregates]

    @property
    def title(self) -> str:
        """Name for a table or a figure."""
        return "All tasks" if self.name == OVERALL else get_domain(self.name).title


@dataclass(frozen=True)
class Summary:
    """Results of an evaluation, of tasks with finished episodes.

    Attributes:
        tasks: in the order of `sort_tasks`.
        domains: in the order of their first tasks.
        overall: of all tasks.
        references: those by which the score of a task is defined.
        run: how the episodes were played, in words; see `describe_run`.
    """

    tasks: Sequence[TaskSummary]
    domains: Sequence[GroupSummary]
    overall: GroupSummary
    references: Sequence[Reference]
    run: str

    @property
    def groups(self) -> list[GroupSummary]:
        """The domains, and after them all tasks if there is more than one domain."""
        return [*self.domains, *([self.overall] if len(self.domains) > 1 else [])]

    def domain(self, name: str) -> GroupSummary:
        """Return a domain's results."""
        return next(group for group in self.domains if group.name == name)

    def scored(self, reference: Reference) -> list[GroupSummary]:
        """Return the domains with scores by a reference, and after them all tasks if there is more than one."""
        domains = [group for group in self.domains if reference in group.scores]
        return [*domains, *([self.overall] if len(domains) > 1 else [])]

    def words(self, reference: Reference) -> str:
        """Return the words for scores by a reference, such as "normalised by its demonstrator"."""
        return f"normalised {reference_words(reference, [row.task for row in self.tasks if reference in row.scores])}"


def summarize(evaluation: Evaluation) -> Summary:
    """Return the summary of an evaluation. Tasks without finished episodes are left out.

    Raises:
        ValueError: no task has any.
    """
    played = [task for task in evaluation.tasks.values() if task.finished]
    if not played:
        raise ValueError("evaluation: expected finished episodes, got none; play some first")
    tasks = [summarize_task(task, evaluation.settings) for task in played]
    domains = dict.fromkeys(task.task.domain for task in played)
    return Summary(
        tasks,
        [_summarize_group(name, [task for task in played if task.task.domain == name]) for name in domains],
        _summarize_group(OVERALL, played),
        [reference for reference in REFERENCES if any(reference in row.scores for row in tasks)],
        describe_run(played, evaluation.settings),
    )


def summarize_task(task: TaskEpisodes, settings: Mapping[str, Any]) -> TaskSummary:
    """Return the summary of a task, which has finished episodes; arguments as of `describe_run`."""
    mean = mean_interval(task.returns)
    assert mean is not None, "there are finished episodes"
    scores, deviations = {}, {}
    for reference in REFERENCES:
        values = task.scores(reference)
        if values is not None:
            bounds = normalize([mean.value, mean.low, mean.high], task.task, reference)
            assert bounds is not None, "it is defined for the returns"
            scores[reference], deviations[reference] = Interval(*map(float, bounds)), float(values.std())
    success = None if task.successes is None else success_rate(task.successes)
    std = float(task.returns.std())
    run = describe_run([task], settings)
    return TaskSummary(task.task, len(task.returns), task.planned, mean, std, success, scores, deviations, run)


def _summarize_group(name: str, tasks: Sequence[TaskEpisodes]) -> GroupSummary:
    scores = {}
    for reference in REFERENCES:
        found = aggregate(values for task in tasks if (values := task.scores(reference)) is not None)
        if found is not None:
            scores[reference] = found
    successes = [task.successes for task in tasks if task.successes is not None]
    success = success_rate(np.concatenate(successes)) if successes else None
    episodes = sum(len(task.finished) for task in tasks)
    return GroupSummary(name, len(tasks), episodes, success, len(successes), scores)


# ---- words -----------------------------------------------------------------------------------------------------------


def describe_run(tasks: Sequence[TaskEpisodes], settings: Mapping[str, Any]) -> str:
    """Return how episodes were played: their numbers, how actions were chosen, seeds, and limits.

    Such as "30 episodes per task, sampled actions, seeds 1000000 to 1000029".

    Args:
        tasks: with finished episodes.
        settings: of the evaluation.
    """
    played = [task.finished for task in tasks]
    numbers, seeds = [len(task) for task in played], [episode.seed for task in played for episode in task]
    low, high = min(numbers), max(numbers)
    plural = "" if high == 1 else "s"
    each = " per task" if len(tasks) > 1 else ""
    parts = [f"{low} episode{plural}{each}" if low == high else f"{low} to {high} episodes{each}"]

    deterministic = settings.get("deterministic")
    if deterministic is not None:
        parts.append("greedy (most likely) actions" if deterministic else "sampled actions")
    parts.append(f"seed {seeds[0]}" if len(set(seeds)) == 1 else f"seeds {min(seeds)} to {max(seeds)}")

    capped = sum(episode.capped for task in played for episode in task)
    if capped:
        parts.append(f"{capped} episode{'' if capped == 1 else 's'} stopped at {settings.get('max_steps')} steps")
    return ", ".join(parts)


AGGREGATE_WORDS = (
    "IQM is the interquartile mean: the mean of the middle half of all episodes' scores. Median and mean are over the "
    "tasks' mean scores. The optimality gap is how far scores are below 1 on average; those above count as 1. Every "
    "task counts the same."
)


def interval_words(summary: Summary) -> str:
    """Return a sentence that says what the intervals of a summary are."""
    words = f"95 % percentile bootstrap intervals ({RESAMPLES:,} resamples of the episodes within each task)"
    wilson = "; of success rates they are Wilson's" if summary.overall.success else ""
    few = min(task.episodes for task in summary.tasks)
    narrow = " Those of a single episode have no width." if few == 1 else " Those of few episodes are too narrow."
    return f"Brackets are {words}{wilson}." + (narrow if few < _FEW else "")


_FEW = 10
"""Number of episodes below which a percentile interval of a mean is clearly too narrow."""


def reference_definitions(summary: Summary) -> list[str]:
    """Return a sentence for each reference of a summary, which says what 0 and 1 are."""
    meanings = {
        "expert": "0 is the mean return of a random policy, 1 that of the expert",
        "demonstrator": "0 is the mean return of a random policy, 1 that of the policy whose demonstrations the agent "
        "was trained on",
        "human": "0 is the mean return of a random policy, 1 that of humans",
    }
    return [sentence(f"{summary.words(reference)}: {meanings[reference]}.") for reference in summary.references]


def sentence(text: str) -> str:
    """Return text that begins with a capital letter."""
    return text[:1].upper() + text[1:]


# ---- numbers ---------------------------------------------------------------------------------------------------------


def digits_of(*values: float) -> int:
    """Return the digits after the point with which values are shown together: 2, of larger ones 1 or 0."""
    size = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return 0 if size >= 10_000 else 1 if size >= 100 else 2


def number(value: float, digits: int) -> str:
    """Return a number as text, without -0.00."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def bracket(interval: Interval, digits: int) -> str:
    """Return the bounds of an interval, as "[low, high]"."""
    return f"[{number(interval.low, digits)}, {number(interval.high, digits)}]"


def percent(interval: Interval) -> Interval:
    """Return a share in percent."""
    return Interval(100 * interval.value, 100 * interval.low, 100 * interval.high)
