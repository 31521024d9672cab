"""Properties that all tasks of a domain share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from .kinds import Success


@dataclass(frozen=True)
class Domain:
    """Group of tasks with one simulator.

    Attributes:
        name: in the names of tasks, and on command lines.
        title: in the cards of models.
        packages: distributions whose version can change an episode.
        job_episodes: most episodes of a worker's job: a few seconds of play, which is what an interruption costs.
        shown_steps_per_second: steps of a second of video, at which an eye can follow.
        evaluation_options: of `make`, for returns that are comparable with the published ones.
        success: see `Task`.
        extra: of this package, with its simulator; None for a domain of another package.
        has_equal_sizes: True if all its tasks have observations and actions of the same sizes.
        needs_opengl: True if rendering a frame needs OpenGL.
    """

    name: str
    title: str
    packages: tuple[str, ...] = ("gymnasium",)
    job_episodes: int = 8
    shown_steps_per_second: int = 20
    evaluation_options: Mapping[str, Any] = field(default_factory=dict)
    success: Success | None = None
    extra: str | None = None
    has_equal_sizes: bool = False
    needs_opengl: bool = False


PUBLISHED: Mapping[str, Domain] = MappingProxyType(
    {
        "atari": Domain(
            "atari",
            "Atari 57",
            packages=("gymnasium", "ale-py", "opencv-python", "opencv-python-headless"),
            job_episodes=1,
            shown_steps_per_second=15,  # the game's own speed
            evaluation_options={"clip_reward": False},
            extra="atari",
            has_equal_sizes=True,
        ),
        "babyai": Domain(
            "babyai",
            "BabyAI",
            packages=("gymnasium", "minigrid"),
            job_episodes=32,
            shown_steps_per_second=3,
            success="positive_return",
            extra="babyai",
            has_equal_sizes=True,
        ),
        "metaworld": Domain(
            "metaworld",
            "Meta-World",
            packages=("gymnasium", "metaworld", "mujoco"),
            job_episodes=16,
            success="info",
            extra="metaworld",
            has_equal_sizes=True,
            needs_opengl=True,
        ),
        "mujoco": Domain(
            "mujoco",
            "MuJoCo",
            packages=("gymnasium", "mujoco"),
            job_episodes=4,
            extra="mujoco",
            needs_opengl=True,
        ),
    }
)
"""The published domains by name."""

DOMAINS = tuple(PUBLISHED)
"""Names of the published domains."""


def get_domain(name: str) -> Domain:
    """Return the domain of this name: a published one, or one with the defaults."""
    return PUBLISHED.get(name) or Domain(name, name)
