"""Parsing of command lines into dataclasses, and the arguments that several commands share."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from transformers import HfArgumentParser

from ..checkpoint_files import local_path
from ..dtypes import DTYPES
from ..envs.kinds import OBSERVATIONS
from ..errors import describe_error
from ..keywords import did_you_mean

if TYPE_CHECKING:
    from ..checkpoint.trained_tasks import TrainedTask
    from ..envs import Task
    from ..envs.kinds import Observation

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
            "choices": ["auto", *DTYPES],
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
            "choices": list(OBSERVATIONS),
        },
    )

    def load(self) -> None:
        """Import the module; one of the current folder is found as well.

        Raises:
            TaskError: it cannot be imported.
        """
        from ..envs import load_task_module

        if self.task_module is not None:
            find_current_folder()
            load_task_module(self.task_module)

    def find(self, names: Sequence[str]) -> list[Task]:
        """Return the tasks of some names, and say how the observations of those that are not published are converted.

        Args:
            names: of tasks and domains, and "all".

        Raises:
            UnknownTaskError: there is no such task.
            TaskError: an environment cannot be made, or an agent has no such observations or actions; or `--adapter`
                is given and all tasks are published.
        """
        return self.find_trained(names, ())

    def find_some(self, name: str) -> list[Task]:
        """Return the tasks of one of several names, among which may be published ones only. See `find`."""
        from ..envs import find_tasks
        from ..evaluation.progress import simulator_output

        self.load()
        kind: Observation | None = self.adapter  # type: ignore[assignment]  # one of the choices
        with simulator_output():
            tasks = find_tasks([name], kind)
        for task in tasks:
            if task.adapter is not None:
                note(f"{task.name}: {task.adapter}")
        return tasks

    def check_adapter(self, tasks: Iterable[Task | None]) -> None:
        """Check that `--adapter` has an effect on one of the tasks; None is a text dataset.

        Raises:
            TaskError: all tasks are published.
        """
        from ..envs import TaskError

        if self.adapter is None or any(task is not None and not task.published_env_id for task in tasks):
            return
        raise TaskError(f"--adapter {self.adapter}: expected a task that is not published, got none; leave it out")

    def find_trained(self, names: Sequence[str], trained: Sequence[TrainedTask]) -> list[Task]:
        """Return the tasks of some names, with the scores that a checkpoint has of them. See `find`.

        Args:
            names: of tasks and domains, and "all".
            trained: tasks of the checkpoint.

        Raises:
            UnknownTaskError: there is no such task; for one of the checkpoint the message names its module.
            TaskError: see `find`; or a task is not played as it was trained.
        """
        from ..checkpoint.trained_tasks import as_trained
        from ..envs import UnknownTaskError

        self.load()
        known = {task.name: task for task in trained}
        tasks = []
        for name in names:
            try:
                tasks += self.find_some(name)
            except UnknownTaskError as error:
                if name not in known:
                    raise
                reason = str(error) if name.startswith("gym:") else f"task: no task is named {name!r}"
                raise UnknownTaskError(f"{reason}; {known[name].remedy}") from None
        self.check_adapter(tasks)
        found = {task.name: task for task in tasks}.values()
        return [as_trained(task, trained) for task in found]

    def find_one(self, name: str, trained: Sequence[TrainedTask] = ()) -> Task:
        """Return the task of this name. See `find_trained`.

        Raises:
            ValueError: the name is that of several tasks.
        """
        tasks = self.find_trained([name], trained)
        if len(tasks) != 1 or tasks[0].name != name:
            raise ValueError(f"--task: expected the name of one task, got {name!r}")
        return tasks[0]


def find_current_folder() -> None:
    """Let modules of the current folder be imported, here and in worker processes; a console script does not."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))


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
    temperature: float | None = field(
        default=None, metadata={"help": "divide logits by it before sampling; 0 is the same as --deterministic"}
    )
    top_k: int | None = field(default=None, metadata={"help": "sample among this number of the likeliest actions"})
    action_clip: str | None = field(
        default=None,
        metadata={
            "help": "box: clip continuous actions to the action space",
            "choices": ["box"],
        },
    )
    use_action_mask: bool = field(
        default=False, metadata={"help": 'choose among the actions that the environment\'s info["action_mask"] allows'}
    )

    def check(self) -> None:
        """Check the values.

        Raises:
            ValueError: a value is out of range; the message names the flag.
        """
        if self.num_episodes < 1:
            raise ValueError(f"--num_episodes: expected at least 1, got {self.num_episodes}")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"--max_steps: expected at least 1, got {self.max_steps}")
        if self.temperature is not None and not 0 <= self.temperature < math.inf:
            raise ValueError(f"--temperature: expected a finite number of at least 0, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"--top_k: expected at least 1, got {self.top_k}")
        last = self.seed + self.num_episodes - 1
        if self.seed < 0 or last > LARGEST_SEED:
            raise ValueError(
                f"--seed: expected 0 to 2**64 - 1 for all episodes (the last has --seed + --num_episodes - 1), got "
                f"{self.seed}" + (f" to {last}" if self.num_episodes > 1 else "")
            )

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of `run_episodes`."""
        return {"seed": self.seed, "deterministic": self.deterministic, "max_steps": self.max_steps} | self.choices

    @property
    def choices(self) -> dict[str, Any]:
        """Options of the choice of actions that were given; none of them is published."""
        names = ("temperature", "top_k", "action_clip", "use_action_mask")
        return {name: getattr(self, name) for name in names if getattr(self, name) not in (None, False)}


@dataclass(frozen=True)
class HelpLayout:
    """Layout of the help of a command with very many flags. Flags that it does not name come first.

    Attributes:
        usage: the line of usage.
        sections: title -> flag -> metavar and help, for flags that `--help` lists after the first ones.
        rest: flag -> help, for flags that only `--help-all` lists; None keeps the flag's own help.
        rest_title: title of these.
    """

    usage: str
    sections: Mapping[str, Mapping[str, tuple[str, str]]]
    rest: Mapping[str, str | None]
    rest_title: str


def parse(
    command: str,
    description: str,
    types: Sequence[Any],
    argv: Sequence[str],
    positional: Mapping[str, str] | None = None,
    layout: HelpLayout | None = None,
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
        layout: of the help, if `--help` shall not list all flags.

    Returns:
        The instances, in the order of `types`. With `positional`, a namespace with those values comes last.

    Raises:
        ValueError: the JSON file does not hold an object.
        SystemExit: after `--help`, and for wrong arguments.
    """
    parser = _Parser(
        list(types),
        prog=f"jat-engine {command}",
        description=description,
        allow_abbrev=False,
        layout=layout,
        show_all=_HELP_ALL in map(_with_underscores, argv),
    )
    for name, text in (positional or {}).items():
        parser.add_argument(name, metavar=name.upper(), help=text)

    if not positional and len(argv) == 1 and argv[0].endswith(".json"):
        try:
            given = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
            argv = [text for key, value in given.items() for text in _flag(key, value)]
        except (ValueError, AttributeError, RecursionError) as error:
            raise ValueError(f"{argv[0]}: expected a JSON object of arguments, got {error}") from None

    written = {_with_underscores(_expand_home(text)): text for text in argv}
    *parsed, unknown = parser.parse_args_into_dataclasses(
        [_with_underscores(_expand_home(text)) for text in argv],
        return_remaining_strings=True,
        look_for_args_file=False,
    )
    if unknown:
        flags = [f"--{item.name}" for cls in types for item in fields(cls)]
        hint = did_you_mean(unknown[0].partition("=")[0], flags)
        shown = " ".join(written.get(text, text) for text in unknown)
        parser.error(f"unrecognized arguments: {shown}{'; ' if hint else ''}{hint}")
    return tuple(parsed)


class _Parser(HfArgumentParser):
    """Parser whose errors are one line, as all errors of `jat-engine` are, and whose help can have a layout."""

    def __init__(self, types: list[Any], *, layout: HelpLayout | None, show_all: bool, **options: Any) -> None:
        self._layout, self._show_all = layout, show_all
        self._groups: dict[str, Any] = {}
        if layout is not None:
            options["usage"] = layout.usage
            options["description"] += f" {_HELP_ALL} also lists {layout.rest_title}."
        super().__init__(types, formatter_class=argparse.HelpFormatter, **options)
        if layout is not None:
            self.add_argument(_HELP_ALL, action="help", help=argparse.SUPPRESS)

    def add_argument(self, *names: Any, **options: Any) -> Any:
        """Add an argument in the section of the help that it belongs to, with its default in the help if it has one.

        Args:
            names: as in argparse. Of a flag that may be written with `_` or `-` only the first spelling is shown.
            options: as in argparse.
        """
        flag = str(options.get("dest") or names[0]).removeprefix("--")
        if names[0].startswith("--"):
            names = (_with_underscores(names[0]),)
        section: Any = super()
        if self._layout is not None and options.get("help") is not argparse.SUPPRESS:
            for title, flags in self._layout.sections.items():
                if flag in flags:
                    metavar, options["help"] = flags[flag]
                    if "action" not in options:
                        options["metavar"] = metavar
                    section = self._group(title)
            if flag in self._layout.rest and self._show_all:
                options["help"] = self._layout.rest[flag] or options.get("help")
                section = self._group(self._layout.rest_title)
            elif flag in self._layout.rest:
                options["help"] = argparse.SUPPRESS

        text, default = options.get("help"), options.get("default")
        has_default = not (default is None or default is False or default in ([], "", argparse.SUPPRESS))
        if text and text is not argparse.SUPPRESS and has_default:
            options["help"] = f"{text} (default: %(default)s)"
        return section.add_argument(*names, **options)

    def _group(self, title: str) -> Any:
        """Return a section of the help. All are made at once, so that they come in their order."""
        assert self._layout is not None, "only a layout has sections"
        if not self._groups:
            for each in (*self._layout.sections, self._layout.rest_title):
                self._groups[each] = self.add_argument_group(each)
        return self._groups[title]

    def error(self, message: str) -> NoReturn:
        """Print an error, and exit with code 2."""
        flag = "--help" if self._layout is None else "--help-all"
        note(f"jat-engine: error: {message} (`{self.prog} {flag}` lists all flags)")
        sys.exit(2)


_HELP_ALL = "--help-all"


def _with_underscores(argument: str) -> str:
    """Return an argument with `_` for each `-` within the name of its flag. What is not a flag stays as it is."""
    name, equals, value = argument.partition("=")
    if not name.startswith("--"):
        return argument
    name = f"--{name[2:].replace('-', '_')}"
    return _HELP_ALL if name == "--help_all" else f"{name}{equals}{value}"


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
    return f"{task.name}: failed {when}: " + describe_error(error)


def note(text: str) -> None:
    """Print a message to standard error. Standard output is for results only."""
    print(text, file=sys.stderr)
