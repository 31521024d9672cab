"""Command `jat-engine verify`: play episodes of a run again, and say which differ."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..dtypes import DTYPES
from ..envs import TASKS, Task, get_task, load_task_module
from ..evaluation.checks import check_sizes
from ..evaluation.environment import require_simulators
from ..evaluation.progress import simulator_output
from ..runs.agents import ActOptions
from ..runs.database import RunDatabase, RunError
from ..runs.records import Episode
from ..runs.run import RunOptions, make_agents
from ..runs.settings import machine_settings
from ..runs.slots import PlayOptions
from ..runs.verify import Verified, check_settings, check_tasks, choose_episodes, verify
from .agent import check_source, load_agent, load_config, settings_of, weights_of
from .arguments import ModelArguments, find_current_folder, note, parse
from .streams import say, terminable

_ALL = "all"
_NOTE_SECONDS = 10.0


@dataclass
class VerifyArguments:
    """Arguments of `jat-engine verify`."""

    episodes: str = field(default="10", metadata={"help": "number of episodes to play again, or all"})
    seed: int = field(default=0, metadata={"help": "of the choice of episodes, of each task as many as possible"})
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "the run's checkpoint, if it is no longer where the run found it"}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "folder for downloads"})
    backend: str | None = field(
        default=None,
        metadata={
            "help": "another backend than that of the run; differences are then to be expected",
            "choices": ["cpu", "cuda", "torch", "reference"],
        },
    )
    dtype: str | None = field(
        default=None,
        metadata={
            "help": "another type of weights and cache than that of the run; differences are then to be expected",
            "choices": list(DTYPES),
        },
    )
    mixed_machines: bool = field(
        default=False,
        metadata={"help": "verify a run of another processor or of other versions; differences are to be expected"},
    )

    def check(self) -> None:
        """Check the values.

        Raises:
            ValueError: a value is out of range.
        """
        text = self.episodes
        if text != _ALL and not (text.isascii() and text.isdigit() and int(text) >= 1):
            raise ValueError(f"--episodes: expected an integer of at least 1, or all, got {text!r}")

    @property
    def number(self) -> int | None:
        """Number of episodes; None for all."""
        return None if self.episodes == _ALL else int(self.episodes)

    @property
    def chosen(self) -> list[str]:
        """Names of the settings that shall differ from those of the run."""
        return [name for name in ("backend", "dtype") if getattr(self, name) is not None]


def run(argv: Sequence[str]) -> int:
    """Run `jat-engine verify`.

    Returns:
        The exit code: 1 if an episode differs.
    """
    arguments, given = parse(
        "verify",
        "Play episodes of a run again, and say which differ from what the run has of them, and at which step.",
        [VerifyArguments],
        argv,
        positional={"run": "folder of the run, --output_dir of jat-engine eval"},
    )
    arguments.check()
    folder = Path(given.run)
    with terminable(), contextlib.closing(RunDatabase(folder)) as database:
        evaluation, settings = database.read(), database.settings
        chosen = choose_episodes(evaluation, arguments.number, arguments.seed)
        if not chosen:
            raise RunError(f"{folder}: expected a run with finished episodes, got none; play it on with --resume")
        model_arguments = model_of(arguments, database)
        known = {"weights_sha256": weights_of(model_arguments), **machine_settings()}
        check_settings(database, known, (), arguments.mixed_machines)
        tasks = find_tasks(chosen, database)
        reasons = check_tasks(database, tasks, arguments.mixed_machines)
        require_simulators(tasks)
        check_sizes(tasks, load_config(model_arguments))

        agent, processor = load_agent(model_arguments)
        known |= settings_of(agent)
        reasons = check_settings(database, known, arguments.chosen, arguments.mixed_machines) + reasons
        for reason in reasons:
            note(f"differences are to be expected: {reason}")
        total = sum(len(task.finished) for task in evaluation.tasks.values())
        say(f"{len(chosen)} of {total} finished episodes, chosen with --seed {arguments.seed}: {_listed(chosen)}")
        options = run_options(settings)
        found = play(database, make_agents(agent, processor, options.act), tasks, chosen, options)
    return report(found, chosen)


def model_of(arguments: VerifyArguments, database: RunDatabase) -> ModelArguments:
    """Return the arguments for loading the agent of a run, with those that the user has chosen.

    Raises:
        ValueError: there is no such checkpoint.
    """
    before, settings = database.arguments, database.settings
    source = arguments.model_name_or_path or before.get("model_name_or_path")
    if source is None:
        raise RunError(f"{database.folder}: does not say what it was played with; name it with --model_name_or_path")
    try:
        check_source("--model_name_or_path", source)
    except ValueError as error:
        if arguments.model_name_or_path is None:
            raise RunError(f"{error}. That is what {database.folder} was played with; name where it is now") from None
        raise
    backend = arguments.backend or str(settings["backend"])
    return ModelArguments(
        model_name_or_path=source,
        cache_dir=arguments.cache_dir or before.get("cache_dir"),
        use_cpu=settings["device"] == "cpu" and backend != "cuda",
        backend=backend,
        dtype=arguments.dtype or str(settings["dtype"]),
    )


def find_tasks(chosen: Sequence[Episode], database: RunDatabase) -> list[Task]:
    """Return the tasks of episodes as the run describes them, after importing the modules that register them.

    Raises:
        TaskError: a module cannot be imported, or an environment cannot be made.
        UnknownTaskError: there is no such task any more.
    """
    find_current_folder()
    known, tasks = database.task_descriptions(), []
    for name in dict.fromkeys(one.task for one in chosen):
        rule = known[name]["rule"]
        if rule["module"] is not None:
            load_task_module(rule["module"])
        with simulator_output():
            tasks.append(get_task(name, None if name in TASKS or rule["adapter"] is None else rule["observation"]))
    return tasks


def run_options(settings: dict[str, Any]) -> RunOptions:
    """Return the options that a run was played with."""
    act = {name: settings[name] for name in ("deterministic", "temperature", "top_k", "action_clip")}
    return RunOptions(
        seed=settings["seed"],
        act=ActOptions(**act),
        play=PlayOptions(settings["max_steps"], bool(settings["use_action_mask"])),
    )


def play(
    database: RunDatabase, agents: Any, tasks: Sequence[Task], chosen: Sequence[Episode], options: RunOptions
) -> list[Verified]:
    """Play the episodes, and print those that differ as soon as they do."""
    found, said = [], time.monotonic()
    for batch in verify(database, agents, tasks, chosen, options):
        for one in batch:
            found.append(one)
            if not one.is_equal:
                say(str(one))
        if time.monotonic() - said > _NOTE_SECONDS:
            said = time.monotonic()
            note(f"{len(found)} of {len(chosen)} episodes")
    return found


def report(found: Sequence[Verified], chosen: Sequence[Episode]) -> int:
    """Print how many episodes are equal. Returns 1 if one differs, else 0."""
    equal = [one for one in found if one.is_equal]
    steps = sum(one.now.length for one in equal)
    say(f"{len(equal)} of {len(chosen)} episodes are equal in every observation, action and reward ({steps:,} steps)")
    return int(len(equal) != len(chosen))


def _listed(chosen: Sequence[Episode]) -> str:
    """Return episodes as text: the indices of each task."""
    indices: dict[str, list[str]] = {}
    for one in chosen:
        indices.setdefault(one.task, []).append(str(one.index))
    return "; ".join(f"{task} {', '.join(numbers)}" for task, numbers in indices.items())
