"""Table of the 157 published tasks.

Names, environment ids and returns come from arXiv 2402.09844 and its repository, huggingface/jat.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from ..errors import UnknownTaskError
from ..keywords import did_you_mean

Domain = Literal["atari", "babyai", "metaworld", "mujoco"]
DOMAINS: tuple[Domain, ...] = ("atari", "babyai", "metaworld", "mujoco")

_WINDOWS: dict[str, int] = {"atari": 32, "babyai": 256, "metaworld": 256, "mujoco": 256}
_OTHER_IDS = {"Pusher-v4": "Pusher-v5"}  # v4 does not run on MuJoCo 3; jat_engine.envs.pusher makes v5 equal to it


@dataclass(frozen=True)
class Score:
    """Published return: mean and standard deviation; None if the deviation was not published."""

    mean: float
    std: float | None


@dataclass(frozen=True)
class Task:
    """Published task.

    Attributes:
        name: the published name, e.g. "metaworld-reach".
        domain: "atari", "babyai", "metaworld" or "mujoco": which simulator builds it.
        env_id: id of the environment that `make` builds.
        published_env_id: id of the environment in the published code.
        observation: "image", "discrete+text" or "continuous".
        context_window: number of past tokens that the agent sees in the published evaluation.
        random, expert, human: published returns of the random policy, the expert and humans. Human returns exist for
            Atari only.
    """

    name: str
    domain: Domain
    env_id: str
    published_env_id: str
    observation: Literal["image", "discrete+text", "continuous"]
    context_window: int
    random: Score | None
    expert: Score | None
    human: Score | None


def _score(mean: str, std: str) -> Score | None:
    return Score(float(mean), float(std) if std else None) if mean else None


def _read() -> dict[str, Task]:
    with (Path(__file__).parent / "published_tasks.csv").open(newline="") as file:
        return {
            row["task"]: Task(
                name=row["task"],
                domain=row["domain"],  # type: ignore[arg-type]
                env_id=_env_id(row["domain"], row["upstream_env_id"]),
                published_env_id=row["upstream_env_id"],
                observation=row["observation"],  # type: ignore[arg-type]
                context_window=_WINDOWS[row["domain"]],
                random=_score(row["random_mean"], row["random_std"]),
                expert=_score(row["expert_mean"], row["expert_std"]),
                human=_score(row["human_mean"], ""),
            )
            for row in csv.DictReader(file)
        }


def _env_id(domain: str, published: str) -> str:
    return published.replace("-v2", "-v3") if domain == "metaworld" else _OTHER_IDS.get(published, published)


TASKS: Mapping[str, Task] = MappingProxyType(_read())
"""All tasks by name, in the published order."""

TASK_NAME_TO_ENV_ID: dict[str, str] = {task.name: task.published_env_id for task in TASKS.values()}
"""Published ids of the environments by task name, under the published name of this table."""


def get_task_names() -> list[str]:
    """Return the names of all tasks, as the published function of this name."""
    return list(TASKS)


def expand_tasks(names: Iterable[str]) -> list[str]:
    """Expand domain names and "all" to task names.

    Args:
        names: names of tasks and domains, and "all".

    Returns:
        Names of tasks, each once, in the given order.

    Raises:
        UnknownTaskError: a name is unknown; the message suggests similar ones.

    Example:
        >>> expand_tasks(["atari-pong", "mujoco"])[:2]
        ['atari-pong', 'mujoco-ant']
    """
    if isinstance(names, str):
        raise UnknownTaskError(f"tasks: expected a list of names, got the string {names!r}")
    expanded: dict[str, None] = {}
    for name in names:
        if name in TASKS:
            expanded[name] = None
        elif name == "all" or name in DOMAINS:
            expanded.update(dict.fromkeys(t.name for t in TASKS.values() if name in ("all", t.domain)))
        else:
            raise unknown_task(name)
    return list(expanded)


def unknown_task(name: object) -> UnknownTaskError:
    """Return the error for an unknown task name, with similar names in its message."""
    known = [known for known in (*TASKS, *DOMAINS) if known != name]
    hint = did_you_mean(str(name), known, f"domains are {', '.join(DOMAINS)}", most=3, cutoff=0.5)
    return UnknownTaskError(f"task: no task is named {name!r}; {hint} (`jat-engine tasks` lists all)")
