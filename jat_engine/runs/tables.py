"""Tables of an evaluation for papers and spreadsheets: each task, and each domain and all tasks, as CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from ..atomic_io import write_text
from ..evaluation.statistics import Aggregates, Interval
from .summary import (
    AGGREGATE_WORDS,
    GroupSummary,
    Summary,
    TaskSummary,
    bracket,
    digits_of,
    interval_words,
    number,
    percent,
    reference_definitions,
    sentence,
)

AGGREGATES = {"iqm": "IQM", "median": "Median", "mean": "Mean", "optimality_gap": "Optimality gap"}
"""Attributes of `Aggregates` with their names in tables and figures."""

_DIGITS = 9
"""Significant digits in CSV: a processor may add numbers in another order, which changes later ones."""

_LONG = 45
"""Most rows of a table that fits a page."""


def write_tables(summary: Summary, folder: Path, agent: str = "the agent") -> list[Path]:
    """Write `tasks` and `groups` as .csv and as .tex, atomically.

    Args:
        summary: of the evaluation.
        folder: of the files; created if needed.
        agent: its name in captions.

    Returns:
        The paths of the files.

    Raises:
        OSError: the files cannot be written.
    """
    texts = {
        "tasks.csv": tasks_csv(summary),
        "tasks.tex": tasks_latex(summary, agent),
        "groups.csv": groups_csv(summary),
        "groups.tex": groups_latex(summary, agent),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


# ---- CSV -------------------------------------------------------------------------------------------------------------


def tasks_csv(summary: Summary) -> str:
    """Return a row per task: means, standard deviations of the episodes, and bounds of 95 % intervals.

    Columns of scores begin with the reference, such as `expert_normalized_mean`. What is undefined is empty.
    """
    rows = []
    for task in summary.tasks:
        row: dict[str, Any] = {
            "task": task.task.name,
            "domain": task.task.domain,
            "episodes": task.episodes,
            "planned": task.planned,
            **_cells("return", "mean", task.mean),
            "return_std": task.std,
            **_cells("success", "rate", task.success),
        }
        for reference in summary.references:
            row |= _cells(f"{reference}_normalized", "mean", task.scores.get(reference))
            row[f"{reference}_normalized_std"] = task.score_stds.get(reference)
        rows.append(row)
    return _csv(rows)


def groups_csv(summary: Summary) -> str:
    """Return a row per domain and reference, and for all tasks: aggregates with bounds of 95 % intervals.

    The column `defined` is the number of tasks whose return normalised by this reference is defined.
    """
    rows = []
    for group in summary.groups:
        for reference, found in group.scores.items():
            row: dict[str, Any] = {
                "group": group.name,
                "tasks": group.tasks,
                "episodes": group.episodes,
                **_cells("success", "rate", group.success),
                "success_tasks": group.success_tasks,
                "normalized_by": reference,
                "defined": found.tasks,
            }
            for name in AGGREGATES:
                row |= _cells(name, "value", getattr(found, name))
            rows.append(row)
    return _csv(rows)


def _cells(prefix: str, name: str, interval: Interval | None) -> dict[str, float | None]:
    return {
        f"{prefix}_{name}": None if interval is None else interval.value,
        f"{prefix}_low": None if interval is None else interval.low,
        f"{prefix}_high": None if interval is None else interval.high,
    }


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: f"{cell:.{_DIGITS}g}" if isinstance(cell, float) else cell for key, cell in row.items()})
    return text.getvalue()


# ---- LaTeX -----------------------------------------------------------------------------------------------------------


def tasks_latex(summary: Summary, agent: str = "the agent") -> str:
    """Return a table with a row per task, in the style of booktabs; of many tasks a longtable.

    Args:
        summary: of the evaluation.
        agent: its name in the caption.
    """
    with_success = summary.overall.success is not None
    groups = [("Return", r"mean $\pm$ std."), *([(r"Success (\%)", "rate")] if with_success else [])]
    groups += [(_two_lines(summary.words(reference)), "mean") for reference in summary.references]

    body = []
    for domain, members in groupby(summary.tasks, key=lambda task: task.task.domain):
        title = escape(summary.domain(domain).title)
        body.append(rf"\multicolumn{{{2 + 2 * len(groups)}}}{{l}}{{\textit{{{title}}}}} \\")
        body += [_task_row(task, summary, with_success) for task in members]
        body.append(r"\midrule")

    head = [
        " & ".join(["", "", *(rf"\multicolumn{{2}}{{c}}{{{title}}}" for title, _ in groups)]) + r" \\",
        " ".join(rf"\cmidrule(lr){{{column}-{column + 1}}}" for column in range(3, 3 + 2 * len(groups), 2)),
        " & ".join(["Task", "Episodes", *(f"{name} & interval" for _, name in groups)]) + r" \\",
    ]
    caption = " ".join(
        [
            f"Returns of {agent} in each task ({summary.run}).",
            "± is the standard deviation of the episodes' returns.",
            interval_words(summary),
            *reference_definitions(summary),
            *_incomplete(summary),
        ]
    )
    return _latex("lr" + "rr" * len(groups), head, body[:-1], caption, "tab:tasks")


def _task_row(task: TaskSummary, summary: Summary, with_success: bool) -> str:
    digits = digits_of(task.mean.value, task.std)
    cells = [
        escape(task.task.name),
        str(task.episodes),
        rf"${number(task.mean.value, digits)} \pm {number(task.std, digits)}$",
        _bracket(task.mean, digits),
    ]
    if with_success:
        cells += _pair(None if task.success is None else percent(task.success), 1)
    for reference in summary.references:
        cells += _pair(task.scores.get(reference), 2)
    return " & ".join(cells) + r" \\"


def groups_latex(summary: Summary, agent: str = "the agent") -> str:
    """Return a table of the aggregates of each domain and of all tasks, in the style of booktabs.

    Args:
        summary: of the evaluation.
        agent: its name in the caption.
    """
    width = 2 + 2 * len(AGGREGATES)
    body: list[str] = []
    for reference in summary.references:
        words = escape(sentence(summary.words(reference)))
        body.append(rf"\multicolumn{{{width}}}{{l}}{{\textit{{{words}}}}} \\")
        body += [_group_row(group, group.scores[reference]) for group in summary.scored(reference)]
        body.append(r"\midrule")
    successes = [group for group in summary.groups if group.success is not None]
    if successes:
        body.append(rf"\multicolumn{{{width}}}{{l}}{{\textit{{Success rate (\%)}}}} \\")
        for group in successes:
            assert group.success is not None, "chosen by it"
            cells = [escape(group.title), str(group.success_tasks), *_pair(percent(group.success), 1)]
            body.append(" & ".join(cells + [""] * (width - len(cells))) + r" \\")
        body.append(r"\midrule")

    head = [
        " & ".join(["", "", *(rf"\multicolumn{{2}}{{c}}{{{title}}}" for title in AGGREGATES.values())]) + r" \\",
        " ".join(rf"\cmidrule(lr){{{column}-{column + 1}}}" for column in range(3, 3 + 2 * len(AGGREGATES), 2)),
        " & ".join(["Domain", "Tasks", *["value & interval"] * len(AGGREGATES)]) + r" \\",
    ]
    caption = " ".join(
        [
            f"Aggregated scores of {agent} ({summary.run}).",
            AGGREGATE_WORDS,
            interval_words(summary),
            *reference_definitions(summary),
            *_incomplete(summary),
        ]
    )
    return _latex("lr" + "rr" * len(AGGREGATES), head, body[:-1], caption, "tab:groups")


def _group_row(group: GroupSummary, found: Aggregates) -> str:
    cells = [escape(group.title), str(found.tasks)]
    for name in AGGREGATES:
        cells += _pair(getattr(found, name), 2)
    return " & ".join(cells) + r" \\"


def _pair(interval: Interval | None, digits: int) -> list[str]:
    """Return the cells of an estimate and of its interval; dashes for None."""
    if interval is None:
        return ["--", "--"]
    return [f"${number(interval.value, digits)}$", _bracket(interval, digits)]


def _bracket(interval: Interval, digits: int) -> str:
    return f"${bracket(interval, digits)}$"


def _incomplete(summary: Summary) -> list[str]:
    missing = sum(max(0, task.planned - task.episodes) for task in summary.tasks)
    return [f"{missing} planned episodes were not finished."] if missing else []


def _two_lines(words: str) -> str:
    first, _, rest = escape(sentence(words)).partition(" ")
    return rf"\shortstack{{{first}\\{rest}}}"


def _latex(columns: str, head: list[str], body: list[str], caption: str, label: str) -> str:
    is_long = len(body) > _LONG
    lines = _environment(columns, head, body, caption, label, is_long)
    return "\n".join([rf"% \usepackage{{booktabs{',longtable' if is_long else ''}}}", *lines]) + "\n"


def _environment(
    columns: str, head: list[str], body: list[str], caption: str, label: str, is_long: bool
) -> Iterator[str]:
    named = rf"\caption{{{escape(caption)}}}\label{{{label}}}"
    if is_long:
        yield from (r"{\footnotesize\setlength{\tabcolsep}{3pt}", rf"\begin{{longtable}}{{{columns}}}", named + r" \\")
        yield from (r"\toprule", *head, r"\midrule", r"\endfirsthead")
        yield from (r"\toprule", *head, r"\midrule", r"\endhead", r"\bottomrule", r"\endfoot", *body)
        yield from (r"\end{longtable}", "}")
        return
    yield from (r"\begin{table}", r"\centering", named, r"\footnotesize\setlength{\tabcolsep}{3pt}")
    yield from (rf"\begin{{tabular}}{{{columns}}}", r"\toprule", *head, r"\midrule", *body, r"\bottomrule")
    yield from (r"\end{tabular}", r"\end{table}")


_ESCAPES = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "±": r"$\pm$",
    "\n": " ",
}


def escape(text: str) -> str:
    """Return text with what is special in LaTeX escaped."""
    return "".join(_ESCAPES.get(character, character) for character in text)
