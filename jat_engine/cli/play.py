"""Command `jat-engine play`: watch or record an agent on one task."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..checkpoint.trained_tasks import TrainedTask, read_trained_tasks
from ..evaluation import EpisodeResult, main_reference, normalize, reference_words, undefined_reason
from ..evaluation.checks import check_sizes
from ..evaluation.environment import evaluation_env, require_display, require_simulators
from ..evaluation.progress import play_episodes
from ..evaluation.rollout import Agent
from ..evaluation.tile import RecordTiles
from ..evaluation.video import EpisodeVideo, check_video, video_rate
from .agent import check_source, load_agent, load_config
from .arguments import EpisodeArguments, TaskArguments, failure, note, parse
from .served import AgentArguments, SeededAgent, find_served
from .served_tasks import fetch_trained_tasks
from .streams import say, terminable
from .tables import milliseconds, number


@dataclass(kw_only=True)
class PlayArguments(EpisodeArguments):
    """Arguments of `jat-engine play`."""

    task: str = field(metadata={"help": "name of one task, see `jat-engine tasks`"})
    render: bool = field(default=False, metadata={"help": "show a window"})
    save_video: str | None = field(
        default=None, metadata={"help": "mp4 or gif file to write, with all episodes one after another"}
    )

    def check(self) -> None:
        """Check the values, and that flags do not exclude each other.

        Raises:
            ValueError: a value is wrong, or two flags exclude each other.
        """
        super().check()
        if self.render and self.save_video:
            raise ValueError("--render and --save_video: expected one of them; an environment renders one way")


def run(argv: Sequence[str]) -> int:
    """Run `jat-engine play`.

    Returns:
        The exit code: 1 if an episode or the video failed.
    """
    model_arguments, choice, arguments = parse(
        "play", "Watch or record an agent on one task.", [AgentArguments, TaskArguments, PlayArguments], argv
    )
    arguments.check()
    served = find_served(model_arguments)
    trained: list[TrainedTask] = []
    if served is None:
        source = model_arguments.model_name_or_path
        check_source("--model_name_or_path", source)
        trained = read_trained_tasks(source, {"cache_dir": model_arguments.cache_dir})
    else:
        trained = fetch_trained_tasks(served.url, served.api_key)
    task = choice.find_one(arguments.task, trained)
    if arguments.save_video:
        check_video("--save_video", arguments.save_video)
    if arguments.render:
        require_display(task)
    config = load_config(model_arguments) if served is None else served.config
    require_simulators([task], render=bool(arguments.save_video))
    check_sizes([task], config, "--task")
    agent: Agent
    if served is None:
        agent, processor = load_agent(model_arguments)
    else:
        agent, processor = SeededAgent(served.open(arguments.seed), arguments.seed), None

    video = EpisodeVideo(arguments.save_video) if arguments.save_video else None
    render_mode = "human" if arguments.render else "rgb_array" if arguments.save_video else None
    env = evaluation_env(task, render_mode)
    if video is not None:
        fps = video_rate(task, env)
        env = RecordTiles(env, task, video.start(fps), fps=fps)
    words, reason = reference_words(main_reference(task), [task]), undefined_reason(task)
    if reason is not None:
        note(f"{task.name}: return normalised {words} {reason}")

    finished, problem = 0, ""
    try:
        with terminable():
            episodes = play_episodes(
                agent,
                processor,
                env,
                arguments.num_episodes,
                task=task,
                **arguments.options,
            )
            for episode in episodes:
                scores = normalize([episode.return_], task)
                say(describe(finished, episode, None if scores is None else float(scores[0]), words))
                finished += 1
    except Exception as error:  # of a simulator, such as of a window that was closed: any class
        problem = failure(task, finished, arguments, error)
    finally:
        with contextlib.suppress(Exception):  # a simulator that has failed
            env.close()
        if video is not None:
            video.finish()
            if video.num_frames and not video.error:
                note(f"wrote {video.path}: {video.num_frames} frames")

    problems = [problem, f"--save_video: {video.error}" if video is not None and video.error else ""]
    for text in filter(None, problems):
        note(f"jat-engine: error: {text}")
    return int(any(problems))


def describe(index: int, episode: EpisodeResult, normalized: float | None, words: str) -> str:
    """Return a line about an episode.

    Args:
        index: number of the episode, from 0.
        episode: its result.
        normalized: its normalised return; None if undefined.
        words: by which reference it is normalised, as `reference_words` says it.
    """
    p50, p99 = np.percentile(episode.latencies_us, [50, 99])
    parts = [
        f"episode {index + 1}: return {number(episode.return_)}",
        f"normalised {words} {'undefined' if normalized is None else number(normalized)}",
        f"{episode.length} steps" + (" (stopped by --max_steps)" if episode.capped else ""),
        f"latency p50 {milliseconds(p50)}, p99 {milliseconds(p99)}",
        f"seed {episode.seed}",
    ]
    return ", ".join(parts)
