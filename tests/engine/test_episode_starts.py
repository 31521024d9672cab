"""An episode's first step: which reward counts in it, and which agents of a batch `reset` begins one for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.engines import BOX8, Load

from jat_engine import InputError, JatModel, JatProcessor

FIRST, SECOND = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)


def predict(agent: Any, observation: np.ndarray, reward: float | None, *processor: Any) -> np.ndarray:
    prediction: np.ndarray = agent.get_next_action(
        *processor, continuous_observation=observation, action_space=BOX8, reward=reward, return_prediction=True
    )[1]
    return prediction


def test_a_session_ignores_the_first_reward(load: Load) -> None:
    engine = load(backend="auto", dtype="float32")
    with engine.open_session() as session, engine.open_session() as other:
        for _ in range(2):
            assert np.array_equal(predict(session, FIRST, 100.0), predict(other, FIRST, None))
            assert not np.array_equal(predict(session, SECOND, 100.0), predict(other, SECOND, None))
            session.reset()
            other.reset()

        step = [FIRST, FIRST]
        observations = [{"continuous_observation": one} for one in step]
        answers = engine.get_next_actions([session, other], observations, [100.0, None], BOX8, return_predictions=True)
        assert np.array_equal(answers[0][1], answers[1][1])


def test_a_batch_ignores_first_rewards(load: Load) -> None:
    """Of the agents that begin, and of those only."""
    engine = load(backend="auto", dtype="float32")

    def run(rewards: list[list[float] | None]) -> list[np.ndarray]:
        with engine.open_batch(3) as batch:
            predictions = []
            for t, given in enumerate(rewards):
                if t == 2:
                    batch.reset([False, True, False])
                step = np.stack([FIRST, SECOND, FIRST + t])
                predictions.append(
                    batch.get_next_actions(
                        continuous_observations=step, action_space=BOX8, rewards=given, return_predictions=True
                    )[1]
                )
            return predictions

    expected = run([None, [1, 2, 3], [4, 0, 6]])
    actual = run([[7, 8, 9], [1, 2, 3], [4, 5, 6]])
    assert all(np.array_equal(a, b) for a, b in zip(actual, expected, strict=True))
    changed = run([None, [1, 2, 3], [4, 0, 7]])[2]
    assert [np.array_equal(a, b) for a, b in zip(changed, expected[2], strict=True)] == [True, True, False]


def test_the_drop_in_agents_use_it(load: Load, tiny_model: JatModel, tiny_processor: JatProcessor) -> None:
    """As published: engine and model agree, also in the second episode. A session of the model ignores it."""
    engine = load(backend="auto", dtype="float32")
    with engine.open_session() as session:
        without = predict(session, FIRST, None)
    for _ in range(2):
        engine.reset_rl()
        tiny_model.reset_rl()
        actual, expected = predict(engine, FIRST, 3.0), predict(tiny_model, FIRST, 3.0, tiny_processor)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
        assert np.abs(actual - without).max() > 0.01
    own = predict(tiny_model.open_session(), FIRST, 3.0, tiny_processor)
    np.testing.assert_allclose(own, without, rtol=1e-4, atol=1e-5)


MASKS: list[Any] = [
    [True, False, True],
    (1, 0, 1),
    [1.0, 0.0, 1.0],
    *(np.array([1, 0, 1], dtype) for dtype in (bool, np.uint8, np.int32, np.int64, np.float32)),
    *(
        torch.tensor([1, 0, 1], dtype=dtype)
        for dtype in (torch.bool, torch.uint8, torch.int64, torch.float32, torch.bfloat16)
    ),
]


def reset_agents(load: Load, num_agents: int, which: Any) -> list[bool]:
    with load(backend="auto", dtype="float32").open_batch(num_agents) as batch:
        for _ in range(2):
            batch.get_next_actions(continuous_observations=np.zeros((num_agents, 4)), action_space=BOX8)
        batch.reset(which)
        return (batch.num_cached_tokens == 0).tolist()


@pytest.mark.parametrize("which", MASKS, ids=str)
def test_masks_of_any_type(which: Any, load: Load) -> None:
    assert reset_agents(load, 3, which) == [True, False, True]
    assert reset_agents(load, 3, which[:0]) == [False] * 3  # no indices


@pytest.mark.parametrize(
    ("num_agents", "which", "expected"),
    [
        (3, None, [True, True, True]),
        (3, [0, 0, 0], [False, False, False]),
        (3, [1, 1, 1], [True, True, True]),
        (3, [2, 0], [True, False, True]),
        (3, [0, 2, 1], [True, True, True]),
        (3, np.flatnonzero([False, True, False]), [False, True, False]),
        (2, [1, 1], [True, True]),
        (2, [0, 0], [False, False]),
        (2, [1], [False, True]),
        (2, np.array([False, True]), [False, True]),
        (2, np.array([0.0, 1.0]), [False, True]),
        (1, [1], [True]),
        (1, [False], [False]),
    ],
)
def test_masks_and_indices(num_agents: int, which: Any, expected: list[bool], load: Load) -> None:
    assert reset_agents(load, num_agents, which) == expected


@pytest.mark.parametrize(
    ("num_agents", "which", "message"),
    [
        (1, [0], "could be both; give a mask of bools"),
        (2, [0, 1], "could be both; give a mask of bools"),
        (2, np.array([1, 0]), "could be both; give a mask of bools"),
        (3, [True, False], "expected a bool mask of 3 agents"),
        (3, [[True, False, True]], "expected a bool mask of 3 agents"),
        (3, [3], "distinct indices below that"),
        (3, [-1], "distinct indices below that"),
        (3, [2, 2], "distinct indices below that"),
        (3, [0, 1, 1, 0], "distinct indices below that"),
        (3, [0.5, 0, 1], "expected a bool mask"),
        (3, [np.nan, 0, 1], "expected a bool mask"),
        (3, [None, None, True], "expected a bool mask"),
        (3, "all", "expected a bool mask"),
        (3, True, "expected a bool mask"),
        (3, 1, "expected a bool mask"),
        (3, [[0], [1, 2]], "expected a bool mask"),
        (3, torch.empty(3, dtype=torch.bool, device="meta"), "expected a bool mask"),
    ],
)
def test_what_could_be_meant_otherwise_is_refused(num_agents: int, which: Any, message: str, load: Load) -> None:
    with pytest.raises(InputError, match=f"which: .*{message}"):
        reset_agents(load, num_agents, which)
