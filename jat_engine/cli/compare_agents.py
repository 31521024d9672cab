"""Command `jat-engine compare-agents`: compare two agents on the same seeds."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..atomic_io import write_json
from ..checkpoint.trained_tasks import read_trained_tasks
from ..checkpoint_files import check_source, local_path
from ..evaluation.scores import REFERENCES, Reference, reference_words
from ..evaluation.seeds import choose_seed
from ..runs.compare import BETTER, NO_DIFFERENCE, WORSE, Comparison, compare
from ..runs.database import FILE_NAME, read_run
from ..runs.records import Evaluation
from . import evaluate
from .arguments import note, parse
from .streams import say
from .tables import interval, number, print_table

_OPTIONS = ("dtype", "backend")
"""Options of a checkpoint, as in `jat-mini:dtype=int8,backend=torch`."""

_PASSED_ON = ("seed", "max_steps", "num_workers", "num_envs", "task_module", "adapter", "cache_dir")


@dataclass(kw_only=True)
class CompareAgentsArguments:
    """Arguments of `jat-engine compare-agents`."""

    tasks: list[str] = field(default_factory=list, metadata={"help": "tasks to play; see `jat-engine eval`"})
    num_episodes: int = field(default=30, metadata={"help": "episodes per task"})
    seed: int | None = field(default=None, metadata={"help": "seed of the first episode; see `jat-engine eval`"})
    deterministic: bool = field(default=False, metadata={"help": "choose the most likely discrete action"})
    max_steps: int | None = field(default=None, metadata={"help": "stop each episode after this number of steps"})
    task_module: str | None = field(default=None, metadata={"help": "module to import, which registers tasks"})
    adapter: str | None = field(default=None, metadata={"help": "kind of observation; see `jat-engine eval`"})
    num_workers: str = field(default=evaluate.AUTO, metadata={"help": "processes for environments"})
    num_envs: str = field(default=evaluate.AUTO, metadata={"help": "environments of each process"})
    use_cpu: bool = field(default=False, metadata={"help": "run on the CPU even if there is a GPU"})
    cache_dir: str | None = field(default=None, metadata={"help": "folder for downloads"})
    output_dir: str = field(
        default="results/compared", metadata={"help": "folder for the runs of checkpoints, each in one of its own"}
    )
    reference: str = field(
        default=evaluate.AUTO,
        metadata={
            "help": "by which returns are normalised. auto: that by which most tasks have a score",
            "choices": [evaluate.AUTO, *REFERENCES],
        },
    )
    overwrite: bool = field(
        default=False, metadata={"help": "set runs of other agents or settings in that folder aside"}
    )
    control: bool = field(
        default=False, metadata={"help": "play A a second time, and fail unless all its episodes are equal"}
    )
    max_regression: float | None = field(
        default=None,
        metadata={
            "help": "exit with code 1 if B has lost more than so many points (hundredths of a mean score or success "
            "rate), and that is no chance: the loss's 95 percent interval is above 0"
        },
    )
    output_json: str | None = field(default=None, metadata={"help": "file for the comparison as JSON"})

    def check(self) -> None:
        """Check the values.

        Raises:
            ValueError: a value is out of range.
        """
        if self.max_regression is not None and not self.max_regression >= 0:
            raise ValueError(f"--max_regression: expected at least 0 points, got {self.max_regression}")


@dataclass(frozen=True)
class Agent:
    """An agent of a comparison.

    Attributes:
        text: as it was given.
        run: folder of a run that is there; None for a checkpoint.
        source: the checkpoint.
        options: dtype and backend of a checkpoint.
    """

    text: str
    run: Path | None
    source: str = ""
    options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, field: str, text: str) -> Agent:
        """Return the agent that an argument names: a run's folder, or a checkpoint with options.

        Raises:
            ValueError: it names neither.
        """
        folder = local_path(text)
        if (folder / FILE_NAME).exists():
            return cls(text, folder)
        source, colon, rest = text.rpartition(":")
        pairs = [one.partition("=") for one in rest.split(",")]
        if colon and all(name in _OPTIONS and value for name, _, value in pairs):
            options = tuple((name, value) for name, _, value in pairs)
        elif colon and any(equals for _, equals, _ in pairs):
            raise ValueError(
                f"{field}: expected options {' and '.join(_OPTIONS)}, such as jat-mini:dtype=int8, got {text}"
            )
        else:
            source, options = text, ()
        try:
            check_source(source)
        except ValueError as error:
            raise ValueError(f"{field}: expected the folder of a run, or a checkpoint; {error}") from None
        return cls(text, None, source, options)

    def evaluate(self, folder: Path, arguments: CompareAgentsArguments) -> int:
        """Play the episodes of a checkpoint into a folder, as `jat-engine eval` does, and return its exit code."""
        argv = ["--model_name_or_path", self.source, "--output_dir", str(folder)]
        argv += ["--num_episodes", str(arguments.num_episodes)]
        argv += ["--tasks", *arguments.tasks] if arguments.tasks else []
        for name, value in self.options:
            argv += [f"--{name}", value]
        for name in _PASSED_ON:
            value = getattr(arguments, name)
            argv += [] if value is None else [f"--{name}", str(value)]
        argv += [f"--{name}" for name in ("deterministic", "use_cpu", "overwrite") if getattr(arguments, name)]
        note(f"jat-engine eval {shlex.join(argv)}")
        return evaluate.run(argv)


def run(argv: Sequence[str]) -> int:
    """Run `jat-engine compare-agents`.

    Returns:
        The exit code: 1 if an episode failed, the control differs, or B has lost too much.
    """
    texts, rest = _split(argv)
    (arguments,) = parse("compare-agents A B", "Compare two agents on the same seeds.", [CompareAgentsArguments], rest)
    arguments.check()
    if len(texts) != 2:
        raise ValueError(f"compare-agents: expected two agents, A and B, got {len(texts)}")
    first, second = (Agent.parse(name, text) for name, text in zip("AB", texts, strict=True))

    if arguments.seed is None:
        arguments.seed = shared_seed((first, second), arguments)

    code, runs = 0, []
    for name, agent in (("a", first), ("b", second)):
        folder = agent.run or Path(arguments.output_dir) / name
        if agent.run is None:
            code = max(code, agent.evaluate(folder, arguments))
        runs.append(read_run(folder))
    reference: Reference | None = None if arguments.reference == evaluate.AUTO else arguments.reference
    found = compare(runs[0], runs[1], reference)
    print_comparison(found, texts)
    if arguments.output_json is not None:
        write_json(Path(arguments.output_json), to_json(found), indent=2)
    if arguments.control:
        code = max(code, play_control(first, runs[0], arguments))
    if arguments.max_regression is not None:
        code = max(code, judge(found, arguments.max_regression))
    return code


def shared_seed(agents: Sequence[Agent], arguments: CompareAgentsArguments) -> int:
    """Return the seed of the first episode for both agents: that of a run, or one that suits both checkpoints.

    Args:
        agents: to be compared.
        arguments: of the command.
    """
    trained = []
    for agent in agents:
        if agent.run is not None:
            return int(read_run(agent.run).settings["seed"])
        trained += read_trained_tasks(agent.source, {"cache_dir": arguments.cache_dir})
    return choose_seed(trained, arguments.num_episodes)


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments before the first flag, and the others."""
    flags = next((number for number, text in enumerate(argv) if text.startswith("-")), len(argv))
    return list(argv[:flags]), list(argv[flags:])


