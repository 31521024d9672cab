"""Command `jat-engine lm-eval`: evaluate the language model on tasks of EleutherAI's lm-eval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..atomic_io import check_writable, write_json
from .agent import check_source
from .arguments import ModelArguments, note, parse
from .evaluate_texts import load_writer
from .streams import say

RESULTS = "lm_eval_results.json"


@dataclass
class LmEvalArguments:
    """Arguments of `jat-engine lm-eval`."""

    tasks: list[str] = field(metadata={"help": "tasks or groups of lm-eval, or YAML files of own tasks"})
    include_path: str | None = field(default=None, metadata={"help": "folder with the YAML files of further tasks"})
    num_fewshot: int | None = field(default=None, metadata={"help": "examples before each question"})
    limit: int | None = field(default=None, metadata={"help": "only this many examples of each task"})
    seed: int = field(default=0, metadata={"help": "seed of lm-eval's random numbers and of sampling"})
    output_dir: str | None = field(default=None, metadata={"help": f"folder for {RESULTS}"})
    log_samples: bool = field(default=False, metadata={"help": f"also write every answer to {RESULTS}"})

    def check(self) -> None:
        """Check the values.

        Raises:
            ValueError: a value is out of range; the message names the flag.
        """
        for name, least in (("num_fewshot", 0), ("limit", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name}: expected at least {least}, got {value}")
        if self.include_path is not None and not Path(self.include_path).is_dir():
            raise ValueError(f"--include_path: expected a folder, got {self.include_path}")
        if self.output_dir is not None:
            check_writable("--output_dir", Path(self.output_dir))
        if self.log_samples and self.output_dir is None:
            raise ValueError("--log_samples: expected --output_dir with it, got none")


def run(argv: Sequence[str]) -> int:
    """Run `jat-engine lm-eval` and return its exit code."""
    model_arguments, arguments = parse(
        "lm-eval",
        "Evaluate the language model of a checkpoint on tasks of EleutherAI's lm-eval.",
        [ModelArguments, LmEvalArguments],
        argv,
    )
    check_source("--model_name_or_path", model_arguments.model_name_or_path)
    arguments.check()
    from ..evaluation.lm_eval_adapter import JatLM, evaluate, find_tasks

    manager = find_tasks(arguments.tasks, arguments.include_path)
    with load_writer(model_arguments) as engine:
        results = evaluate(
            JatLM(engine, seed=arguments.seed),
            arguments.tasks,
            manager,
            num_fewshot=arguments.num_fewshot,
            limit=arguments.limit,
            seed=arguments.seed,
            log_samples=arguments.log_samples,
        )
    say(results.table)
    if arguments.output_dir is not None:
        path = Path(arguments.output_dir) / RESULTS
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, results.content, indent=2)
        note(f"wrote {path}")
    return 0
