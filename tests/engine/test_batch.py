"""`AgentBatch`: each agent's results equal those of a session."""

from __future__ import annotations

from collections import UserList
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import spaces
from helpers.batches import check_like_sessions, observations
from helpers.engines import BOX8, EPISODE, NATIVE, Load

from jat_engine import CacheFullError, InputError, JatEngine, SessionError

BACKENDS: list[dict[str, Any]] = [{"backend": "torch"}, *([{"backend": "cpu"}] if NATIVE else [])]


@pytest.mark.parametrize("options", BACKENDS, ids=lambda o: o["backend"])
@pytest.mark.parametrize("name", ["continuous_full", "babyai_greedy_full", "discrete_only", "atari_greedy_full"])
@pytest.mark.parametrize("window", [None, 9])
def test_like_sessions(name: str, window: int | None, options: dict[str, Any], load: Load) -> None:
    """On a CPU, an agent's result is bitwise independent of the rest of the batch."""
    steps = 30 if window is None and name == "continuous_full" else 12
    engine = load(dtype="float32", **options)
    check_like_sessions(engine, engine, name, steps, window, tolerance=0.0)


def test_sampling_is_repeatable(load: Load) -> None:
    """The batch's seed determines the actions, and different agents draw different ones."""
    engine = load(backend="torch", dtype="float32")
    episode = EPISODE["discrete_only"]
    runs = []
    for seed in (1, 1, 2):
        with engine.open_batch(4, 10, seed=seed) as batch:
            steps = [observations(episode, [t, t, t, t]) for t in range(6)]
            runs.append([batch.get_next_actions(**step, action_space=episode.space).tolist() for step in steps])
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    assert len({tuple(agent) for agent in zip(*runs[0], strict=True)}) > 1  # same observations, different draws


def test_sampling_follows_the_predictions(load: Load) -> None:
    engine = load(backend="torch", dtype="float32", max_cached_tokens=16 * 2 * 3000)
    with engine.open_batch(3000, 1, seed=0) as batch:
        actions, logits = batch.get_next_actions(
            continuous_observations=np.ones((3000, 4)), action_space=spaces.Discrete(4), return_predictions=True
        )
    expected = torch.tensor(logits[0]).softmax(0).numpy()
    assert np.abs(np.bincount(actions, minlength=4) / 3000 - expected).max() < 0.04


def test_bad_input_changes_nothing(load: Load) -> None:
    engine = load(backend="torch", dtype="float32")
    good = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)

    def play(between: bool) -> np.ndarray:
        with engine.open_batch(3, 8) as batch:
            batch.get_next_actions(continuous_observations=good[0], action_space=BOX8)
            if between:
                for arguments, error, message in [
                    ({"continuous_observations": good[0][:2]}, InputError, r"expected \[3, 1 to 376\] .*\(2, 4\)"),
                    ({"continuous_observations": good[0][0]}, InputError, r"got shape \(4,\)"),
                    (
                        {"continuous_observations": np.where(np.eye(3, 4) > 0, np.nan, good[0])},
                        InputError,
                        "got nan at 0 of agent 0",
                    ),
                    ({"continuous_observations": good[0] * 1e38}, InputError, "not finite for agents"),
                    ({"continuous_observations": good[0], "rewards": [1, 2]}, InputError, "rewards: expected 3 finite"),
                    ({"continuous_observations": good[0], "deterministic": 1}, InputError, "deterministic: expected"),
                    ({"continuous_observations": good[0], "action_space": 3}, InputError, "action_space: expected"),
                    ({}, InputError, "got none of them"),
                    ({"text_observations": ["a"] * 3}, InputError, "got text_observations"),
                    ({"continuous_observations": good[0][:, :2]}, SessionError, "expected 4 values as before"),
                    ({"discrete_observations": np.zeros((3, 212), int)}, SessionError, "got discrete_observations"),
                    (
                        {"continuous_observations": good[0], "action_space": spaces.Discrete(3)},
                        SessionError,
                        "action_space: expected continuous of size 8",
                    ),
                    ({"image_observations": np.zeros((3, 84, 84, 4))}, InputError, r"expected uint8 of shape \(3, 84"),
                    ({"discrete_observations": np.full((3, 212), 9999)}, InputError, r"values in \[0, "),
                    (
                        {"discrete_observations": np.zeros((3, 148), int), "text_observations": "go"},
                        InputError,
                        "text_observations: expected 3 strings",
                    ),
                    (
                        {"discrete_observations": np.zeros((3, 148), int), "text_observations": np.array("go")},
                        InputError,
                        "text_observations: expected 3 strings",
                    ),
                    ({"continuous_observations": torch.empty(3, 4, device="meta")}, InputError, "got Tensor of shape"),
                ]:
                    with pytest.raises(error, match=message):
                        batch.get_next_actions(**{"action_space": BOX8, **arguments})
                for which in ([3], [-1], np.ones(2, bool), [0.5], "all", [[0], [1, 2]]):
                    with pytest.raises(InputError, match="which: expected"):
                        batch.reset(which)
            actions: np.ndarray = batch.get_next_actions(continuous_observations=good[1], action_space=BOX8)
            return actions

    assert np.array_equal(play(False), play(True))


