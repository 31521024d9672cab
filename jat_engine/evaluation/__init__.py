"""Evaluation of agents on the published tasks: episodes, scores, result files and videos.

Each public name is imported at its first use: processes that play environments alone need neither torch nor scipy.

Example:
    >>> from jat_engine import JatEngine
    >>> from jat_engine.envs import get_task, make
    >>> from jat_engine.evaluation import normalize, run_episodes
    >>> task = get_task("babyai-go-to-obj")
    >>> engine, env = JatEngine.from_pretrained("jat-mini"), make(task.name)
    >>> returns = [episode.return_ for episode in run_episodes(engine, None, env, 10, task=task, seed=0)]
    >>> scores = normalize(returns, task)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .grid import write_grid
    from .rollout import Agent, EpisodeResult, run_episode, run_episodes
    from .scores import main_reference, normalize, reference_words, undefined_reason
    from .statistics import Interval, interquartile_mean
    from .video import MissingVideoError, VideoError, VideoWriter

_MODULES = {
    "Agent": "rollout",
    "EpisodeResult": "rollout",
    "Interval": "statistics",
    "MissingVideoError": "video",
    "VideoError": "video",
    "VideoWriter": "video",
    "interquartile_mean": "statistics",
    "main_reference": "scores",
    "normalize": "scores",
    "reference_words": "scores",
    "run_episode": "rollout",
    "run_episodes": "rollout",
    "undefined_reason": "scores",
    "write_grid": "grid",
}

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


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value  # the next use finds it here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
