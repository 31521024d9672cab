"""Make a dataset's data card, the README.md that people and `datasets.load_dataset` read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic_io import locked, write_text
from ..envs import DOMAINS, TASKS
from ..errors import DataError
from .collection import FILE_NAME, Collection

_TITLE = "Expert episodes for JAT"

_BODY = """
# Expert episodes for JAT

{episodes} episodes, {steps} steps, of {tasks}, in the layout of
[jat-project/jat-dataset](https://huggingface.co/datasets/jat-project/jat-dataset), for agents of the kind of JAT
([paper](https://arxiv.org/abs/2402.09844)). {origin}

```python
from datasets import load_dataset

dataset = load_dataset("{name}", "{example}", split="train")
```

A row is an episode, a column has one entry a step. `rewards[t]` is what the action of step t gave, unclipped; the
observation after the last action is not stored. `image_observations` are 84 x 84 RGBA images, whose channels are the
last four grey frames, oldest first.
{again}
## Tasks

Returns are mean ± standard deviation of the stored episodes, both splits together. *Success* is the share of all
attempts that succeeded{failures}. *Expert* and *random* are returns of the paper for published tasks, measured ones for
others; *normalised* is (return - random) / (expert - random), where that is defined. *Noise* disturbed the episodes
with odd seeds: it is the standard deviation of what was added to the executed action, or the probability that a random
one was executed instead. What is stored is always the expert's action. A "-" is not known.

| task | train | test | steps | return | success | expert | random | normalised | noise | seeds |
|---|---|---|---|---|---|---|---|---|---|---|
{rows}
{own}
## Experts

| expert | tasks |
|---|---|
{experts}
{sources}
## Versions

{versions}
"""

_OWN = """
These tasks are not published. *Rule* says how the environment's observations and actions were converted; *module*
registers the task. *Random* and *expert* are measured returns, the latter of stored episodes without noise.

| task | observation | action | rule | module | random | expert |
|---|---|---|---|---|---|---|
{rows}
"""

_KINDS = ("observation", "action")

_AGAIN = """
Collect them again: `jat-engine collect --tasks {task} --num_episodes {episodes} --seed {seed}{flags}
--output_dir DIR`.
"""

_SOURCES = """
## Imported episodes

The licence of these episodes is that of their source.

| task | source | format | columns | left out |
|---|---|---|---|---|
{rows}
"""


def write_card(folder: Path) -> Path:
    """Write README.md from every `collection.json` in a dataset's folder, atomically.

    Args:
        folder: of the dataset; has at least one finished task.

    Returns:
        The path of README.md.
    """
    path = folder / "README.md"
    with locked(folder):
        write_text(path, card(folder.resolve().name, collections(folder)))
    return path


def check_card(folder: Path) -> None:
    """Check that a folder has no README.md, or a card of this module, which may be replaced.

    Raises:
        DataError: there is another README.md.
    """
    path = folder / "README.md"
    if path.exists() and _TITLE not in path.read_text(encoding="utf-8", errors="replace"):
        raise DataError(
            f"{path}: expected none, or the card of a collected dataset, got another, which would be replaced; "
            "name another --output_dir"
        )


def collections(folder: Path) -> list[Collection]:
    """Read the descriptions of all finished tasks in a dataset's folder.

    Returns:
        The published tasks in their order, then the others by name.

    Raises:
        DataError: see `Collection.read`.
    """
    others = sorted(path.parent.name for path in folder.glob(f"*/{FILE_NAME}") if path.parent.name not in TASKS)
    found = [Collection.read(folder / name) for name in (*TASKS, *others)]
    return [collection for collection in found if collection is not None]


def card(name: str, stored: list[Collection]) -> str:
    """Return the text of the card.

    Args:
        name: name of the folder or repository, for the examples.
        stored: descriptions of the tasks, at least one.
    """
    from huggingface_hub import DatasetCardData

    domains = {collection.as_task().domain for collection in stored}
    played = [collection for collection in stored if collection.imported is None]
    imported = [collection for collection in stored if collection.imported is not None]
    data = DatasetCardData(
        license=None if imported else "apache-2.0",
        pretty_name=_TITLE,
        task_categories=["reinforcement-learning"],
        tags=["reinforcement-learning", "imitation-learning", "jat", *(d for d in DOMAINS if d in domains)],
        configs=[_config(collection) for collection in stored],
    )

    own = [collection for collection in stored if collection.task_rule is not None]
    tried = any(collection.successes is not None for collection in stored)
    kept = any(collection.settings["keep_failures"] for collection in played)
    failures = "; failures are stored as well" if tried and kept else "; only those are stored" if tried else ""
    body = _BODY.format(
        episodes=f"{sum(c.num_episodes for c in stored):,}",
        steps=f"{sum(c.steps for c in stored):,}",
        tasks=_tasks(stored),
        origin=_origin(played, imported),
        name=name,
        example=stored[0].as_task().folder_name,
        again=_again(played[0]) if played else "",
        failures=failures,
        rows="\n".join(map(_row, stored)),
        own=_OWN.format(rows="\n".join(map(_own_row, own))) if own else "",
        experts="\n".join(_experts(stored)),
        sources=_SOURCES.format(rows="\n".join(map(_source, imported))) if imported else "",
        versions="\n".join(_versions(stored)),
    )
    return f"---\n{data.to_yaml()}\n---\n{body}"


def _flags(collection: Collection) -> str:
    settings = collection.settings
    module = (collection.task_rule or {}).get("module")
    flags = {
        "task_module": module,
        "expert": settings.get("expert"),
        "noise": f"{settings['noise']:g}" if settings["noise"] else None,
    }
    switches = {"trust_expert": "expert_sha256" in settings, "keep_failures": settings["keep_failures"]}
    return "".join(
        [
            *(f" --{name} {value}" for name, value in flags.items() if value),
            *(f" --{name}" for name, is_on in switches.items() if is_on),
        ]
    )


def _own_row(collection: Collection) -> str:
    """Return a task's row of the table of tasks that are not published."""
    rule = collection.task_rule or {}
    adapter = {name: value for name, value in (rule.get("adapter") or {}).items() if name not in _KINDS}
    cells = [
        collection.task,
        *(str(rule.get(name, "-")) for name in _KINDS),
        "; ".join(f"{name} {value}" for name, value in adapter.items()) or "none",
        rule.get("module") or "-",
        *(_measured(collection.scores.get(name)) for name in ("random", "expert")),
    ]
    return f"| {' | '.join(cells)} |"


def _measured(score: Mapping[str, float] | None) -> str:
    if score is None:
        return "-"
    episodes = f" ({score['episodes']:.0f} episodes)" if "episodes" in score else ""
    return f"{score['mean']:.2f} ± {score['std']:.2f}{episodes}"


def _tasks(stored: list[Collection]) -> str:
    published = sum(collection.task in TASKS for collection in stored)
    words = f"{published} of the {len(TASKS)} tasks of the JAT agent"
    others = len(stored) - published
    if not others:
        return words
    more = f"{others} {'other ' if published else ''}task{'s' if others > 1 else ''}"
    return f"{words}, and of {more}" if published else more


def _origin(played: list[Collection], imported: list[Collection]) -> str:
    words = "were played by experts with jat_engine, not by the published agents."
    taken = "were imported from other datasets."
    if not imported:
        return f"They {words}"
    if not played:
        return f"They {taken}"
    return f"Those of {', '.join(c.task for c in imported)} {taken} The others {words}"


def _again(collection: Collection) -> str:
    return _AGAIN.format(
        task=collection.task,
        episodes=collection.num_episodes,
        seed=collection.settings["seed"],
        flags=_flags(collection),
    )


def _config(collection: Collection) -> dict[str, Any]:
    splits = [split for split, files in collection.files.items() if files]
    name = collection.as_task().folder_name
    return {
        "config_name": name,
        # `datasets` caches a folder under a hash of these lines, not of the files: without the digest it would still
        # return the old episodes after a task was extended.
        "description": f"{collection.num_episodes} episodes, SHA-256 {collection.sha256}",
        "data_files": [{"split": split, "path": f"{name}/{split}-*.parquet"} for split in splits],
    }


def _row(collection: Collection) -> str:
    """Return a task's row of the table."""
    from ..evaluation.scores import main_reference, normalize, reference_score

    task = collection.as_task()
    reference = main_reference(task)
    scores, expert = normalize(collection.returns, task, reference), reference_score(task, reference)
    rate, imported = collection.success_rate, collection.imported
    has_returns = imported is None or imported["has_rewards"]
    cells = [
        collection.task,
        str(collection.splits.count("train")),
        str(collection.splits.count("test")),
        f"{collection.steps:,}",
        f"{np.mean(collection.returns):.2f} ± {np.std(collection.returns):.2f}" if has_returns else "-",
        "-" if rate is None else f"{rate:.1%}",
        "-" if expert is None else _plus_minus(expert.mean, expert.std),
        "-" if task.random is None else f"{task.random.mean:g}",
        "-" if not has_returns else "undefined" if scores is None else f"{scores.mean():.3f}",
        "-" if imported is not None else f"{collection.settings['noise']:g}",
        f"{min(collection.seeds)} to {max(collection.seeds)}" if collection.seeds else "-",
    ]
    return f"| {' | '.join(cells)} |"


def _source(collection: Collection) -> str:
    """Return the row of an imported task in the table of sources."""
    imported = collection.imported
    assert imported is not None, "only imported tasks have a source"
    columns = "; ".join(f"{use}: {', '.join(names)}" for use, names in imported["columns"].items())
    cells = [
        collection.task,
        imported["source"],
        imported["format"],
        columns or "-",
        ", ".join(imported["dropped"]) or "-",
    ]
    return f"| {' | '.join(cells)} |"


def _plus_minus(mean: float, std: float | None) -> str:
    return f"{mean:g}" if std is None else f"{mean:g} ± {std:g}"


def _experts(stored: list[Collection]) -> list[str]:
    tasks: dict[str, list[str]] = {}
    for collection in stored:
        given = collection.settings.get("expert")
        tasks.setdefault(f"{collection.expert} (`{given}`)" if given else collection.expert, []).append(collection.task)
    return [f"| {_cell(expert)} | {', '.join(names)} |" for expert, names in tasks.items()]


def _cell(text: str) -> str:
    """Return a text as it is written in a cell of a table."""
    return text.replace("|", "\\|")


def _versions(stored: list[Collection]) -> list[str]:
    """Return one line per package and version; where tasks differ in a package, each with its tasks."""
    tasks: dict[str, list[str]] = {}
    for collection in stored:
        for name, version in collection.settings["versions"].items():
            tasks.setdefault(f"{name} {version}", []).append(collection.task)
    names = [line.split()[0] for line in tasks]
    return [
        f"- {line}" if names.count(line.split()[0]) == 1 else f"- {line}: {', '.join(of)}" for line, of in tasks.items()
    ]
