"""Playing published tasks with an agent, and scoring what comes out."""

from .results import Results
from .rollout import Agent, EpisodeResult, run_episode, run_episodes
from .scores import Interval, interquartile_mean, normalize, undefined_reason
from .video import MissingVideoError, VideoWriter, write_grid

__all__ = [
    "Agent",
    "EpisodeResult",
    "Interval",
    "MissingVideoError",
    "Results",
    "VideoWriter",
    "interquartile_mean",
    "normalize",
    "run_episode",
    "run_episodes",
    "undefined_reason",
    "write_grid",
]
