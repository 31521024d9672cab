"""Tables of an evaluation for people, with the words that explain them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from ..evaluation.scores import Reference, reference_words, undefined_reason
from ..evaluation.statistics import aggregate, detectable_difference, mean_interval, success_rate
from ..runs.records import Evaluation, TaskEpisodes
from .streams import encodable, say
from .tables import interval, number, print_table

REFERENCES: tuple[Reference, ...] = ("expert", "demonstrator")
"""References of the table's scores; those of humans are in `results.json`."""


def print_evaluation(evaluation: Evaluation, names: Collection[str]) -> None:
    """Print a table with one row per task, then aggregates of each domain and of all, and what the columns are.

    Args:
        evaluation: the run's episodes.
        names: of the tasks to print.
    """
    tasks = [task for name, task in evaluation.tasks.items() if name in names and task.episodes]
    if not tasks:
        return
    references = [one for one in REFERENCES if any(task.scores(one) is not None for task in tasks)]
    words = {reference: reference_words(reference, [task.task for task in tasks]) for reference in references}
    rows = [_row(task, words) for task in tasks]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    if not any(columns["success"]):
        del columns["success"]
    print_table(title(evaluation), columns, left=["task", "domain"], optional=["domain", "random", "expert"])
    for line in explain(tasks, words):
        say(line)
    for line in aggregates(tasks, words):
        say(line)


def title(evaluation: Evaluation) -> str:
    """Return the line above a table: how actions were chosen, and the first seed."""
    settings = evaluation.settings
    how = "greedy (most likely) actions" if settings.get("deterministic") else "sampled actions"
    return f"Evaluation, {how}, seeds from {settings.get('seed')}"


def _row(task: TaskEpisodes, words: Mapping[Reference, str]) -> dict[str, str]:
    returns, successes = task.returns, task.successes
    played = len(returns)
    row = {
        "task": task.task.name,
        "domain": task.task.domain,
        "episodes": str(played)
        + (f" of {task.planned}" if played < task.planned else "")
        + ("*" if any(episode.capped for episode in task.finished) else ""),
        "return": interval(mean_interval(returns), number),
        encodable("±", "+/-"): number(float(returns.std())) if played else "-",
        "success": "" if successes is None else interval(success_rate(successes), percent),
        "random": "-" if task.task.random is None else number(task.task.random.mean),
        "expert": "-" if task.task.expert is None else number(task.task.expert.mean),
    }
    for reference, name in words.items():
        scores = task.scores(reference)
        row[name] = "-" if scores is None or not played else interval(mean_interval(scores))
    return row


def percent(value: float | None) -> str:
    """Return a share as a whole number of percent."""
    return "-" if value is None or not np.isfinite(value) else f"{100 * value:.0f} %"


def explain(tasks: Sequence[TaskEpisodes], words: Mapping[Reference, str]) -> list[str]:
    """Return lines that say what the columns are, and why values are undefined."""
    lines = [
        f"Brackets: 95 % intervals. {encodable('±', '+/-')}: standard deviation of the episodes' returns. "
        "success: share of episodes, Wilson's interval."
    ]
    for reference, name in words.items():
        whose = "published returns" if reference == "expert" else "the mean return of its demonstrations"
        lines.append(f"{name}: (return - random) / ({reference} - random), {whose}.")
    if any(episode.capped for task in tasks for episode in task.finished):
        lines.append("* stopped by --max_steps")
    for task in tasks:
        reason = undefined_reason(task.task, "expert")
        if reason is not None and "expert" in words:
            lines.append(f"{task.task.name}: score by the expert {reason}")
    return lines


def power_line(counts: Mapping[str, int]) -> str:
    """Return a line about the differences that a comparison of two agents with so many episodes can find.

    Args:
        counts: name of the task -> episodes.
    """
    fewest = min(counts.values())
    one = detectable_difference([1.0], fewest, paired=True)
    if one is None:
        return "With one episode of a task, no difference between two agents can be shown in it."
    text = (
        f"With {fewest} episodes of a task, a comparison of two agents on the same seeds finds a difference of at least "
        f"{one:.2f} standard deviations (of the paired differences) in it"
    )
    every = detectable_difference([1.0] * len(counts), list(counts.values()), paired=True)
    if len(counts) > 1 and every is not None:
        text += f", and of {every:.2f} in the mean over {len(counts)} tasks"
    return f"{text}, with a probability of 80 %."


def aggregates(tasks: Sequence[TaskEpisodes], words: Mapping[Reference, str]) -> list[str]:
    """Return a line for each domain, and one for all."""
    if not words:
        return []
    groups: dict[str, list[TaskEpisodes]] = {}
    for task in tasks:
        groups.setdefault(task.task.domain, []).append(task)
    if len(groups) > 1:
        groups["overall"] = list(tasks)
    lines = ["IQM: mean of the middle half of all episodes' scores, each task counting the same."]
    for reference, words_of_it in words.items():
        for name, members in groups.items():
            scores = [one for task in members if (one := task.scores(reference)) is not None and one.size]
            found = aggregate(scores)
            value = "-" if found is None else interval(found.iqm)
            lines.append(f"{name}: IQM {words_of_it} {value}, from {len(scores)} of {len(members)} task(s)")
    return lines
