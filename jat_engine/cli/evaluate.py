"""Command `jat-engine eval`: score an agent on tasks, as published."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..envs import TASKS, Task, expand_tasks
from ..evaluation import Agent, Results, VideoWriter, normalize, undefined_reason, write_grid
from ..evaluation.environment import evaluation_env, require_simulators
from ..evaluation.progress import play_episodes
from ..evaluation.video import ffmpeg
from .agent import describe, load_agent, load_model
from .arguments import EpisodeArguments, ModelArguments, note, parse
from .report import console, interval, mean_std, milliseconds, print_table, score


@dataclass(kw_only=True)
class EvalArguments(EpisodeArguments):
    """Arguments of `jat-engine eval`."""

    num_episodes: int = field(default=2, metadata={"help": "episodes per task"})
    tasks: list[str] = field(
        metadata={"help": "tasks, domains (atari babyai metaworld mujoco) or all; see `jat-engine tasks`"}
    )
    output_dir: str | None = field(
        default=None,
        metadata={"help": "folder for the results; by default the model's folder, or one with its name on the hub"},
    )
    save_video: bool = field(
        default=False, metadata={"help": "write a video of each task, and replay.mp4 with all of them"}
    )
    push_to_hub: bool = field(default=False, metadata={"help": "upload model and results afterwards"})
    repo_id: str | None = field(default=None, metadata={"help": "repository on the hub to upload to"})

    def check(self) -> None:
        """Check the values, and that the video encoder is installed if it is needed.

        Raises:
            ValueError: a value is out of range, or a flag is missing.
            MissingVideoError: the encoder is not installed.
        """
        super().check()
        if self.push_to_hub and not self.repo_id:
            raise ValueError("--push_to_hub needs --repo_id owner/name")
        if self.save_video:
            ffmpeg()


def run(argv: Sequence[str]) -> int:
    """Run `jat-engine eval` and return its exit code."""
    model_arguments, arguments = parse(
        "eval", "Score an agent on tasks, as published.", [ModelArguments, EvalArguments], argv
    )
    arguments.check()
    tasks = [TASKS[name] for name in expand_tasks(arguments.tasks)]
    folder = Path(arguments.output_dir or model_arguments.model_name_or_path)
    require_simulators((task.name for task in tasks), render=arguments.save_video)
    _check_writable(folder)
    agent, processor = load_agent(model_arguments)
    folder.mkdir(parents=True, exist_ok=True)

    results = Results(
        folder,
        num_episodes=arguments.num_episodes,
        arguments=asdict(model_arguments) | asdict(arguments),
        device=describe(agent),
    )
    videos = []
    try:
        for task in tqdm(tasks, desc="evaluation", unit="task", disable=None):
            video = folder / "videos" / f"{task.name}.mp4" if arguments.save_video else None
            evaluate_task(agent, processor, task, results, arguments, video)
            if video is not None:
                videos.append(video)
        results.complete = True
    finally:  # also after Ctrl-C, to keep the episodes that were finished
        if results.evaluations():
            results.write()

    files = [results.results_path]
    if videos:
        files.append(write_grid(videos, folder / "replay.mp4"))
    print_results(results, tasks)
    note(f"wrote {', '.join(map(str, [results.evaluations_path, *files]))}")
    if arguments.push_to_hub:
        from ..evaluation.hub import push_to_hub

        model, processor = load_model(model_arguments)
        url = push_to_hub(model, processor, arguments.repo_id, evaluations=results.evaluations_path, files=files)
        note(f"pushed to {url}")
    return 0


def _check_writable(folder: Path) -> None:
    """Check that results can be written to a folder, before anything is loaded or played.

    Raises:
        ValueError: they cannot.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise ValueError(f"--output_dir: expected a folder that can be written to, got {folder} ({error})") from None


def evaluate_task(
    agent: Agent,
    processor: Any,
    task: Task,
    results: Results,
    arguments: EvalArguments,
    video: Path | None = None,
) -> None:
    """Play the episodes of a task, add them to `results`, and write the result files.

    Args:
        agent: the agent.
        processor: passed to the agent; None for an engine.
        task: the task to play.
        results: the results so far.
        arguments: arguments of the command.
        video: mp4 file to write; None for no video.
    """
    env = evaluation_env(task, "rgb_array" if video else None)
    with contextlib.closing(env), contextlib.ExitStack() as stack:
        on_frame = None
        if video is not None:
            on_frame = stack.enter_context(VideoWriter(video, env.metadata["render_fps"])).append
        for episode in play_episodes(
            agent,
            processor,
            env,
            arguments.num_episodes,
            task=task,
            position=1,
            on_frame=on_frame,
            **arguments.options,
        ):
            results.add(task, episode)

    results.write()
    returns = results.evaluations()[task.name]
    tqdm.write(f"{task.name}: return {mean_std(returns)}, expert-normalised {normalized(returns, task)}")


def normalized(returns: Sequence[float], task: Task) -> str:
    """Return mean and standard deviation of the expert-normalised scores as text, or "undefined"."""
    scores = normalize(returns, task)
    return "undefined" if scores is None else mean_std(scores)


def print_results(results: Results, tasks: list[Task]) -> None:
    """Print a table with one row per task, then one line per domain."""
    rows = []
    for task in tasks:
        episodes = results.episodes(task.name)
        returns = [episode.return_ for episode in episodes]
        latency_us = float(np.median(np.concatenate([episode.latencies_us for episode in episodes])))
        rows.append(
            {
                "task": task.name,
                "domain": task.domain,
                "episodes": f"{len(episodes)}{'*' if any(e.capped for e in episodes) else ''}",
                "return": mean_std(returns),
                "random": score(task.random),
                "expert": score(task.expert),
                "normalised": normalized(returns, task),
                "p50 latency": milliseconds(latency_us),
            }
        )

    columns = {name: [row[name] for row in rows] for name in rows[0]}
    print_table("Evaluation", columns, left=["task", "domain"], optional=["domain", "random", "expert"])
    if any("*" in cell for cell in columns["episodes"]):
        console().print("* stopped by --max_steps")

    for domain in dict.fromkeys(task.domain for task in tasks):
        names = [task.name for task in tasks if task.domain == domain]
        defined = [name for name in names if undefined_reason(TASKS[name]) is None]
        value = interval(results.iqm(names))
        console().print(f"{domain}: expert-normalised IQM {value}, from {len(defined)} of {len(names)} task(s)")
