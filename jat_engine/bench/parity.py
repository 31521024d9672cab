"""Hold an agent's predictions against others', step by step, while both follow the same actions."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..testing.golden import Episode, relative_error

LIMITS = {"float32": 1e-4, "float16": 0.01, "bfloat16": 0.04, "int8": 0.12, "int4": 0.4}
"""dtype -> the relative error of an engine's predictions, over all steps, that rounding explains."""

EAGER_LIMIT = 0.06
"""The same for plain torch in bfloat16, which rounds after every operation."""


@dataclass
class Followed:
    """Predictions of an agent while it followed given actions.

    Attributes:
        predictions, expected: a vector a step.
        agreed: of steps with a discrete action, whether the greedy one was the reference's.
        seconds: of each call.
        episodes: how many were followed.
    """

    predictions: list[np.ndarray] = field(default_factory=list)
    expected: list[np.ndarray] = field(default_factory=list)
    agreed: list[bool] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    episodes: int = 0

    def __add__(self, other: Followed) -> Followed:
        return Followed(
            self.predictions + other.predictions,
            self.expected + other.expected,
            self.agreed + other.agreed,
            self.seconds + other.seconds,
            self.episodes + other.episodes,
        )

    @property
    def relative_error(self) -> float:
        """Norm of the difference over the norm of what was expected, over all steps; infinite if one is not finite."""
        if not all(np.isfinite(prediction).all() for prediction in self.predictions):
            return float("inf")
        return relative_error(np.concatenate(self.predictions), np.concatenate(self.expected))

    @property
    def agreement(self) -> float | None:
        """Share of greedy actions that are the reference's; None where there were none."""
        return float(np.mean(self.agreed)) if self.agreed else None


def predict(agent: Any, arguments: Iterable[dict[str, Any]]) -> list[np.ndarray]:
    """Return an agent's predictions, following its own actions.

    Args:
        agent: at the beginning of an episode.
        arguments: keyword arguments of each step.
    """
    steps = [agent.get_next_action(**step, return_prediction=True) for step in arguments]
    return [prediction for _, prediction in steps]


def follow(
    agent: Any,
    arguments: Iterable[dict[str, Any]],
    expected: Sequence[np.ndarray],
    actions: Sequence[Any] | None = None,
) -> Followed:
    """Play an episode greedily; each step follows on the reference's action.

    Args:
        agent: at the beginning of an episode, with `get_next_action` and `force_action`.
        arguments: keyword arguments of each step.
        expected: the reference's prediction of each step.
        actions: what the reference did; by default the greedy actions of `expected`.
    """
    found = Followed(expected=list(expected), episodes=1)
    for step, (given, wanted) in enumerate(zip(arguments, expected, strict=True)):
        given = {**given, "deterministic": True}
        begin = time.perf_counter()
        action, prediction = agent.get_next_action(**given, return_prediction=True)
        found.seconds.append(time.perf_counter() - begin)
        found.predictions.append(np.asarray(prediction))

        taken: Any = wanted.tolist()
        if isinstance(action, int):
            taken = int(np.argmax(wanted))
            found.agreed.append(action == taken)
        agent.force_action(taken if actions is None else actions[step])
    return found


def follow_episode(agent: Any, episode: Episode, steps: int | None = None) -> Followed:
    """Play a recorded episode, or its first `steps`, each step with the recorded action."""
    count = episode.steps if steps is None else min(steps, episode.steps)
    arguments = [
        {**episode.observation(t), "action_space": episode.space, "reward": episode.reward(t)} for t in range(count)
    ]
    return follow(agent, arguments, episode.predictions[:count], episode.actions)
