"""Command `jat-engine report`: write the files of a run, and its tables and figures."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..atomic_io import check_writable
from ..runs.database import RunDatabase
from ..runs.figures import check_figures, write_figures
from ..runs.records import Evaluation
from ..runs.results import EVALUATIONS, REPORT, RESULTS, write_results
from ..runs.summary import summarize
from ..runs.tables import write_tables
from .arguments import note, parse
from .run_tables import failures_line, print_evaluation
from .streams import say


@dataclass
class ReportArguments:
    """Arguments of `jat-engine report`."""

    output_dir: str | None = field(
        default=None, metadata={"help": "folder for the files; by default the run's, which need not be writable else"}
    )
    tables: bool = field(
        default=False,
        metadata={"help": f"write tables as CSV and LaTeX into {REPORT}/, and no figures. By default all that can be"},
    )
    figures: bool = field(
        default=False, metadata={"help": f"write figures as PNG and PDF into {REPORT}/, and no tables unless asked for"}
    )
    agent: str | None = field(
        default=None, metadata={"help": "name of the agent in tables and figures; by default its checkpoint's"}
    )


def run(argv: Sequence[str]) -> int:
    """Run `jat-engine report`. The run may be played meanwhile: what is finished by now is reported.

    Returns:
        The exit code.
    """
    arguments, given = parse(
        "report",
        "Write the result files of a run, tables and figures, from the episodes in its database.",
        [ReportArguments],
        argv,
        positional={"run": "folder of the run, --output_dir of jat-engine eval"},
    )
    folder = Path(given.run)
    with contextlib.closing(RunDatabase(folder)) as database:
        evaluation = database.read()
        agent = arguments.agent or str(database.arguments.get("model_name_or_path") or "the agent")
    target = Path(arguments.output_dir) if arguments.output_dir else folder
    check_writable("--output_dir", target)
    if arguments.figures:
        check_figures("--figures")

    target.mkdir(parents=True, exist_ok=True)
    write_results(target, evaluation)
    note(f"wrote {target / EVALUATIONS}, {target / RESULTS}")
    print_report(evaluation)
    if any(task.finished for task in evaluation.tasks.values()):
        is_all = not (arguments.tables or arguments.figures)
        write_report(evaluation, target / REPORT, agent, arguments.tables or is_all, arguments.figures or is_all)
    return 0


def print_report(evaluation: Evaluation) -> None:
    """Print the tables of `jat-engine eval`, which episodes failed, and how many are missing."""
    tasks = evaluation.tasks.values()
    print_evaluation(evaluation, list(evaluation.tasks))
    for task in tasks:
        if failed := [episode for episode in task.episodes if episode.failed]:
            say(failures_line(failed))
    finished, planned = sum(len(task.finished) for task in tasks), sum(task.planned for task in tasks)
    if not evaluation.complete:
        say(f"{finished} of {planned} planned episodes are finished; jat-engine eval --resume plays the others")


def write_report(evaluation: Evaluation, folder: Path, agent: str, tables: bool, figures: bool) -> None:
    """Write tables and figures of an evaluation with finished episodes.

    Figures are left out, with a note, if they cannot be drawn here.

    Args:
        evaluation: of the run.
        folder: for the files.
        agent: its name.
        tables: write tables.
        figures: write figures.

    Raises:
        OSError: a file cannot be written.
    """
    summary, written = summarize(evaluation), list[Path]()
    if tables:
        written += write_tables(summary, folder, agent)
    if figures:
        try:
            written += write_figures(evaluation, summary, folder, agent)
        except ImportError as error:
            note(f"no figures: {error}")
    if written:
        note(f"wrote {folder}: {', '.join(path.name for path in written)}")
