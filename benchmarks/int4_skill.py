"""Compare jat-mini with itself in every dtype of the native CPU backend, on the same episodes.

    python -m benchmarks.int4_skill [--work results/int4_skill] [--episodes 24]

Collects a small dataset, quantises jat-mini with and without it, plays what is missing of the runs, and writes
`benchmarks/results/int4_skill.{json,md}`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jat_engine.checkpoint_files import JAT_MINI
from jat_engine.cli import main as jat_engine
from jat_engine.cli.compare_agents import to_json, words
from jat_engine.cli.tables import interval, number
from jat_engine.recipes.jat_mini.recipe import TASKS
from jat_engine.runs.compare import Comparison, compare
from jat_engine.runs.database import read_run

RESULTS = Path(__file__).parent / "results" / "int4_skill"
FIRST = "float32"
DTYPES = {"bfloat16": "bfloat16", "int8": "int8", "int4": "int4, plain", "int4-calibrated": "int4, calibrated"}
"""Name of a run -> its name in the table. Calibrated ones play a checkpoint of `jat-engine quantize`."""

PONG = "atari-pong"
PONG_EPISODES = 6
DEMONSTRATIONS = {
    PONG: (4, 0.1),
    "babyai": (40, 0.1),
    "metaworld": (10, 0.3),
    "mujoco-pendulum": (4, 0.3),
    "mujoco-reacher": (20, 0.2),
}
"""Task or domain -> episodes that are collected for the calibration, and the noise in half of them."""

FIRST_DEMONSTRATION = 5_000_000
"""Seed; training and evaluation use lower ones."""


def run(*arguments: Any) -> None:
    code = jat_engine([str(argument) for argument in arguments])
    assert code == 0, f"jat-engine {' '.join(map(str, arguments))}: exit code {code}"


def collect(folder: Path) -> None:
    """Collect the episodes of the calibration."""
    for name in TASKS:
        count, noise = DEMONSTRATIONS.get(name) or DEMONSTRATIONS[name.partition("-")[0]]
        run(
            *("collect", "--tasks", name, "--output_dir", folder, "--num_episodes", count, "--noise", noise),
            *("--seed", FIRST_DEMONSTRATION, "--test_fraction", 0.2, "--num_workers", 1),
        )


def play(folder: Path, source: str | Path, dtype: str, episodes: int) -> None:
    """Play greedy episodes of jat-mini's tasks; fewer of Pong, whose episodes are long."""
    for count, tasks in ((episodes, [name for name in TASKS if name != PONG]), (PONG_EPISODES, [PONG])):
        run(
            *("eval", "--model_name_or_path", source, "--use_cpu", "--backend", "cpu", "--dtype", dtype),
            *("--deterministic", "--num_episodes", count, "--num_workers", 0, "--output_dir", folder),
            *("--tasks", *tasks),
        )


def write_markdown(found: Mapping[str, Comparison], episodes: int, dataset: Mapping[str, Any]) -> str:
    lines = [
        "# jat-mini in the dtypes of the native CPU backend",
        "",
        f"Up to {episodes} greedy episodes of each task, {PONG_EPISODES} of Pong; each row compares with float32 on "
        "the same seeds. Differences of mean returns have 95 % paired bootstrap intervals. Equal: how many of the "
        "episodes have the same observations, actions and rewards. p: sign test, by Holm's method for all tasks. The "
        "calibrated checkpoint is "
        f"that of `jat-engine quantize --model jat-mini` with {dataset['num_segments']} segments of episodes that "
        "`jat-engine collect` recorded with other seeds.",
        "",
        "| dtype | task | float32 | this | difference | equal | p | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, one in found.items():
        for task in one.tasks:
            cells = [DTYPES[name], task.pairs.task.name, number(task.means[0]), number(task.means[1])]
            cells += [interval(task.difference), f"{task.equal} of {len(task.pairs.first)}", f"{task.p_value:.2f}"]
            lines.append(f"| {' | '.join([*cells, words(task.verdict, FIRST, 'this')])} |")

    lines += [
        "",
        "| dtype | difference of the mean score by the published expert | of the IQM | of the success rate | verdict |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, one in found.items():
        scores = one.overall.scores
        assert scores is not None, "published tasks have scores"
        cells = [DTYPES[name], interval(scores.mean), interval(scores.iqm), interval(one.overall.success)]
        lines.append(f"| {' | '.join([*cells, words(one.verdict, FIRST, 'this')])} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=24)
    parser.add_argument("--work", type=Path, default=Path("results/int4_skill"), help="runs, dataset and checkpoint")
    parser.add_argument("--only", nargs="+", help="play these runs only, and write nothing")
    options = parser.parse_args()

    dataset, calibrated = options.work / "dataset", options.work / "jat-mini-int4"
    if not calibrated.exists():
        collect(dataset)
        run("quantize", "--model", JAT_MINI, "--dataset", dataset, "--output", calibrated)
    for name in options.only or (FIRST, *DTYPES):
        source = calibrated if name.endswith("-calibrated") else JAT_MINI
        play(options.work / name, source, name.partition("-")[0], options.episodes)
    if options.only:
        return 0

    first = read_run(options.work / FIRST)
    found = {name: compare(first, read_run(options.work / name), reference="expert") for name in DTYPES}
    field = json.loads((calibrated / "config.json").read_text())["jat_quantization"]
    content = {name: to_json(one) for name, one in found.items()} | {"calibration": field}
    RESULTS.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(write_markdown(found, options.episodes, field["calibration"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
