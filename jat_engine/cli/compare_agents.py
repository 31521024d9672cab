"""Command `jat-engine compare-agents`: compare two agents on the same seeds."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..evaluation.scores import REFERENCES
from . import evaluate

_OPTIONS = ("dtype", "backend")
_EVAL = ("tasks", "task_module", "num_episodes", "seed", "max_steps", "num_workers", "num_envs")


@dataclass(kw_only=True)
class CompareAgentsArguments:
    """Arguments of `jat-engine compare-agents`."""

    tasks: list[str] = field(default_factory=list, metadata={"help": "tasks of the comparison; see `jat-engine eval`"})
    task_module: str | None = field(default=None, metadata={"help": "module to import, which registers tasks"})
    num_episodes: int = field(default=30, metadata={"help": "episodes per task"})
    seed: int | None = field(default=None, metadata={"help": "seed of the first episode; see `jat-engine eval`"})
    deterministic: bool = field(default=False, metadata={"help": "choose the most likely discrete action"})
    max_steps: int | None = field(default=None, metadata={"help": "stop each episode after this number of steps"})
    num_workers: str = field(default=evaluate.AUTO, metadata={"help": "processes for environments"})
    num_envs: str = field(default=evaluate.AUTO, metadata={"help": "environments of each process"})
    output_dir: str = field(
        default="results/compared", metadata={"help": "folder for the runs of checkpoints, each in a folder of its own"}
    )
    reference: str | None = field(
        default=None,
        metadata={
            "help": "reference of the scores; by default that which all tasks have",
            "choices": [None, *REFERENCES],
        },
    )
    control: bool = field(
        default=False, metadata={"help": "play A a second time, and fail unless that shows no difference"}
    )
    max_regression: float | None = field(
        default=None,
        metadata={"help": "exit with code 1 if B has lost more than this many points, hundredths of a score"},
    )
