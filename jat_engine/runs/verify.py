"""Verify a run: play some of its episodes again, and find the step at which one differs from what was recorded."""

from __future__ import annotations

import contextlib
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..envs import Task
from ..envs.versions import task_versions
from .agents import Agents
from .database import RunDatabase, RunError
from .plan import Item
from .recorders import TRAJECTORIES, Recorders
from .recording import episode_path
from .records import Episode, Evaluation
from .run import RunOptions, open_player, record
from .settings import MACHINE_FIELDS, differences, is_of_machine
from .slots import CHAIN_BYTES
from .trajectories import first_difference

_VALUES = {"return_": "return", "length": "length", "success": "success", "lives": "lives", "capped": "capped"}


@dataclass(frozen=True)
class Verified:
    """A recorded episode, and the same one played again.

    Attributes:
        recorded: the episode of the run.
        now: what it is now.
        step: the first step, from 1, whose observation, action or reward differs; None if all of them are equal.
        differences: further differences, such as "return 12.0, now 11.0" or of a saved trajectory.
    """

    recorded: Episode
    now: Episode
    step: int | None = None
    differences: tuple[str, ...] = ()

    @property
    def is_equal(self) -> bool:
        """True if nothing differs."""
        return self.step is None and not self.differences

    def __str__(self) -> str:
        """Return a line about the differences."""
        one = self.recorded
        parts = list(self.differences)
        if self.step is not None:
            parts.insert(0, f"step {self.step} differs first")
        elif parts and not self.now.failed:
            parts[0] = f"every step is equal, but what the run has of it was changed: {parts[0]}"
        return f"{one.task} episode {one.index} (seed {one.seed}): {'; '.join(parts) or 'equal'}"


def choose_episodes(evaluation: Evaluation, number: int | None, seed: int) -> list[Episode]:
    """Return finished episodes of a run: one of each task in turn, until there are enough.

    Args:
        evaluation: of the run.
        number: of episodes; None for all. All of them are returned if there are less.
        seed: of the choice.
    """
    rng = random.Random(seed)
    decks = [task.finished for task in evaluation.tasks.values() if task.finished]
    rng.shuffle(decks)
    for deck in decks:
        rng.shuffle(deck)
    turns = max(map(len, decks), default=0)
    dealt = [deck[turn] for turn in range(turns) for deck in decks if turn < len(deck)]
    chosen = set(dealt[:number])
    return [one for task in evaluation.tasks.values() for one in task.finished if one in chosen]


def check_settings(
    database: RunDatabase, settings: Mapping[str, Any], chosen: Sequence[str] = (), mixed_machines: bool = False
) -> list[str]:
    """Check that a run's episodes can be equal when they are played with these settings.

    Args:
        database: of the run.
        settings: of what is to be played.
        chosen: names of settings that the user has chosen to differ, such as "backend".
        mixed_machines: another machine is accepted as well.

    Returns:
        Reasons to expect differences; none if the episodes have to be equal.

    Raises:
        RunError: the settings differ; names the first that does.
    """
    before = database.settings
    allowed = {*chosen, *(MACHINE_FIELDS if mixed_machines else ())}
    if found := differences(before, {key: value for key, value in settings.items() if key not in allowed}):
        name = found[0].split(" ")[0]
        remedy = "verify it with what it was played with"
        if name == "weights_sha256":
            remedy = "name its checkpoint with --model_name_or_path"
        elif is_of_machine(found[0]):
            remedy += ", or add --mixed_machines: differences are then to be expected"
        raise RunError(f"{database.folder}: was played with other settings ({found[0]}); {remedy}")

    reasons = differences(before, settings)
    if before.get("mixed_machines"):
        reasons.append("machines of several kinds have played the run")
    if before.get("backend") not in ("cpu", "reference"):  # the reference has no batches
        reasons.append(f"backend {before.get('backend')}, whose actions depend on what else is in a batch")
    return reasons


