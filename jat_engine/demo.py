"""`jat-engine demo`: one task of every domain, played by a model with random weights. It needs no checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from .cli.agent import default_device, describe, load_agent
from .cli.arguments import EpisodeArguments, ModelArguments, note, parse
from .cli.environment import evaluation_env, missing_simulators
from .cli.progress import play_episodes
from .cli.report import console, mean_std, milliseconds, number, print_table, score
from .config import PRESETS, JatConfig
from .engine import JatEngine
from .envs import TASKS, MissingSimulatorError, Task, expand_tasks
from .evaluation import EpisodeResult
from .modeling import JatModel
from .processing import JatProcessor

DEMO_TASKS = ("atari-pong", "babyai-go-to-local", "metaworld-reach", "mujoco-hopper")
"""One of each domain."""

MAX_STEPS = 100
"""Per episode: whole ones of every domain but Atari, whose games take thousands of steps."""


@dataclass
class DemoArguments(ModelArguments):
    model_name_or_path: str = field(
        default="", metadata={"help": "folder or hub name of a checkpoint instead of random weights"}
    )
    preset: str = field(
        default="small", metadata={"help": "size of the model with random weights", "choices": list(PRESETS)}
    )
    tasks: list[str] = field(default_factory=lambda: list(DEMO_TASKS), metadata={"help": "tasks or domains to play"})


@dataclass
class DemoEpisodes(EpisodeArguments):
    max_steps: int | None = field(
        default=MAX_STEPS, metadata={"help": "stop each episode after so many steps; the table says which"}
    )


def random_agent(preset: str = "small", seed: int = 0) -> tuple[JatModel, JatProcessor]:
    """A model of a published size with random weights, the same for the same seed, and a processor without files."""
    config = JatConfig.from_preset(preset)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = JatModel(config).eval()
    return model, JatProcessor.byte_level(config)


def random_engine(arguments: DemoArguments, seed: int) -> tuple[JatEngine | JatModel, JatProcessor | None]:
    """What plays without a checkpoint: an engine, or with `--backend reference` a `JatModel` and its processor."""
    model, processor = random_agent(arguments.preset, seed)
    if arguments.backend == "reference":
        model.to(default_device(arguments.use_cpu))  # type: ignore[arg-type]  # transformers' wrapper is mistyped
        return model, processor
    device = "cpu" if arguments.use_cpu else "auto"
    engine = JatEngine.from_model(model, processor, device=device, dtype=arguments.dtype, backend=arguments.backend)
    return engine, None


def run(argv: Sequence[str]) -> int:
    arguments, episodes = parse("demo", "Play one task of every domain.", [DemoArguments, DemoEpisodes], argv)
    episodes.check()
    names = expand_tasks(arguments.tasks)
    missing = missing_simulators(names)
    tasks = [TASKS[name] for name in names if TASKS[name].domain not in missing]
    if not tasks:
        raise MissingSimulatorError("; ".join(missing.values()))
    for domain, reason in missing.items():
        note(f"{domain} is left out: {reason}")

    if arguments.model_name_or_path:
        agent, processor = load_agent(arguments)
        title = arguments.model_name_or_path
    else:
        agent, processor = random_engine(arguments, episodes.seed)
        title = f"random weights, size {arguments.preset}: the returns show nothing but that everything runs"
    rows = [_row(task, play(agent, processor, task, episodes)) for task in tasks]
    print_table(title, {name: [row[name] for row in rows] for name in rows[0]}, left=["task"])
    console().print(f"random, expert: published mean returns; {describe(agent)}")
    return 0


def play(agent: Any, processor: Any, task: Task, arguments: EpisodeArguments) -> list[EpisodeResult]:
    """All episodes of one task."""
    env = evaluation_env(task)
    try:
        return list(play_episodes(agent, processor, env, arguments.num_episodes, task=task, **arguments.options))
    finally:
        env.close()


def _row(task: Task, episodes: list[EpisodeResult]) -> dict[str, str]:
    returns = [episode.return_ for episode in episodes]
    steps = sum(episode.length for episode in episodes)
    p50, p99 = np.percentile(np.concatenate([episode.latencies_us for episode in episodes]), [50, 99])
    capped = any(episode.capped for episode in episodes)
    return {
        "task": task.name,
        "return": mean_std(returns) if len(returns) > 1 else number(returns[0]),
        "random": score(task.random),
        "expert": score(task.expert),
        "steps": f"{steps} (capped)" if capped else str(steps),
        "latency p50": milliseconds(float(p50)),
        "p99": milliseconds(float(p99)),
    }
