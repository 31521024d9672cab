"""Command `python -m jat_engine.recipes.jat_mini`: make jat-mini from scratch, with its scores and model card."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...checkpoint_files import JAT_MINI_FOLDER
from ...cli.arguments import note, parse
from ...machine import available_cores
from . import recipe

STAGES = ("collect", "train", "evaluate")


@dataclass
class MiniArguments:
    """Arguments of the command."""

    output_dir: str = field(
        default="build/jat-mini", metadata={"help": "folder for demonstrations and training runs (3 GB)"}
    )
    checkpoint_dir: str = field(default=str(JAT_MINI_FOLDER), metadata={"help": "folder for the checkpoint"})
    stages: list[str] = field(
        default_factory=lambda: list(STAGES), metadata={"help": "stages to run", "choices": list(STAGES)}
    )
    num_workers: int | None = field(
        default=None,
        metadata={"help": "number of processes for demonstrations and evaluation; by default one per core"},
    )
    num_episodes: int = field(default=30, metadata={"help": "episodes of each task in the evaluation"})


def run(argv: Sequence[str]) -> int:
    """Run the selected stages and return the exit code."""
    (arguments,) = parse("mini", "Make jat-mini from scratch.", [MiniArguments], argv)
    work, checkpoint = Path(arguments.output_dir), Path(arguments.checkpoint_dir)
    data, initial, trained = work / "data", work / "initial", work / "run"
    if "collect" in arguments.stages:
        recipe.collect(data, arguments.num_workers)
    if "train" in arguments.stages:
        if not (initial / "model.safetensors").exists():
            recipe.initialize(data / "0", initial)
        recipe.export(recipe.train(data, initial, trained), checkpoint)
    if "evaluate" in arguments.stages:
        from . import card, scores

        workers = arguments.num_workers or available_cores()
        measured = scores.evaluate(checkpoint, recipe.TASKS, arguments.num_episodes, workers, note)
        card.write(checkpoint, measured)
        recipe.store_demonstrators(checkpoint, measured)
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
