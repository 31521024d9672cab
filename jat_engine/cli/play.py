"""Command `jat-engine play`: watch or record an agent on one task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..envs import TASKS, expand_tasks
from ..evaluation import EpisodeResult, VideoWriter, normalize, undefined_reason
from ..evaluation.environment import evaluation_env, require_display, require_simulators
from ..evaluation.progress import play_episodes
from ..evaluation.video import ffmpeg
from .agent import load_agent
from .arguments import EpisodeArguments, ModelArguments, note, parse
from .report import milliseconds, number


@dataclass(kw_only=True)
class PlayArguments(EpisodeArguments):
    """Arguments of `jat-engine play`."""

    task: str = field(metadata={"help": "name of one task, see `jat-engine tasks`"})
    render: bool = field(default=False, metadata={"help": "show a window"})
    save_video: str | None = field(
        default=None, metadata={"help": "mp4 file to write, with all episodes one after another"}
    )

    def check(self) -> None:
        """Check the values, and that flags do not exclude each other.

        Raises:
            ValueError: a value is wrong, or two flags exclude each other.
        """
        super().check()
        if expand_tasks([self.task]) != [self.task]:
            raise ValueError(f"--task: expected the name of one task, got {self.task!r}")
        if self.render and self.save_video:
            raise ValueError("--render and --save_video: expected one of them; an environment renders one way")


def run(argv: Sequence[str]) -> int:
    """Run `jat-engine play` and return its exit code."""
    model_arguments, arguments = parse(
        "play", "Watch or record an agent on one task.", [ModelArguments, PlayArguments], argv
    )
    arguments.check()
    task = TASKS[arguments.task]
    video = None
    if arguments.save_video:
        ffmpeg()
    if arguments.render:
        require_display(task)
    require_simulators([task.name], render=bool(arguments.save_video))
    agent, processor = load_agent(model_arguments)

    render_mode = "human" if arguments.render else "rgb_array" if arguments.save_video else None
    env = evaluation_env(task, render_mode)
    if arguments.save_video:
        video = VideoWriter(arguments.save_video, env.metadata["render_fps"])
    reason = undefined_reason(task)
    if reason is not None:
        note(f"{task.name}: expert-normalised score {reason}")

    try:
        episodes = play_episodes(
            agent,
            processor,
            env,
            arguments.num_episodes,
            task=task,
            on_frame=video.append if video else None,
            **arguments.options,
        )
        for index, episode in enumerate(episodes):
            scores = normalize([episode.return_], task)
            print(describe(index, episode, None if scores is None else float(scores[0])), flush=True)
    finally:
        env.close()
        if video is not None:
            video.close()

    if video is not None:
        note(f"wrote {video.path}: {video.num_frames} frames")
    return 0


def describe(index: int, episode: EpisodeResult, normalized: float | None) -> str:
    """Return a line about an episode.

    Args:
        index: number of the episode, from 0.
        episode: its result.
        normalized: its expert-normalised score; None if undefined.
    """
    p50, p99 = np.percentile(episode.latencies_us, [50, 99])
    parts = [
        f"episode {index + 1}: return {number(episode.return_)}",
        f"expert-normalised {'undefined' if normalized is None else number(normalized)}",
        f"{episode.length} steps" + (" (stopped by --max_steps)" if episode.capped else ""),
        f"latency p50 {milliseconds(p50)}, p99 {milliseconds(p99)}",
        f"seed {episode.seed}",
    ]
    return ", ".join(parts)
