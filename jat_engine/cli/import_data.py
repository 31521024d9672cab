"""Command `jat-engine import`: import demonstrations of other formats as a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tqdm import tqdm

from ..datasets.importers.formats import FORMATS
from ..evaluation.random_policy import RANDOM_EPISODES
from .arguments import TaskArguments, note, parse
from .tables import mean_std, print_table

if TYPE_CHECKING:
    from ..datasets.importers.importer import Imported
    from ..datasets.importers.source import Source


@dataclass(kw_only=True)
class ImportArguments:
    """Arguments of `jat-engine import`."""

    output_dir: str = field(metadata={"help": "folder of the dataset, which may have other tasks"})
    format: str | None = field(
        default=None,
        metadata={
            "help": "format of the source, if its files do not tell",
            "choices": list(FORMATS),
        },
    )
    task: str | None = field(
        default=None,
        metadata={
            "help": "a published or registered task, gym:<id>, or a name of your own for a task that is trained on and "
            "not played; by default the environment that a Minari dataset names"
        },
    )
    columns: list[str] = field(
        default_factory=list,
        metadata={
            "help": "use=column of a table; uses are observation, action, reward, episode, done, timeout and text; "
            "observation=x,y joins columns"
        },
    )
    test_fraction: float = field(default=0.1, metadata={"help": "share of the episodes for the split `test`"})
    seed: int = field(default=0, metadata={"help": "seed of the choice of splits"})
    max_episodes: int | None = field(default=None, metadata={"help": "import only the first episodes"})
    random_episodes: int = field(
        default=RANDOM_EPISODES,
        metadata={"help": "episodes of the random policy, whose return is stored with a task that is not published"},
    )


def run(argv: Sequence[str]) -> int:
    """Run `jat-engine import` and return its exit code."""
    tasks, arguments, names = parse(
        "import",
        "Import demonstrations from Minari, LeRobot, npz files or Parquet tables as a dataset in the published layout.",
        [TaskArguments, ImportArguments],
        argv,
        positional={"source": "a file, a folder, or the id of a Minari dataset, such as mujoco/ant/expert-v0"},
    )
    from ..datasets.requirements import require_train_extra

    require_train_extra()
    from ..datasets.importers.columns import parse_columns
    from ..datasets.importers.formats import open_source
    from ..datasets.importers.importer import import_demonstrations

    columns = parse_columns(arguments.columns)
    tasks.load()
    source = open_source(names.source, arguments.format, columns)
    with tqdm(desc="import", unit="episode", disable=None) as bar:

        def count(_: int, steps: int) -> None:
            bar.update()

        imported = import_demonstrations(
            source,
            arguments.output_dir,
            task=arguments.task,
            observation=tasks.adapter,
            test_fraction=arguments.test_fraction,
            seed=arguments.seed,
            max_episodes=arguments.max_episodes,
            random_episodes=arguments.random_episodes,
            on_episode=count,
        )
    _print(source, imported)
    note(f"wrote {imported.folder}; load_dataset({arguments.output_dir!r}, {imported.folder.name!r}) reads it")
    return 0


def _print(source: Source, imported: Imported) -> None:
    """Print what was read, what was written and what was left out."""
    collection, task = imported.collection, imported.task
    read = f"{collection.num_episodes} episodes, {collection.steps:,} steps"
    if source.columns:
        read += "; " + ", ".join(f"{use}: {' + '.join(names)}" for use, names in source.columns.items())
    has_rewards = bool(collection.imported and collection.imported["has_rewards"])
    sizes = ", ".join(f"{name} [{size}]" for name, size in imported.sizes.items())
    rows = [
        ("read", read),
        ("converted", str(task.adapter) if task.adapter else f"{task.observation} observations, {task.action} actions"),
        ("columns", sizes),
        ("wrote", f"{collection.splits.count('train')} train, {collection.splits.count('test')} test"),
        ("return", mean_std(collection.returns) if has_rewards else "unknown: the source has no rewards; stored as 0"),
        *[("left out", words) for words in source.dropped],
        *[("note", words) for words in imported.notes],
    ]
    shown = [(name, words) for name, words in rows if words]
    origin = f"from {source.name} ({source.format})"
    print_table(
        task.name,
        {"import": [name for name, _ in shown], origin: [words for _, words in shown]},
        left=["import", origin],
    )
