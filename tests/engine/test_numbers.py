"""Numbers of any type in observations, rewards and actions, whatever numpy is set to do about overflow."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.engines import BOX8, EPISODE, NATIVE, Load, play

from jat_engine import InputError, JatModel, JatProcessor

BACKENDS = ["torch", *(["cpu"] if NATIVE else [])]
VALUES = np.array([0.5, -1.25, 0.0, 2.0])
TINY, HUGE = 1e-300, 1e300


@pytest.fixture(params=["torch", "cpu", "model"])
def act(
    request: pytest.FixtureRequest, load: Load, tiny_model: JatModel, tiny_processor: JatProcessor
) -> Callable[..., Any]:
    """Return a function that takes the first two steps of an episode and returns the second one's prediction."""

    def run(observation: Any, reward: Any, action: Any) -> np.ndarray:
        given: list[Any] = []
        if request.param == "model":
            session, given = tiny_model.open_session(), [tiny_processor]
        else:
            session = load(backend=request.param, dtype="float32").open_session()
        with warnings.catch_warnings(), np.errstate(all="raise"):
            warnings.simplefilter("error")
            session.get_next_action(*given, continuous_observation=VALUES, action_space=BOX8)
            session.force_action(action)
            return session.get_next_action(
                *given, continuous_observation=observation, action_space=BOX8, reward=reward, return_prediction=True
            )[1]

    if request.param == "cpu" and NATIVE is None:
        pytest.skip("no native module")
    return run


OTHER_TYPES: list[Callable[[Any], Any]] = [
    np.float16,
    np.float32,
    np.longdouble,
    lambda x: np.asarray(x, ">f8"),
    lambda x: torch.tensor(x, dtype=torch.float16),
    lambda x: torch.tensor(x, dtype=torch.bfloat16),
    lambda x: torch.tensor(x, dtype=torch.float64, requires_grad=True),
    lambda x: np.asarray(x).tolist(),
    lambda x: np.stack([x, x], axis=-1)[..., 0],  # not contiguous
]


def test_types(act: Callable[..., Any]) -> None:
    actions = np.linspace(-1, 1, 8).round(1)
    expected = act(VALUES, 0.5, np.asarray(actions, np.float16).astype(float))
    for convert in OTHER_TYPES:
        actual = act(
            convert(VALUES), np.asarray(convert(0.5)) if convert is np.float16 else convert(0.5), np.float16(actions)
        )
        assert np.array_equal(actual, expected)


def test_what_overflows_in_the_model_is_refused(act: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="expected values of a size the model can compute with"):
        act(np.array([1e30, 1.0, -1e25, 0.0]), 0.5, np.zeros(8))


def test_what_is_too_small_is_zero(act: Callable[..., Any]) -> None:
    expected = act(np.zeros(4), 0.0, np.zeros(8))
    assert np.array_equal(act(np.full(4, TINY), TINY, np.full(8, TINY)), expected)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, HUGE])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_is_too_large_is_refused(value: float, dtype: Any, act: Callable[..., Any]) -> None:
    with np.errstate(over="ignore"):
        bad = np.array([1.0, value, 1.0, 1.0]).astype(dtype)
    fields = [(bad, 0.0, np.zeros(8)), (VALUES, bad[1], np.zeros(8)), (VALUES, 0.0, np.resize(bad, 8))]
    for name, arguments in zip(["continuous_observation", "reward", "action"], fields, strict=True):
        with pytest.raises(InputError, match=f"^{name}: expected .*finite"):
            act(*arguments)


@pytest.mark.parametrize("backend", BACKENDS)
def test_batches(backend: str, load: Load) -> None:
    engine = load(backend=backend, dtype="float32")

    def run(observations: Any, rewards: Any, actions: Any) -> np.ndarray:
        with engine.open_batch(2) as batch, warnings.catch_warnings(), np.errstate(all="raise"):
            warnings.simplefilter("error")
            batch.get_next_actions(continuous_observations=[VALUES, VALUES], action_space=BOX8)
            batch.force_actions(actions)
            predictions: np.ndarray = batch.get_next_actions(
                continuous_observations=observations, action_space=BOX8, rewards=rewards, return_predictions=True
            )[1]
            return predictions

    pair = np.stack([VALUES, 2 * VALUES])
    expected = run(pair, [0.5, 1.0], np.ones((2, 8)))
    for convert in OTHER_TYPES:
        assert np.array_equal(run(convert(pair), convert([0.5, 1.0]), convert(np.ones((2, 8)))), expected)
    zeros = run(np.zeros((2, 4)), np.zeros(2), np.zeros((2, 8)))
    assert np.array_equal(run(np.full((2, 4), TINY), np.full(2, TINY), np.full((2, 8), TINY)), zeros)
    for value in (np.inf, np.nan, HUGE):
        with pytest.raises(InputError, match=r"^continuous_observations: expected finite"):
            run(np.full((2, 4), value), None, np.ones((2, 8)))
        with pytest.raises(InputError, match=r"^rewards: expected 2 finite"):
            run(pair, np.full(2, value), np.ones((2, 8)))


@pytest.mark.parametrize("name", ["babyai_sampled", "atari_greedy_full"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_other_modalities(name: str, backend: str, load: Load) -> None:
    """Sampling included."""
    engine = load(backend=backend, dtype="float32")
    with engine.open_session(seed=0) as session, warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        for t in range(3):
            play(session, EPISODE[name], t)
