"""Comparison of a batch's agents with sessions."""

from __future__ import annotations

from typing import Any

import numpy as np

from helpers.engines import EPISODE
from jat_engine import JatEngine
from jat_engine.testing import golden
from jat_engine.testing.golden import relative_error

KEYS = {
    "continuous_observation": "continuous_observations",
    "discrete_observation": "discrete_observations",
    "text_observation": "text_observations",
    "image_observation": "image_observations",
}


def observations(episode: golden.Episode, times: list[int]) -> dict[str, Any]:
    """Return a batch's observations: agent i sees step times[i] of the episode."""
    each = [episode.observation(t) for t in times]
    return {KEYS[key]: [one[key] for one in each] for key in each[0]}


def check_like_sessions(
    engine: JatEngine, reference: JatEngine, name: str, steps: int, window: int | None, tolerance: float
) -> None:
    """Assert that a batch's results equal those of sessions of `reference`.

    Three agents start at different steps of an episode; the second is reset on the way.
    """
    episode = EPISODE[name]
    offsets = [0, 3, 7]
    batch = engine.open_batch(3, window)
    sessions = [reference.open_session(window) for _ in offsets]
    for t in range(steps):
        if t == 3:
            batch.reset([1])
            sessions[1].reset()
        times = [t + offset for offset in offsets]
        rewards = [episode.reward(time + 1) or 0.0 for time in times]
        actions, predictions = batch.get_next_actions(
            **observations(episode, times),
            action_space=episode.space,
            rewards=rewards,
            deterministic=True,
            return_predictions=True,
        )
        for index, session in enumerate(sessions):
            action, prediction = session.get_next_action(
                **episode.observation(times[index]),
                action_space=episode.space,
                reward=rewards[index],
                deterministic=True,
                return_prediction=True,
            )
            assert relative_error(predictions[index], prediction) <= tolerance
            if isinstance(action, int):
                assert actions[index] == action
            else:
                assert np.array_equal(actions[index], predictions[index])
        assert batch.num_cached_tokens.tolist() == [session.num_cached_tokens for session in sessions]
    batch.close()
    for session in sessions:
        session.close()
