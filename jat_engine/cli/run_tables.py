"""Tables of an evaluation for people, with the words that explain them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from ..evaluation.scores import Reference, undefined_reason
from ..evaluation.statistics import aggregate, mean_interval, success_rate
from ..runs.records import Evaluation, TaskEpisodes
from .streams import encodable, say
from .tables import interval, number, print_table

REFERENCES: dict[Reference, str] = {"expert": "by published expert"}


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
    rows = [_row(task, references) for task in tasks]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    if not any(columns["success"]):
        del columns["success"]
    print_table(title(evaluation), columns, left=["task", "domain"], optional=["domain", "random", "expert"])
    for line in explain(tasks, references):
        say(line)
    for line in aggregates(tasks, references):
        say(line)


def title(evaluation: Evaluation) -> str:
    """Return the line above a table: how actions were chosen, and the first seed."""
    settings = evaluation.settings
    how = "greedy (most likely) actions" if settings.get("deterministic") else "sampled actions"
    return f"Evaluation, {how}, seeds from {settings.get('seed')}"


def _row(task: TaskEpisodes, references: Sequence[Reference]) -> dict[str, str]:
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
    for reference in references:
        scores = task.scores(reference)
        row[REFERENCES[reference]] = "-" if scores is None or not played else interval(mean_interval(scores))
    return row


def percent(value: float | None) -> str:
    """Return a share as a whole number of percent."""
    return "-" if value is None or not np.isfinite(value) else f"{100 * value:.0f} %"


def explain(tasks: Sequence[TaskEpisodes], references: Sequence[Reference]) -> list[str]:
    """Return lines that say what the columns are, and why values are undefined."""
    lines = [
        f"Brackets: 95 % intervals. {encodable('±', '+/-')}: standard deviation of the episodes' returns. "
        "success: share of episodes, Wilson's interval."
    ]
    if references:
        lines.append("by published expert: (return - random) / (expert - random), with the published returns.")
    if any(episode.capped for task in tasks for episode in task.finished):
        lines.append("* stopped by --max_steps")
    for task in tasks:
        reason = undefined_reason(task.task)
        if reason is not None and references:
            lines.append(f"{task.task.name}: score by the published expert {reason}")
    return lines


def aggregates(tasks: Sequence[TaskEpisodes], references: Sequence[Reference]) -> list[str]:
    """Return a line for each domain, and one for all."""
    if not references:
        return []
    groups: dict[str, list[TaskEpisodes]] = {}
    for task in tasks:
        groups.setdefault(task.task.domain, []).append(task)
    if len(groups) > 1:
        groups["overall"] = list(tasks)
    lines = ["IQM: mean of the middle half of all episodes' scores, each task counting the same."]
    for reference in references:
        for name, members in groups.items():
            scores = [one for task in members if (one := task.scores(reference)) is not None and one.size]
            found = aggregate(scores)
            value = "-" if found is None else interval(found.iqm)
            lines.append(f"{name}: IQM {REFERENCES[reference]} {value}, from {len(scores)} of {len(members)} task(s)")
    return lines