def play_control(agent: Agent, evaluation: Evaluation, arguments: CompareAgentsArguments) -> int:
    """Play the first agent once more, and compare it with itself. Returns 1 if an episode differs, else 0.

    Raises:
        ValueError: the agent is a run, whose checkpoint this command does not load.
    """
    if agent.run is not None:
        raise ValueError("--control: expected a checkpoint for A, got a run; `jat-engine verify` plays it again")
    folder = Path(arguments.output_dir) / "control"
    code = agent.evaluate(folder, replace(arguments, overwrite=True))  # an earlier control would not be played again
    found = compare(evaluation, read_run(folder))
    say(f"Control, {agent.text} against itself: {words(found.verdict, 'the first', 'the second time')}")
    return max(code, int(found.verdict not in ("equal", NO_DIFFERENCE)))


def judge(found: Comparison, most: float) -> int:
    """Say if the second agent has lost more points than it may. Returns 1 if it has, else 0."""
    regressions = found.regressions(most)
    for name, loss in regressions.items():
        note(
            f"jat-engine: error: --max_regression: expected B to lose at most {most:g} points of its {name}, got "
            f"{interval(loss, _points)}"
        )
    return int(bool(regressions))


# ---- what is printed -------------------------------------------------------------------------------------------------


def print_comparison(found: Comparison, names: Sequence[str]) -> None:
    """Print a table with one row per task, and the differences over all tasks.

    Args:
        found: the comparison.
        names: of the agents.
    """
    for letter, name in zip("AB", names, strict=True):
        say(f"{letter}: {name}")
    for key, values in found.settings.items():
        say(f"{key}: A {values[0]}, B {values[1]}")
    has_success = any(task.success is not None for task in found.tasks)
    rows = []
    for task in found.tasks:
        row = {
            "task": task.pairs.task.name,
            "episodes": str(len(task.pairs.first)),
            "equal": str(task.equal),
            "return A": number(task.means[0]),
            "return B": number(task.means[1]),
            "B - A": interval(task.difference, number),
            "success B - A": "" if task.success is None else interval(task.success, _percent),
            "B better, worse": f"{task.sign.positive}, {task.sign.negative}",
            "p": f"{task.p_value:.3f}",
            "verdict": words(task.verdict),
        }
        if not has_success:
            del row["success B - A"]
        rows.append(row)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    print_table("Paired episodes", columns, left=["task", "verdict"], optional=["equal", "return A", "return B"])
    say(
        "equal: episodes with the same observations, actions and rewards. Brackets: 95 % paired bootstrap intervals. "
        "p: two-sided sign test of the episodes in which B is better or worse, by Holm's method for all tasks."
    )
    for line in [*found.left_out, *overall_lines(found)]:
        say(line)


