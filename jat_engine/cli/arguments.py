"""Parsing of command lines into dataclasses, and the arguments that several commands share."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from transformers import HfArgumentParser

from ..checkpoint_files import local_path
from ..keywords import did_you_mean

if TYPE_CHECKING:
    from ..envs import Task
    from ..envs.task import Observation

LARGEST_SEED = 2**64 - 1
"""Largest seed that torch and all simulators take."""


@dataclass
class ModelArguments:
    """Arguments for loading a model: checkpoint, device, backend, dtype."""

    model_name_or_path: str = field(metadata={"help": "folder of a checkpoint, its name on the hub, or jat-mini"})
    cache_dir: str | None = field(default=None, metadata={"help": "folder for downloads"})
    trust_remote_code: bool = field(default=False, metadata={"help": "ignored: code in a checkpoint is never run"})
    use_cpu: bool = field(default=False, metadata={"help": "run on the CPU even if there is a GPU"})
    backend: str = field(
        default="auto",
        metadata={
            "help": "cpu or cuda: native engine; torch: engine in plain torch; reference: JatModel",
            "choices": ["auto", "cpu", "cuda", "torch", "reference"],
        },
    )
    dtype: str = field(
        default="auto",
        metadata={
            "help": "type of weights and cache; `jat-engine info` shows what auto selects",
            "choices": ["auto", "float32", "bfloat16", "float16", "int8"],
        },
    )


@dataclass
class TaskArguments:
    """Arguments for tasks that are not published."""

    task_module: str | None = field(
        default=None, metadata={"help": "module to import, which registers tasks or environments of Gymnasium"}
    )
    adapter: str | None = field(
        default=None,
        metadata={
            "help": "kind of observation for the tasks that are not published, instead of the one that is chosen",
            "choices": ["continuous", "discrete", "discrete+text", "image"],
        },
    )

    def load(self) -> None:
        """Import the module; one of the current folder is found as well.

        Raises:
            TaskError: it cannot be imported.
        """
        from ..envs import load_task_module

        if self.task_module is not None:
            if str(Path.cwd()) not in sys.path:  # a console script does not have it
                sys.path.append(str(Path.cwd()))
            load_task_module(self.task_module)

    def find(self, names: Sequence[str]) -> list[Task]:
        """Return the tasks of some names, and say how the observations of those that are not published are converted.

        Args:
            names: of tasks and domains, and "all".

        Raises:
            UnknownTaskError: there is no such task.
            TaskError: an environment cannot be made, or an agent has no such observations or actions.
        """
        from ..envs import find_tasks

        self.load()
        kind: Observation | None = self.adapter  # type: ignore[assignment]  # one of the choices
        tasks = find_tasks(names, kind)
        for task in tasks:
            if task.adapter is not None:
                note(f"{task.name}: {task.adapter}")
        return tasks

    def find_one(self, name: str) -> Task:
        """Return the task of this name. See `find`.

        Raises:
            ValueError: the name is that of several tasks.
        """
        tasks = self.find([name])
        if len(tasks) != 1 or tasks[0].name != name:
            raise ValueError(f"--task: expected the name of one task, got {name!r}")
        return tasks[0]


@dataclass
class EpisodeArguments:
    """Arguments for playing episodes."""

    num_episodes: int = field(default=1, metadata={"help": "episodes per task"})
    seed: int = field(
        default=0, metadata={"help": "seed of environment and sampling; episode i of a task uses seed + i"}
    )
    deterministic: bool = field(
        default=False, metadata={"help": "choose the most likely discrete action instead of sampling"}
    )
    max_steps: int | None = field(default=None, metadata={"help": "stop each episode after this number of steps"})

    def check(self) -> None:
        """Check the values.

        Raises:
            ValueError: a value is out of range; the message names the flag.
        """
        if self.num_episodes < 1:
            raise ValueError(f"--num_episodes: expected at least 1, got {self.num_episodes}")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"--max_steps: expected at least 1, got {self.max_steps}")
        last = self.seed + self.num_episodes - 1
        if self.seed < 0 or last > LARGEST_SEED:
            raise ValueError(
                f"--seed: expected 0 to 2**64 - 1 for all episodes (the last has --seed + --num_episodes - 1), got "
                f"{self.seed}" + (f" to {last}" if self.num_episodes > 1 else "")
            )

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of `run_episodes`."""
        return {"seed": self.seed, "deterministic": self.deterministic, "max_steps": self.max_steps}


def parse(
    command: str,
    description: str,
    types: Sequence[Any],
    argv: Sequence[str],
    positional: Mapping[str, str] | None = None,
) -> tuple[Any, ...]:
    """Parse a command line into one instance of each dataclass. Flags may be written with `_` or `-`.

    A value that begins with `~/` is a path in the home folder; shells leave it as it is in `--flag=~/path` and quotes.
    A single argument that ends in `.json` names a file with the arguments, as in the published scripts.

    Args:
        command: name of the subcommand.
        description: first line of `--help`.
        types: dataclasses whose fields are the flags.
        argv: the arguments.
        positional: name -> help of arguments without a flag.

    Returns:
        The instances, in the order of `types`. With `positional`, a namespace with those values comes last.

    Raises:
        ValueError: the JSON file does not hold an object.
        SystemExit: after `--help`, and for wrong arguments.
    """
    parser = _Parser(list(types), prog=f"jat-engine {command}", description=description, allow_abbrev=False)
    for name, text in (positional or {}).items():
        parser.add_argument(name, metavar=name.upper(), help=text)

    if not positional and len(argv) == 1 and argv[0].endswith(".json"):
        try:
            given = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
            argv = [text for key, value in given.items() for text in _flag(key, value)]
        except (ValueError, AttributeError, RecursionError) as error:
            raise ValueError(f"{argv[0]}: expected a JSON object of arguments, got {error}") from None

    *parsed, unknown = parser.parse_args_into_dataclasses(
        [_expand_home(text) for text in argv], return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        flags = [f"--{item.name}" for cls in types for item in fields(cls)]
        hint = did_you_mean(unknown[0].partition("=")[0].replace("-", "_").replace("__", "--", 1), flags)
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{'; ' if hint else ''}{hint}")
    return tuple(parsed)


class _Parser(HfArgumentParser):
    """Parser whose errors are one line, as all errors of `jat-engine` are."""

    def error(self, message: str) -> NoReturn:
        """Print an error, and exit with code 2."""
        note(f"jat-engine: error: {message} (`{self.prog} --help` lists all flags)")
        sys.exit(2)


def _expand_home(argument: str) -> str:
    """Return an argument, `--flag=value` or a value alone, with the home folder for a `~/` at the value's beginning."""
    flag, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return f"{flag}{equals}{local_path(value)}" if value.startswith("~/") else argument


def _flag(name: str, value: Any) -> list[str]:
    """Convert a JSON field to command-line arguments; none for null."""
    if value is None:
        return []
    return [f"--{name}", *map(str, value if isinstance(value, list) else [value])]


def failure(task: Task, num_finished: int, arguments: EpisodeArguments, error: Exception) -> str:
    """Return a line about an error that ended the episodes of a task.

    Args:
        task: the task.
        num_finished: number of episodes that were finished before.
        arguments: arguments of the episodes.
        error: what was raised.
    """
    if num_finished < arguments.num_episodes:
        when = f"in episode {num_finished + 1} (seed {arguments.seed + num_finished})"
    else:
        when = "after its last episode"
    return f"{task.name}: failed {when}: " + " ".join(f"{type(error).__name__}: {error}".split())


def note(text: str) -> None:
    """Print a message to standard error. Standard output is for results only."""
    print(text, file=sys.stderr)