def check_tasks(database: RunDatabase, tasks: Sequence[Task], mixed_machines: bool = False) -> list[str]:
    """Check that tasks are those of a run; see `check_settings`.

    Args:
        database: of the run.
        tasks: to be played.
        mixed_machines: other versions of simulators are accepted.

    Returns:
        Reasons to expect differences.

    Raises:
        RunError: a task has changed, or its simulator.
    """
    reasons, known = [], database.task_descriptions()
    for task in tasks:
        there, field = known[task.name], f"{database.folder}: has results of {task.name} with"
        if found := differences(there, {"rule": task.rule, "success": task.success}):
            raise RunError(f"{field} {found[0]}; register the task as it was")
        found = differences(there, {"versions": task_versions(task)})
        if found and not mixed_machines:
            raise RunError(
                f"{field} {found[0]}; install that version, or add --mixed_machines: differences are then to be "
                "expected"
            )
        reasons += found
    return list(dict.fromkeys(reasons))


def verify(
    database: RunDatabase, agents: Agents, tasks: Sequence[Task], chosen: Sequence[Episode], options: RunOptions
) -> Iterator[list[Verified]]:
    """Play episodes of a run again, and compare each with what was recorded. Nothing is written to the run.

    Args:
        database: of the run.
        agents: choose the actions.
        tasks: of the episodes.
        chosen: the episodes; see `choose_episodes`.
        options: as those that the run was played with; `recording` is ignored.

    Yields:
        After each batch the episodes that ended, which may be none.

    Raises:
        RunError, OSError: there is no room for the episodes in the folder of temporary files.
    """
    recorded = {(one.task, one.index): one for one in chosen}
    items = [Item(one.task, one.index, one.seed) for one in chosen]
    by_name = {task.name: task for task in tasks}
    saved = {key: _trajectory(database.folder, by_name[key[0]], key[1]) for key in recorded}

    with tempfile.TemporaryDirectory(prefix="jat-engine-verify-") as name:
        folder = Path(name)
        recording = Recorders(folder, trajectories=any(path.exists() for path in saved.values()))
        options = replace(options, play=replace(options.play, recording=recording))
        with (
            contextlib.closing(RunDatabase(folder, create=True)) as again,
            open_player(again, agents, tasks, items, options) as player,
        ):
            for finished in record(again, player):
                compared = []
                for one in finished:
                    key = one.ended.episode.task, one.ended.episode.index
                    found = compare(recorded[key], one.ended.episode, database.chain(*key), one.ended.chain)
                    compared.append(_with_trajectory(found, saved[key], _trajectory(folder, by_name[key[0]], key[1])))
                yield compared


def compare(recorded: Episode, now: Episode, chain: bytes, chain_now: bytes) -> Verified:
    """Compare an episode with the same one played again.

    Args:
        recorded: the episode of the run.
        now: the episode as it was played now.
        chain, chain_now: the kept bytes of their hash chains; see `slots.CHAIN_BYTES`.
    """
    if now.failed:
        return Verified(recorded, now, None, (f"step {now.length + 1} fails now: {now.error}",))
    found = [
        f"{words} {getattr(recorded, name)}, now {getattr(now, name)}"
        for name, words in _VALUES.items()
        if getattr(recorded, name) != getattr(now, name)
    ]
    step = _first_step(chain, chain_now)
    if recorded.digest == now.digest and step is not None:  # the digest is of every step
        found.append(f"hash of step {step}")
        step = None
    elif recorded.digest != now.digest and step is None:
        found.append(f"digest {recorded.digest:.12}, now {now.digest:.12}")
    return Verified(recorded, now, step, tuple(found))


def _first_step(chain: bytes, chain_now: bytes) -> int | None:
    """Return the first step, from 1, that differs in two hash chains, or that one of them does not have."""
    for begin in range(0, max(len(chain), len(chain_now)), CHAIN_BYTES):
        end = begin + CHAIN_BYTES
        if chain[begin:end] != chain_now[begin:end]:
            return begin // CHAIN_BYTES + 1
    return None


def _trajectory(folder: Path, task: Task, index: int) -> Path:
    return episode_path(folder / TRAJECTORIES, task, index, ".parquet")


def _with_trajectory(found: Verified, saved: Path, now: Path) -> Verified:
    """Add the differences of the saved trajectory, if there is one."""
    if not saved.exists() or not now.exists():
        return found
    difference = first_difference(saved, now)
    if not difference:
        return found
    return replace(found, differences=(*found.differences, f"{saved} differs {difference}"))