def overall_lines(found: Comparison) -> list[str]:
    """Return lines about all tasks together."""
    overall = found.overall
    lines = []
    if overall.scores is not None and overall.reference is not None:
        by = reference_words(overall.reference, [task.pairs.task for task in found.tasks])
        lines += [
            f"Scores normalised {by}; {overall.tasks} of {len(found.tasks)} task(s), {overall.episodes} pair(s):",
            f"  mean, B - A: {interval(overall.scores.mean)}",
            f"  IQM (mean of the middle half of the episodes' scores), B - A: {interval(overall.scores.iqm)}",
            f"  probability that an episode of B has the higher score: {interval(overall.improvement)}",
        ]
        if overall.detectable:
            lines.append(f"  a difference of the mean of {overall.detectable:.2g} is found with a probability of 80 %")
    if overall.success is not None:
        lines.append(f"Success rate, {overall.success_tasks} task(s), B - A: {interval(overall.success, _percent)}")
    lines.append(
        f"Sign test of all episodes: B better in {overall.sign.positive}, worse in {overall.sign.negative}, equal "
        f"return in {overall.sign.ties}; p {overall.sign.p_value:.3f}"
    )
    lines.append(f"Verdict: {words(found.verdict)}")
    return lines


def words(verdict: str, first: str = "A", second: str = "B") -> str:
    """Return a verdict in words."""
    return {
        "equal": "no difference (all episodes are equal)",
        NO_DIFFERENCE: "no difference found",
        BETTER: f"{second} is better than {first}",
        WORSE: f"{second} is worse than {first}",
    }[verdict]


def to_json(found: Comparison) -> dict[str, Any]:
    """Return a comparison as JSON values."""
    overall = asdict(found.overall)
    tasks = {
        task.pairs.task.name: {
            "episodes": len(task.pairs.first),
            "left_out": task.pairs.left_out,
            "verdict": task.verdict,
            **{
                name: value
                for name, value in asdict(task).items()
                if name in ("equal", "means", "difference", "success", "sign", "p_value", "detectable")
            },
        }
        for task in found.tasks
    }
    return {"settings": dict(found.settings), "tasks": tasks, "overall": overall, "verdict": found.verdict}


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _points(value: float) -> str:
    return f"{value:.1f}"
