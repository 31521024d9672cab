"""Command `python -m jat_engine.recipes.text_demo`: train a small model on verses and pictures, and measure it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...cli.arguments import note, parse
from ...errors import InputError
from . import recipe, report
from .book import read_book
from .rooms import FIRST_LEARNED_SEED, make_rooms

STAGES = ("train", "evaluate")


@dataclass
class TextDemoArguments:
    """Arguments of the command."""

    output_dir: str = field(default="build/text-demo", metadata={"help": "folder for the checkpoint and report.json"})
    stages: list[str] = field(
        default_factory=lambda: list(STAGES), metadata={"help": "stages to run", "choices": list(STAGES)}
    )
    text_file: str | None = field(
        default=None,
        metadata={"help": "UTF-8 text to learn instead of the verses of pythonbible; blank lines separate chapters"},
    )
    max_steps: int = field(default=1000, metadata={"help": "steps of the training"})
    num_rooms: int = field(default=5000, metadata={"help": "rooms to learn"})
    num_held_out_rooms: int = field(default=200, metadata={"help": "rooms of the evaluation"})
    bf16: bool = field(default=False, metadata={"help": "train in bfloat16, faster on processors that compute in it"})


def run(argv: Sequence[str]) -> int:
    """Run the selected stages and return the exit code."""
    (arguments,) = parse("text_demo", "Train a small model on verses and pictures.", [TextDemoArguments], argv)
    folder = Path(arguments.output_dir)
    try:
        book = read_book(arguments.text_file)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    learned = make_rooms(range(FIRST_LEARNED_SEED, FIRST_LEARNED_SEED + arguments.num_rooms))

    if "train" in arguments.stages:
        examples = [example for room in learned for example in room.examples()]
        texts = [*book.learned, *(example.prompt + example.answer for example in examples)]
        processor = recipe.make_processor(texts)
        model = recipe.make_model(processor)
        recipe.train(model, processor, book.learned, learned, arguments.max_steps, bf16=arguments.bf16, note=note)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)

    if "evaluate" in arguments.stages:
        held_out = make_rooms(range(arguments.num_held_out_rooms), known=learned)
        measured = report.measure(folder, book, learned, held_out)
        (folder / "report.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
        print("\n".join(report.lines(measured)))
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
