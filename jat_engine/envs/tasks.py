"""The 157 published tasks, one row each.

Names, environment ids and returns: arXiv 2402.09844 and its repository, huggingface/jat.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from .errors import UnknownTaskError

Domain = Literal["atari", "babyai", "metaworld", "mujoco"]
DOMAINS: tuple[Domain, ...] = ("atari", "babyai", "metaworld", "mujoco")

_WINDOWS: dict[str, int] = {"atari": 32, "babyai": 256, "metaworld": 256, "mujoco": 256}
_OTHER_IDS = {"Pusher-v4": "Pusher-v5"}  # refuses today's mujoco; jat_engine.envs.mujoco makes v5 equal to it


@dataclass(frozen=True)
class Score:
    """Published returns: mean, and standard deviation where it was published."""

    mean: float
    std: float | None


@dataclass(frozen=True)
class Task:
    """One published task.

    Attributes:
        name: as published, e.g. "metaworld-reach".
        domain: "atari", "babyai", "metaworld" or "mujoco".
        env_id: the id it is built from here.
        published_env_id: the id it was built from when the agent was published.
        observation: "image", "discrete+text" or "continuous".
        context_window: tokens that the published evaluation looks back on.
        random, expert, human: published returns; human ones exist for Atari only.
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
"""Every task by its name, in the published order."""


def expand_tasks(names: Iterable[str]) -> list[str]:
    """Task names, domain names and "all" -> task names, each once, in the order given.

    Raises:
        UnknownTaskError: names what came and the nearest that exist.
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
    """The error for a name that is no task's."""
    near = [x for x in difflib.get_close_matches(str(name), [*TASKS, *DOMAINS], n=3, cutoff=0.5) if x != name]
    hint = f"did you mean {', '.join(near)}?" if near else f"domains are {', '.join(DOMAINS)}"
    return UnknownTaskError(f"task: no task is named {name!r}; {hint} (`jat-engine tasks` lists all)")
