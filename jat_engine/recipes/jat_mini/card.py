"""Model card of jat-mini, written from its measured scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ...atomic_io import write_json, write_text
from ...envs import TASKS
from ...evaluation.statistics import mean_interval
from ...installation import cpu_name, versions
from . import recipe

AGENTS = ("engine_float32", "engine_bfloat16", "engine_int8", "reference")
GOALS = {"babyai": 0.9, "mujoco": 0.9, "metaworld": 0.8}
"""Goal of each task's mean normalised score, by domain; the demonstrator's is 1."""

PONG_GOAL = 10.0
"""Goal of Pong's mean return."""

_TEMPLATE = Path(__file__).parent / "card.md"


def write(folder: Path, scores: dict[str, Any]) -> None:
    """Write `scores.json` and `README.md` into the folder of the checkpoint.

    Args:
        folder: folder of the checkpoint.
        scores: result of `evaluate`.
    """
    write_json(folder / "scores.json", {"tasks": scores, "machine": cpu_name(), "versions": versions()}, indent=1)
    write_text(folder / "README.md", render(folder))


def render(folder: Path) -> str:
    """Return the model card of the checkpoint in a folder, from its weights, configuration and `scores.json`."""
    from ... import JatConfig

    record = json.loads((folder / "scores.json").read_text())
    scores = record["tasks"]
    config = JatConfig.from_pretrained(folder)
    weights = folder / "model.safetensors"
    episodes = len(next(iter(scores.values()))["engine_float32"])
    installed = record["versions"]

    return _TEMPLATE.read_text(encoding="utf-8").format(
        tags=", ".join(scores),
        parameters=_num_parameters(weights) / 1e6,
        megabytes=weights.stat().st_size / 1e6,
        count=len(scores),
        episodes=episodes,
        last_seed=episodes - 1,
        scores=_table(
            ["task", "random", "jat-mini", "demonstrator", "published expert", "normalised by its demonstrator"],
            [_score_row(name, row) for name, row in scores.items()],
        ),
        agents=_table(
            ["task", *(agent.replace("_", " ") for agent in AGENTS), "same episodes"],
            [
                [name, *(_interval(row[agent]) for agent in AGENTS), f"{row['same_actions']} of {episodes}"]
                for name, row in scores.items()
            ],
        ),
        tolerance=SAME_TOLERANCE,
        shortfalls=_shortfalls(scores),
        demonstrations=f"{sum(t.num_episodes for phase in recipe.PHASES for t in phase.tasks.values()):,} episodes",
        steps=f"{sum(phase.training['max_steps'] for phase in recipe.PHASES):,}",
        hidden=config.hidden_size,
        layers=config.num_layers,
        heads=config.num_heads,
        positions=config.max_position_embeddings,
        machine=f"{record['machine']}; torch {installed['torch']}, transformers {installed['transformers']}",
    )


SAME_TOLERANCE = 1e-3
"""Largest difference of continuous actions that count as equal."""


def normalized(row: dict[str, Any], agent: str = "engine_float32") -> np.ndarray:
    """Return an agent's normalised scores, float64 [episodes].

    0 is the mean return of the random policy and 1 that of the demonstrator, on the same seeds.

    Args:
        row: returns of a task, by agent.
        agent: a key of `row`.
    """
    low, high = np.mean(row["random"]), np.mean(row["demonstrator"])
    scores: np.ndarray = (np.asarray(row[agent], np.float64) - low) / (high - low)
    return scores


def short_of_goal(name: str, row: dict[str, Any]) -> str | None:
    """Return a line about a task whose score is below its goal; None if it reaches the goal.

    Args:
        name: name of the task.
        row: returns of the task, by agent.
    """
    if name == "atari-pong":
        mean = float(np.mean(row["engine_float32"]))
        return None if mean >= PONG_GOAL else f"a mean return of {mean:.1f}, asked for: {PONG_GOAL:g}"
    mean, goal = float(normalized(row).mean()), GOALS[TASKS[name].domain]
    return None if mean >= goal else f"{mean:.2f} normalised by its demonstrator, asked for: {goal}"


def _shortfalls(scores: dict[str, Any]) -> str:
    lines = [f"- {name}: {short}" for name, row in scores.items() if (short := short_of_goal(name, row))]
    if not lines:
        return ""
    return "\n".join(["", "Short of what was aimed at:", "", *lines, ""])


def _score_row(name: str, row: dict[str, Any]) -> list[str]:
    expert = TASKS[name].expert
    return [
        name,
        _number(np.mean(row["random"])),
        _interval(row["engine_float32"]),
        _number(np.mean(row["demonstrator"])),
        _number(expert.mean) if expert else "",
        _interval(normalized(row)),
    ]


def _interval(values: Any) -> str:
    found = mean_interval(values)
    assert found is not None, "there is an episode"
    return f"{_number(found.value)} [{_number(found.low)}, {_number(found.high)}]"


def _number(value: Any) -> str:
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def _num_parameters(weights: Path) -> int:
    from safetensors import safe_open

    with safe_open(weights, framework="np") as file:
        return sum(int(np.prod(file.get_slice(name).get_shape())) for name in file.keys())  # noqa: SIM118 (not a dict)
