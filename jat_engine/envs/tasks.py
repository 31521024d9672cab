"""Table of the 157 published tasks.

Names, environment ids and returns come from arXiv 2402.09844 and its repository, huggingface/jat.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from .domains import PUBLISHED
from .kinds import Observation, usual_window
from .task import Score, Task

_OTHER_IDS = {"Pusher-v4": "Pusher-v5"}  # v4 does not run on MuJoCo 3; jat_engine.envs.pusher makes v5 equal to it
_LOSS_WEIGHTS = {"mujoco": 10.0, "metaworld": 50.0}
_TASK_LOSS_WEIGHTS = {"mujoco-pendulum": 50.0, "mujoco-doublependulum": 20.0}


def _score(mean: str, std: str) -> Score | None:
    return Score(float(mean), float(std) if std else None) if mean else None


def _read() -> dict[str, Task]:
    with (Path(__file__).parent / "published_tasks.csv").open(newline="") as file:
        return {row["task"]: _task(row) for row in csv.DictReader(file)}


def _task(row: Mapping[str, str]) -> Task:
    name, domain = row["task"], PUBLISHED[row["domain"]]
    observation: Observation = row["observation"]  # type: ignore[assignment]  # the table has these kinds
    return Task(
        name=name,
        maker=f"jat_engine.envs.{domain.name}:make",
        observation=observation,
        action="continuous" if observation == "continuous" else "discrete",
        context_window=usual_window(observation),
        domain=domain.name,
        env_id=_env_id(domain.name, row["upstream_env_id"]),
        published_env_id=row["upstream_env_id"],
        loss_weight=_TASK_LOSS_WEIGHTS.get(name, _LOSS_WEIGHTS.get(domain.name, 1.0)),
        random=_score(row["random_mean"], row["random_std"]),
        expert=_score(row["expert_mean"], row["expert_std"]),
        human=_score(row["human_mean"], ""),
        success=domain.success,
        action_size=int(row["action_size"]),
    )


def _env_id(domain: str, published: str) -> str:
    return published.replace("-v2", "-v3") if domain == "metaworld" else _OTHER_IDS.get(published, published)


TASKS: Mapping[str, Task] = MappingProxyType(_read())
"""The published tasks by name, in the published order. `registry` has these and all others."""

TASK_NAME_TO_ENV_ID: dict[str, str] = {task.name: task.published_env_id for task in TASKS.values()}
"""Published ids of the environments by task name, under the published name of this table."""


def get_task_names() -> list[str]:
    """Return the names of the published tasks, as the published function of this name."""
    return list(TASKS)
