"""Write imported demonstrations in the published layout, one episode at a time."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from ... import __version__
from ...atomic_io import check_writable, naming
from ...envs import Task, get_task, make
from ...envs.adapters import choose_adapter, own_action, own_kind
from ...envs.kinds import Action, Observation, usual_window
from ...envs.registry import GYM, is_free, registered_names
from ...errors import DataError, MissingSimulatorError, SpaceError, UnknownTaskError, one_line
from ...evaluation.random_policy import RANDOM_EPISODES, measure_random, score
from ...keywords import did_you_mean
from ..card import check_card, write_card
from ..collection import Collection, choose_splits, digest, stored_task
from ..parquet import RowWriter, ShardWriter, episode_row, read_rows, schema
from ..schema import check_episode, task_columns
from .convert import Conversion, infer_kinds
from .source import RawEpisode, Source

_INCOMPLETE = ".incomplete"


@dataclass(frozen=True)
class Imported:
    """Result of an import, as it was written.

    Attributes:
        task: whose episodes they are; one without a maker cannot be played here.
        collection: description of the episodes.
        folder: of the task.
        sizes: columns of numbers -> values of a step.
        notes: what to tell the user.
    """

    task: Task
    collection: Collection
    folder: Path
    sizes: dict[str, int]
    notes: list[str]


def import_demonstrations(
    source: Source,
    output_dir: str | Path,
    *,
    task: str | None = None,
    observation: Observation | None = None,
    test_fraction: float = 0.1,
    seed: int = 0,
    max_episodes: int | None = None,
    random_episodes: int = RANDOM_EPISODES,
    on_episode: Callable[[int, int], None] | None = None,
) -> Imported:
    """Import demonstrations as one task of a dataset that `jat-engine train` and `datasets.load_dataset` read.

    Args:
        source: the demonstrations, see `open_source`.
        output_dir: folder of the dataset. Receives `<task>/{train,test}-*.parquet`, `<task>/collection.json`, and a
            README.md about all of its tasks.
        task: name of a published or registered task, or "gym:<id>", whose spaces the episodes must have; any other name
            is that of a task which can be trained on, but not played. None takes the environment that the source names.
        observation: kind to convert observations to, in place of the one that follows from spaces or columns.
        test_fraction: share of the episodes in the test split, at least one of two or more; 0 for no test split.
        seed: of the choice of splits.
        max_episodes: import the first episodes only.
        random_episodes: episodes of the random policy, whose return is stored with a task that can be played and is
            not published; 0 for none.
        on_episode: called after each episode with its number, from 1, and the number of its steps.

    Returns:
        What was written. Nothing is, unless all episodes are right.

    Raises:
        ValueError: an argument is wrong.
        DataError: the episodes are damaged, or not those of the task; the task's folder exists already; or `output_dir`
            has a README.md of something else.
        UnknownTaskError: there is no such environment, and the source does not have its spaces.
        SpaceError: an agent has no such observations or actions.
        OSError: `output_dir` cannot be written.
    """
    if not 0 <= test_fraction < 1:
        raise ValueError(f"test_fraction: expected at least 0 and less than 1, got {test_fraction}")
    if seed < 0:
        raise ValueError(f"seed: expected at least 0, got {seed}")
    if max_episodes is not None and max_episodes < 1:
        raise ValueError(f"max_episodes: expected at least 1, got {max_episodes}")
    if not str(output_dir):
        raise ValueError("output_dir: expected the name of a folder, got ''; use . for the current one")
    folder = Path(output_dir)
    check_writable("output_dir", folder)
    check_card(folder)

    episodes = islice(source.read(), max_episodes)
    first = next(episodes, None)
    if first is None:
        raise DataError(f"{source.name}: expected at least one episode, got none")
    known, conversion, notes = find_task(source, task, observation, first)
    target = folder / known.folder_name
    if target.exists():
        raise DataError(
            f"{target}: expected no folder of {known.name}, got one; delete it to import the task again, or name "
            "another --output_dir or --task"
        )

    with naming(folder, "name another folder with --output_dir"):
        (folder / _INCOMPLETE).mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryDirectory(prefix="import-", dir=folder / _INCOMPLETE) as work:
                taken = _take(chain([first], episodes), Path(work) / "episodes", known, conversion, on_episode)
                scores = _scores(known, taken, random_episodes)
                new = Path(work) / "task"
                new.mkdir()
                collection = _write(new, known, source, taken, scores, test_fraction, seed, max_episodes)
                new.rename(target)
        finally:
            with contextlib.suppress(OSError):  # other tasks are unfinished
                (folder / _INCOMPLETE).rmdir()
    write_card(folder)
    return Imported(known, collection, target, taken.sizes, [*notes, *source.notes])


def find_task(
    source: Source, name: str | None, observation: Observation | None, first: RawEpisode
) -> tuple[Task, Conversion, list[str]]:
    """Find the task of imported episodes, and how they are converted to its columns.

    Args:
        source, name, observation: as in `import_demonstrations`.
        first: the first episode.

    Returns:
        The task; the conversion; what to tell the user.

    Raises:
        ValueError: no name is given, and the source has none.
        DataError: the spaces of the source are not those of the task.
        UnknownTaskError: there is no such environment, and the source does not have its spaces.
        SpaceError: an agent has no such observations or actions.
    """
    if name is None:
        if source.env_id is None:
            raise ValueError(
                f"--task: expected a name, since {source.name} does not name its environment: a published or "
                "registered task, gym:<id>, or a name of your own"
            )
        name = GYM + source.env_id
    try:
        known, reason = get_task(name, observation), ""
    except (UnknownTaskError, MissingSimulatorError) as error:
        if source.spaces is None and name.startswith(GYM):
            raise
        if not name.startswith(GYM) and not is_free(name):
            raise
        known, reason = None, one_line(error)

    if source.spaces is not None:
        task, conversion = _by_spaces(source, name, observation, known)
    elif known is not None:
        task, conversion = known, Conversion(known.observation, known.action, known.adapter, spaces=False)
    else:
        kind, action = infer_kinds(first, observation)
        task, conversion = _unplayable(name, kind, action), Conversion(kind, action, None, spaces=False)

    notes = []
    if known is None and name.startswith(GYM):
        notes.append(f"{name} can be trained on and not played: {reason}")
    elif known is None:
        near = did_you_mean(name, registered_names(), cutoff=0.8)
        notes.append(
            f"no task is named {name}: it can be trained on, and played once --task_module registers it"
            + (f"; {near}" if near else "")
        )
    elif conversion.adapter is None or known.adapter is None:
        try:
            conversion.sizes = environment_sizes(known)
        except MissingSimulatorError as error:
            notes.append(f"sizes are not compared with those of {name}: {error}")
    if conversion.adapter is not None and conversion.adapter.entries and source.spaces is None:
        notes.append(f"observations are taken as {', '.join(conversion.adapter.entries)}, joined in this order")
    return task, conversion, notes


def environment_sizes(task: Task) -> dict[str, int]:
    """Return how many values the observations and actions of a task have, by their columns; choices of an action.

    Args:
        task: with a maker, and with the agent's own observations.

    Raises:
        MissingSimulatorError: its simulator is not installed.
    """
    with contextlib.closing(make(task)) as env:
        observations: Any = env.observation_space
        actions: Any = env.action_space
        sizes = {f"{name}s": int(np.prod(space.shape)) for name, space in observations.spaces.items() if space.shape}
        sizes[f"{task.action}_actions"] = int(actions.n if task.action == "discrete" else actions.shape[0])
    return sizes


def _by_spaces(
    source: Source, name: str, observation: Observation | None, known: Task | None
) -> tuple[Task, Conversion]:
    """Return the task and the conversion of a source that has spaces."""
    assert source.spaces is not None, "other sources are converted by their columns"
    own = own_kind(source.spaces[0])
    wanted = observation if known is None else known.observation
    if own is not None and wanted in (None, own) and (known is None or known.adapter is None):
        action = own_action(source.spaces[1])
        task = known or _unplayable(name, own, action)
        if action != task.action:
            raise DataError(f"{source.name}: expected {task.action} actions of {name}, got {source.spaces[1]}")
        return task, Conversion(own, action, None, spaces=True)

    try:
        adapter = choose_adapter(*source.spaces, wanted)
    except SpaceError as error:
        raise SpaceError(f"{source.name}: {error}") from None
    task = known or replace(_unplayable(name, adapter.observation, adapter.action), adapter=adapter)
    if (adapter.observation, adapter.action) != (task.observation, task.action):
        raise DataError(
            f"{source.name}: expected {task.observation} observations and {task.action} actions, as {name} has, got "
            f"{adapter}; name another --task"
        )
    if task.adapter is not None and source.spaces[0] == task.adapter.space:
        adapter = replace(adapter, entries=task.adapter.entries, starts=task.adapter.starts, space=task.adapter.space)
    if task.adapter is not None and task.adapter.rule != adapter.rule:
        raise DataError(
            f"{source.name}: expected the spaces of {name} ({task.adapter}), got others ({adapter}); name another "
            "--task"
        )
    return task, Conversion(adapter.observation, adapter.action, adapter, spaces=True)


def _unplayable(name: str, observation: Observation, action: Action) -> Task:
    """Return a task without an environment."""
    rule = {"observation": observation, "action": action, "context_window": usual_window(observation)}
    return stored_task(name, rule, {})


@dataclass
class _Taken:
    """Episodes that were read.

    Attributes:
        path: file of their rows, in order.
        returns: sums of unclipped rewards.
        lengths: numbers of steps.
        seeds: None where they are not known.
        has_rewards: False if the source has none.
        sizes: columns of numbers -> values of a step.
    """

    path: Path
    returns: list[float]
    lengths: list[int]
    seeds: list[int | None]
    has_rewards: bool
    sizes: dict[str, int]


def _take(
    episodes: Iterator[RawEpisode],
    path: Path,
    task: Task,
    conversion: Conversion,
    on_episode: Callable[[int, int], None] | None,
) -> _Taken:
    """Convert and check all episodes, and write their rows to a file, since splits are chosen by their number."""
    writer = RowWriter(path, schema(task_columns(task)))
    taken = _Taken(path, [], [], [], True, {})
    where = ""
    try:
        for number, raw in enumerate(episodes):
            episode = check_episode(conversion.columns(raw), source=raw.where, task=task)
            sizes = {name: values.shape[1] for name, values in episode.items() if np.ndim(values) == 2}
            if number and sizes != taken.sizes:
                name = next(name for name, size in sizes.items() if size != taken.sizes[name])
                raise DataError(
                    f"{raw.where}: column {name}: expected {taken.sizes[name]} values a step, as in {where}, got "
                    f"{sizes[name]}; every episode of a task has the same size"
                )
            taken.sizes, where, taken.has_rewards = sizes, raw.where, raw.rewards is not None
            taken.returns.append(float(np.sum(episode["rewards"], dtype=np.float64)))
            taken.lengths.append(len(episode["rewards"]))
            taken.seeds.append(raw.seed)
            writer.append(episode_row(episode))
            if on_episode is not None:
                on_episode(number + 1, taken.lengths[-1])
    finally:
        writer.close()
    return taken


def _scores(task: Task, taken: _Taken, random_episodes: int) -> dict[str, dict[str, Any]]:
    """Return the returns that normalise a task's scores: of the imported episodes, and of a random policy."""
    if not taken.has_rewards:
        return {}
    scores: dict[str, dict[str, Any]] = {"expert": score(taken.returns)}
    if random_episodes and task.maker is not None and not task.is_published:
        scores["random"] = measure_random(task, random_episodes)
    return scores


