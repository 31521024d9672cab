"""Write the tables of the examples' agents from the folders that examples/*.sh leave in examples/runs.

    for name in cartpole pendulum catch errands mixed; do sh examples/$name.sh; done
    python -m benchmarks.own_tasks

Written to benchmarks/results/own_tasks.{json,md}: returns of all episodes, demonstrations, and seconds of training.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from jat_engine.bench.report import markdown, number
from jat_engine.recipes.jat_mini.card import bootstrap

ROOT = Path(__file__).parents[1]
RUNS, RESULTS = ROOT / "examples" / "runs", ROOT / "benchmarks" / "results" / "own_tasks"

TASKS = {"cartpole": "gym:CartPole-v1", "pendulum": "gym:Pendulum-v1", "catch": "catch", "errands": "errands"}
"""Example -> its task."""

DTYPES = ("float32", "bfloat16", "int8")
AGENTS = ("before", "alone", "mixed")

HEAD = """# Tasks of one's own, learned by jat-mini

Written by `python -m benchmarks.own_tasks` from what the scripts in [examples](../../examples/README.md) measured.
Returns are means over episodes with seeds that no demonstration has, with 95 % bootstrap intervals; discrete actions
are the most likely ones. *Normalised*: 0 is the random policy, 1 the expert.
The first table is of the engine in float32, the last one in bfloat16.
"""


def read(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file."""
    values: dict[str, Any] = json.loads(path.read_text())
    return values


def played(folder: Path, task: str) -> dict[str, Any]:
    """Return what an evaluation measured of a task."""
    row = read(folder / "results.json")["tasks"][task]
    return {
        "returns": row["returns"],
        "first_seed": row["seeds"][0],
        "seconds": read(folder / "timing.json")["tasks"][task]["seconds"],
    }


def example(name: str) -> dict[str, Any]:
    """Return what an example measured."""
    folder, task = RUNS / name, TASKS[name]
    stored = read(folder / "data" / task.replace(":", "--") / "collection.json")
    training = read(folder / "agent" / "train_results.json")
    return {
        "task": task,
        "demonstrations": len(stored["seeds"]),
        "steps": sum(stored["lengths"]),
        "seeds": [min(stored["seeds"]), max(stored["seeds"])],
        "expert": stored["scores"]["expert"],
        "random": stored["scores"]["random"],
        "training_steps": read(folder / "agent" / "trainer_state.json")["global_step"],
        "training_seconds": training["train_runtime"],
        "agents": {dtype: played(folder / dtype, task) for dtype in DTYPES if (folder / dtype).exists()},
    }


def kept() -> dict[str, Any]:
    """Return the scores of jat-mini's tasks before and after the fine-tuning, by task."""
    tables = {agent: read(RUNS / "mixed" / agent / "results.json")["tasks"] for agent in AGENTS}
    tasks = [task for task in tables["before"] if task in tables["alone"]]
    return {task: {agent: tables[agent][task]["returns"] for agent in AGENTS} for task in tasks}


def shown(returns: list[float]) -> str:
    """Return a mean with its interval, in words for a table."""
    low, high = bootstrap(np.asarray(returns))
    return f"{number(float(np.mean(returns)))} [{number(low)}, {number(high)}]"


def write(values: dict[str, Any]) -> None:
    """Write the results and the tables."""
    learned: dict[str, list[str]] = {}
    dtypes: dict[str, list[str]] = {}
    for row in values["examples"].values():
        low, high = row["random"]["mean"], row["expert"]["mean"]
        returns = row["agents"]["float32"]["returns"]
        scores = [(value - low) / (high - low) for value in returns]
        cells = {
            "task": row["task"],
            "demonstrations": f"{row['demonstrations']} ({row['steps']:,} steps)",
            "training": f"{row['training_steps']} steps, {row['training_seconds'] / 60:.1f} min",
            "random": number(low),
            "expert": number(high),
            "episodes": str(len(returns)),
            "return": shown(returns),
            "normalised": shown(scores),
        }
        for column, cell in cells.items():
            learned.setdefault(column, []).append(cell)
        if len(row["agents"]) > 1:
            agents = {dtype: shown(agent["returns"]) for dtype, agent in row["agents"].items()}
            for column, cell in {"task": row["task"], **agents}.items():
                dtypes.setdefault(column, []).append(cell)

    table = values["kept"]
    keeping = {
        "task": list(table),
        "episodes": [str(len(row["before"])) for row in table.values()],
        **{agent: [shown(row[agent]) for row in table.values()] for agent in AGENTS},
    }
    text = (
        f"{HEAD}\n{markdown(learned)}\n\nThe same agents by weights of the engine:\n\n{markdown(dtypes)}\n\n"
        "jat-mini's tasks before it learned gym:CartPole-v1, after (alone), and after a training that also had "
        f"demonstrations of all of them (mixed):\n\n{markdown(keeping)}\n\n"
        f"gym:CartPole-v1 by the mixed agent: {shown(values['mixed_cartpole'])}.\n\n{values['machine']}\n"
    )
    RESULTS.with_suffix(".json").write_text(json.dumps(values, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(text)


def main() -> None:
    """Read the runs and write the results."""
    mixed = read(RUNS / "mixed" / "mixed" / "results.json")
    versions = {name: mixed["versions"][name] for name in ("torch", "transformers", "gymnasium", "minigrid")}
    write(
        {
            "machine": f"Measured on: {mixed['device'].partition('cpu: ')[2]}, shared with other work; "
            + ", ".join(f"{name} {version}" for name, version in versions.items()),
            "examples": {name: example(name) for name in TASKS},
            "kept": kept(),
            "mixed_cartpole": mixed["tasks"]["gym:CartPole-v1"]["returns"],
        }
    )


if __name__ == "__main__":
    main()