def test_missions_in_any_sequence(load: Load) -> None:
    """Such as the view of shared memory that an `AsyncVectorEnv` gives."""
    texts = ["go to the red ball", "pick up the key", "go"]
    integers = np.zeros((3, 148), np.int64)

    def predict(given: Any) -> np.ndarray:
        with load(backend="auto", dtype="float32").open_batch(3) as batch:
            predictions: np.ndarray = batch.get_next_actions(
                discrete_observations=integers,
                text_observations=given,
                action_space=spaces.Discrete(7),
                return_predictions=True,
            )[1]
            return predictions

    expected = predict(texts)
    for given in (tuple(texts), UserList(texts), np.array(texts), np.array(texts, object)):
        assert np.array_equal(predict(given), expected)
    for wrong in (UserList(texts[1:]), set(texts), dict.fromkeys(texts), "abc", b"abc"):
        with pytest.raises(InputError, match="text_observations: expected 3 strings"):
            predict(wrong)


def test_room_is_given_back(tiny_folder: Path) -> None:
    engine = JatEngine.from_pretrained(tiny_folder, device="cpu", dtype="float32", max_cached_tokens=160)
    before = engine.cache_stats
    for count in (0, True, 1.5):
        with pytest.raises(InputError, match="num_agents: expected"):
            engine.open_batch(count)  # type: ignore[arg-type]
    with pytest.raises(CacheFullError):
        engine.open_batch(100)
    batch = engine.open_batch(2)
    assert engine.cache_stats.reserved > 0
    batch.close()
    batch.close()
    with pytest.raises(SessionError, match="closed"):
        batch.get_next_actions(continuous_observations=np.zeros((2, 3)), action_space=BOX8)
    with pytest.raises(SessionError, match="closed"):
        batch.reset()
    engine.open_batch(2)  # dropped at once
    assert (engine.cache_stats.reserved, engine.cache_stats.used) == (before.reserved, before.used)


@pytest.mark.parametrize("options", BACKENDS, ids=lambda o: o["backend"])
def test_any_layout_of_arrays(options: dict[str, Any], load: Load) -> None:
    """Accept everything with the right numbers: transposed, strided, float64, bfloat16, tensors, lists."""
    engine = load(dtype="float32", **options)
    numbers = torch.tensor(np.random.default_rng(0).standard_normal((3, 4))).bfloat16().float().numpy()
    wide = np.zeros((3, 8), np.float32)
    wide[:, ::2] = numbers
    results = []
    for given in (
        numbers,
        np.asfortranarray(numbers),
        wide[:, ::2],
        numbers.astype(np.float64),
        torch.tensor(numbers.T.copy()).T,
        torch.tensor(numbers).bfloat16(),
        numbers.tolist(),
    ):
        with engine.open_batch(3, 4) as batch:
            results.append(batch.get_next_actions(continuous_observations=given, action_space=BOX8))
    assert all(np.array_equal(results[0], result) for result in results)


def test_a_refused_step_keeps_its_random_numbers(load: Load) -> None:
    """After a refused step, batch and session draw what they would have drawn without it."""
    engine, episode = load(backend="torch", dtype="float32"), EPISODE["continuous_discrete_action"]
    results = []
    for refused in (False, True):
        with engine.open_batch(2, 8, seed=5) as batch, engine.open_session(8, seed=6) as session:
            chosen: list[Any] = []
            for t in range(6):
                if refused and t == 3:
                    with pytest.raises(InputError, match="not finite"):
                        batch.get_next_actions(
                            continuous_observations=np.full((2, 4), 1e38), action_space=episode.space
                        )
                    with pytest.raises(InputError, match="not finite"):
                        session.get_next_action(continuous_observation=np.full(4, 1e38), action_space=episode.space)
                chosen += batch.get_next_actions(**observations(episode, [t, t]), action_space=episode.space).tolist()
                chosen.append(session.get_next_action(**episode.observation(t), action_space=episode.space))
            results.append(chosen)
    assert results[0] == results[1]


def test_actions_are_the_callers_own(load: Load) -> None:
    """Arrays passed in and returned can be overwritten without changing later steps."""
    engine = load(backend="torch", dtype="float32")
    good = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    results = []
    for spoil in (False, True):
        with engine.open_batch(3, 8) as batch:
            seen = good[0].copy()
            first = batch.get_next_actions(continuous_observations=seen, action_space=BOX8)
            if spoil:
                first.fill(7)
                seen.fill(7)
            results.append(batch.get_next_actions(continuous_observations=good[1], action_space=BOX8))
    assert np.array_equal(*results)


def test_actions_that_cannot_be_forced(load: Load) -> None:
    """Are refused, whatever they are, and change nothing."""
    engine = load(backend="torch", dtype="float32")
    for count in (1, 2):
        with engine.open_batch(count, 8) as batch:
            batch.get_next_actions(continuous_observations=np.ones((count, 4)), action_space=BOX8)
            state = batch.episodes.state
            for bad in (
                None,
                3,
                np.zeros(()),
                "left",
                np.zeros((count, 3)),
                [[10**400] * 8] * count,
                [[1e39] * 8] * count,
            ):
                with pytest.raises(InputError, match=r"actions?: expected"):
                    batch.force_actions(bad)
            assert batch.episodes.state is state
            batch.force_actions(torch.ones((count, 8), requires_grad=True))
