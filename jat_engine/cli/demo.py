"""`jat-engine demo`: one task of every domain, played by jat-mini, with a short video. It downloads nothing."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checkpoint.trained_tasks import read_trained_tasks
from ..checkpoint_files import JAT_MINI
from ..config import PRESETS, JatConfig
from ..engine.engine import JatEngine
from ..envs import MissingSimulatorError, Task
from ..errors import one_line
from ..evaluation import EpisodeResult, MissingVideoError, VideoError, main_reference, normalize, write_grid
from ..evaluation.checks import check_sizes
from ..evaluation.environment import evaluation_env, missing_simulators
from ..evaluation.progress import play_episodes
from ..evaluation.scores import reference_score
from ..evaluation.tile import RecordTiles
from ..evaluation.video import H264_FORMATS, EpisodeVideo, check_video, ffmpeg, video_rate
from ..model.modeling import JatModel
from ..model.processing import JatProcessor
from .agent import default_device, describe, load_agent, load_config
from .arguments import EpisodeArguments, ModelArguments, TaskArguments, failure, note, parse
from .streams import say, terminable
from .tables import mean_std, milliseconds, number, print_table, score

DEMO_TASKS = ("atari-pong", "babyai-go-to-obj", "metaworld-drawer-open", "mujoco-reacher")
"""One of each domain, all known to jat-mini."""

MAX_SECONDS = 20
"""Length of each task's part of the video."""


@dataclass
class DemoArguments(ModelArguments):
    """The agent, the tasks, and the video."""

    model_name_or_path: str = field(
        default=JAT_MINI, metadata={"help": "folder or hub name of another checkpoint than jat-mini"}
    )
    preset: str | None = field(
        default=None, metadata={"help": "a model of this size with random weights instead", "choices": list(PRESETS)}
    )
    tasks: list[str] = field(default_factory=lambda: list(DEMO_TASKS), metadata={"help": "tasks or domains to play"})
    video: str = field(default="demo.mp4", metadata={"help": "where the video goes; '' for none"})


@dataclass
class DemoEpisodes(EpisodeArguments):
    """Options of the episodes; greedy by default."""

    deterministic: bool = field(default=True, metadata={"help": "the most likely discrete action"})


def random_agent(preset: str = "small", seed: int = 0) -> tuple[JatModel, JatProcessor]:
    """Return a model of a published size, with the random weights of `seed`, and a processor that needs no files."""
    config = JatConfig.from_preset(preset)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = JatModel(config).eval()
    return model, JatProcessor.byte_level(config)


def random_engine(preset: str, arguments: DemoArguments, seed: int) -> tuple[JatEngine | JatModel, JatProcessor | None]:
    """Return an engine with random weights, or with `--backend reference` a `JatModel` and its processor."""
    model, processor = random_agent(preset, seed)
    if arguments.backend == "reference":
        model.to(default_device(arguments.use_cpu))  # type: ignore[arg-type]  # transformers' wrapper is mistyped
        return model, processor
    device = "cpu" if arguments.use_cpu else "auto"
    engine = JatEngine.from_model(model, processor, device=device, dtype=arguments.dtype, backend=arguments.backend)
    return engine, None


def run(argv: Sequence[str]) -> int:
    """Run the command and return its exit code: 1 if a task or the video failed."""
    arguments, choice, episodes = parse(
        "demo", "Play one task of every domain.", [DemoArguments, TaskArguments, DemoEpisodes], argv
    )
    episodes.check()
    trained = (
        []
        if arguments.preset is not None
        else read_trained_tasks(arguments.model_name_or_path, {"cache_dir": arguments.cache_dir})
    )
    wanted = choice.find_trained(arguments.tasks, trained)
    if arguments.video:
        with contextlib.suppress(MissingVideoError):  # said at each task
            check_video("--video", arguments.video, list(H264_FORMATS))
    config = JatConfig.from_preset(arguments.preset) if arguments.preset is not None else load_config(arguments)
    missing = missing_simulators(wanted)
    tasks = [task for task in wanted if task.name not in missing]
    if not tasks:
        raise MissingSimulatorError("; ".join(dict.fromkeys(missing.values())))
    for reason in dict.fromkeys(missing.values()):
        note(f"{', '.join(name for name in missing if missing[name] == reason)} left out: {reason}")
    check_sizes(tasks, config)

    if arguments.preset is not None:
        agent, processor = random_engine(arguments.preset, arguments, episodes.seed)
        title = f"random weights, size {arguments.preset}: the returns show nothing but that everything runs"
    else:
        agent, processor = load_agent(arguments)
        title = arguments.model_name_or_path
    rows: list[dict[str, str]] = []
    parts: list[Path] = []
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as folder, terminable():
        for task in tasks:
            part = Path(folder) / f"{task.folder_name}.mp4" if arguments.video else None
            played: list[EpisodeResult] = []
            try:
                played.extend(play(agent, processor, task, episodes, part))
            except Exception as error:  # of a simulator: any class
                problems.append(failure(task, len(played), episodes, error))
            if played:
                rows.append(_row(task, played))
            if part is not None and part.exists():
                parts.append(part)
        if rows:
            print_table(title, {name: [row[name] for row in rows] for name in rows[0]}, left=["task"])
            say(f"random, expert: published mean returns, 0 and 1 of the score; {describe(agent)}")
        try:
            if parts:
                note(f"wrote {write_grid(parts, arguments.video, repeat=True)}")
        except (VideoError, RuntimeError, ValueError) as error:
            problems.append(f"--video: {one_line(error)}")
    for problem in problems:
        note(f"jat-engine: error: {problem}")
    return int(bool(problems))


def play(
    agent: Any, processor: Any, task: Task, arguments: EpisodeArguments, video: Path | None = None
) -> Iterator[EpisodeResult]:
    """Play all episodes of one task, and write the first seconds to `video` where frames can be rendered."""
    recorder = None
    try:
        if video is not None:
            ffmpeg()
            missing_simulators([task], render=True)
            recorder = EpisodeVideo(video)
    except (ValueError, MissingVideoError) as error:
        note(f"no video of {task.name}: {error}")

    env = evaluation_env(task, "rgb_array" if recorder else None)
    if recorder is not None:
        fps = video_rate(task, env)
        env = RecordTiles(env, task, recorder.start(fps), fps=fps, max_tiles=round(MAX_SECONDS * fps))
    try:
        with contextlib.closing(env):
            yield from play_episodes(agent, processor, env, arguments.num_episodes, task=task, **arguments.options)
    finally:
        if recorder is not None:
            recorder.finish()
            if recorder.error:
                note(f"no video of {task.name}: {recorder.error}")


def _row(task: Task, episodes: list[EpisodeResult]) -> dict[str, str]:
    returns = [episode.return_ for episode in episodes]
    scores = normalize(returns, task)
    steps = sum(episode.length for episode in episodes)
    p50, p99 = np.percentile(np.concatenate([episode.latencies_us for episode in episodes]), [50, 99])
    capped = any(episode.capped for episode in episodes)
    return {
        "task": task.name,
        "return": mean_std(returns) if len(returns) > 1 else number(returns[0]),
        "random": score(task.random),
        "expert": score(reference_score(task, main_reference(task))),
        "score": "undefined" if scores is None else number(float(scores.mean())),
        "steps": f"{steps} (capped)" if capped else str(steps),
        "latency p50": milliseconds(float(p50)),
        "p99": milliseconds(float(p99)),
    }