def _write(
    folder: Path,
    task: Task,
    source: Source,
    taken: _Taken,
    scores: dict[str, dict[str, Any]],
    test_fraction: float,
    seed: int,
    max_episodes: int | None,
) -> Collection:
    """Write the splits and the description of a task to an empty folder."""
    splits = choose_splits(len(taken.lengths), test_fraction, seed)
    types = schema(task_columns(task))
    writers = {split: ShardWriter(folder, split, types) for split in ("train", "test")}
    for split, row in zip(splits, read_rows(taken.path), strict=True):
        writers[split].append(row)
    files = {split: writer.close() for split, writer in writers.items()}

    imported = {
        "format": source.format,
        "source": source.name,
        "columns": source.columns,
        "dropped": source.dropped,
        "has_rewards": taken.has_rewards,
        "max_episodes": max_episodes,
    }
    collection = Collection(
        task=task.name,
        settings={"seed": seed, "import": imported, "versions": {"jat_engine": __version__, **source.versions}},
        expert=source.describe,
        test_fraction=test_fraction,
        attempts=len(taken.lengths),
        successes=None,
        seeds=[seed for seed in taken.seeds if seed is not None] if None not in taken.seeds else [],
        returns=taken.returns,
        lengths=taken.lengths,
        splits=splits,
        files={split: [path.name for path in paths] for split, paths in files.items()},
        sha256=digest(path for paths in files.values() for path in paths),
        file_sha256={path.name: digest([path]) for paths in files.values() for path in paths},
        scores=scores,
        task_rule=None if task.is_published else task.rule,
    )
    collection.write(folder)
    return collection
