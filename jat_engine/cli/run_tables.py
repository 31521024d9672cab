"""Tables of an evaluation for people, with the words that explain them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from ..evaluation.scores import REFERENCES, reference_words, undefined_reason
from ..evaluation.statistics import Interval, detectable_difference
from ..runs.records import Episode, Evaluation
from ..runs.results import RESULTS
from ..runs.summary import Summary, TaskSummary, interval_words, reference_definitions, summarize
from .streams import encodable, say
from .tables import interval, number, print_table, score

_SHOWN = tuple(reference for reference in REFERENCES if reference != "human")
"""References of the table's scores; those of humans are in `results.json`."""


def print_evaluation(evaluation: Evaluation, names: Collection[str]) -> None:
    """Print a table with one row per task, then aggregates of each domain and of all, and what the columns are.

    Args:
        evaluation: the run's episodes.
        names: of the tasks to print.
    """
    tasks = {name: task for name, task in evaluation.tasks.items() if name in names}
    if not any(task.finished for task in tasks.values()):
        return
    summary = summarize(Evaluation(evaluation.settings, tasks))
    summary = replace(summary, references=[one for one in summary.references if one in _SHOWN])
    is_capped = {name: any(one.capped for one in task.finished) for name, task in tasks.items()}
    rows = [_row(summary, one, is_capped[one.task.name]) for one in summary.tasks]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    if not any(columns["success"]):
        del columns["success"]
    print_table(f"Evaluation: {summary.run}", columns, left=["task", "domain"], optional=["domain", "random", "expert"])
    for line in [*_explain(summary), *_aggregates(summary)]:
        say(line)


def _row(summary: Summary, one: TaskSummary, is_capped: bool) -> dict[str, str]:
    of_planned = f" of {one.planned}" if one.episodes < one.planned else ""
    row = {
        "task": one.task.name,
        "domain": one.task.domain,
        "episodes": f"{one.episodes}{of_planned}{'*' if is_capped else ''}",
        "return": interval(one.mean, number),
        encodable("±", "+/-"): number(one.std),
        "success": "" if one.success is None else interval(one.success, _percent),
        "random": score(one.task.random),
        "expert": score(one.task.expert),
    }
    for reference in summary.references:
        words = reference_words(reference, [each.task for each in summary.tasks if reference in each.scores])
        row[words] = interval(one.scores.get(reference))
    return row


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _explain(summary: Summary) -> list[str]:
    """Return lines that say what the columns are, and why values are undefined."""
    lines = [
        interval_words(summary),
        f"{encodable('±', '+/-')} is the standard deviation of the episodes' returns.",
        *reference_definitions(summary),
    ]
    for one in summary.tasks:
        reason = undefined_reason(one.task, "expert")
        if reason is not None and "expert" in summary.references:
            lines.append(f"{one.task.name}: score by the expert {reason}")
    return lines


def _aggregates(summary: Summary) -> list[str]:
    """Return a line for each domain, and one for all."""
    if not summary.references:
        return []
    lines = ["IQM is the interquartile mean, the mean of the middle half of all episodes' scores; tasks count equally."]
    for reference in summary.references:
        for group in summary.groups:
            found = group.scores.get(reference)
            value: Interval | None = None if found is None else found.iqm
            number_of_tasks = 0 if found is None else found.tasks
            lines.append(
                f"{group.name}: IQM {summary.words(reference)} {interval(value)}, from {number_of_tasks} of "
                f"{group.tasks} task{'' if group.tasks == 1 else 's'}"
            )
    return lines


def failure_line(episode: Episode) -> str:
    """Return a line about an episode that failed."""
    when = f"episode {episode.index + 1} (seed {episode.seed}), step {episode.length + 1}"
    return f"{episode.task}: failed in {when}: {episode.error}"


def failures_line(episodes: Sequence[Episode]) -> str:
    """Return a line about a task's episodes that failed, of which there is one or more."""
    first = min(episodes, key=lambda episode: episode.index)
    more = f" ({len(episodes) - 1} more of its episodes failed; see {RESULTS})" if len(episodes) > 1 else ""
    return failure_line(first) + more


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
        f"With {fewest} episodes of a task, a comparison of two agents on the same seeds finds a difference of at "
        f"least {one:.2f} standard deviations (of the paired differences) in it"
    )
    numbers: Sequence[int] = list(counts.values())
    every = detectable_difference([1.0] * len(numbers), numbers, paired=True)
    if len(numbers) > 1 and every is not None:
        text += f", and of {every:.2f} in the mean over {len(numbers)} tasks"
    return f"{text}, with a probability of 80 %."
