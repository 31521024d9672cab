"""Evaluation of agents on the published tasks: episodes, scores, result files and videos.

Example:
    >>> from jat_engine import JatEngine
    >>> from jat_engine.envs import get_task, make
    >>> from jat_engine.evaluation import normalize, run_episodes
    >>> task = get_task("babyai-go-to-obj")
    >>> engine, env = JatEngine.from_pretrained("jat-mini"), make(task.name)
    >>> returns = [episode.return_ for episode in run_episodes(engine, None, env, 10, task=task, seed=0)]
    >>> scores = normalize(returns, task)
"""

from .grid import write_grid
from .rollout import Agent, EpisodeResult, run_episode, run_episodes
from .scores import main_reference, normalize, reference_words, undefined_reason
from .statistics import Interval, interquartile_mean
from .video import MissingVideoError, VideoError, VideoWriter

__all__ = [
    "Agent",
    "EpisodeResult",
    "Interval",
    "MissingVideoError",
    "VideoError",
    "VideoWriter",
    "interquartile_mean",
    "main_reference",
    "normalize",
    "reference_words",
    "run_episode",
    "run_episodes",
    "undefined_reason",
    "write_grid",
]
