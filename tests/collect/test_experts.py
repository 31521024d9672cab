"""Check that experts solve their tasks, and that their demonstrations have the published columns."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from jat_engine.collect.experts import EXPERT_TASKS, Demonstration, demonstrate, make_expert
from jat_engine.envs import TASKS
from jat_engine.evaluation.environment import evaluation_env

for simulator in ("ale_py", "minigrid", "metaworld", "mujoco"):
    pytest.importorskip(simulator)


def show(name: str, seed: int = 0, noise: float = 0.0) -> Demonstration:
    task = TASKS[name]
    with contextlib.closing(evaluation_env(task)) as env:
        return demonstrate(env, make_expert(task, env), task=task, seed=seed, noise=noise)


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("babyai-go-to-local", 0.8),
        ("babyai-unlock-local", 0.8),
        ("metaworld-drawer-open", 0.8),
        ("metaworld-reach", 0.8),  # the hidden goal is known to the expert
        ("mujoco-doublependulum", 0.99),
        ("mujoco-pendulum", 0.99),
        ("mujoco-reacher", 0.8),
        ("mujoco-swimmer", 0.8),
    ],
)
def test_an_expert_comes_near_the_published_one(name: str, share: float) -> None:
    task, shown = TASKS[name], show(name)
    assert task.expert is not None
    assert task.random is not None
    assert (shown.return_ - task.random.mean) / (task.expert.mean - task.random.mean) > share
    assert shown.success in (True, None)


def test_the_pong_expert_wins_points_from_both_phases_of_the_paddle() -> None:
    task = TASKS["atari-pong"]
    with contextlib.closing(evaluation_env(task)) as env:
        expert = make_expert(task, env)
        phases = set()
        for seed in (0, 1):
            observation, _ = env.reset(seed=seed)
            expert.reset()
            phases.add(env.unwrapped.ale.getEpisodeFrameNumber() % 2)  # type: ignore[attr-defined]
            total = 0.0
            for _ in range(1500):
                action = expert.act(observation)
                expert.executed(action)
                observation, reward, *_ = env.step(action)
                total += float(reward)
                assert reward >= 0, "a point lost"
            assert total >= 1
    assert phases == {0, 1}


COLUMNS: dict[str, dict[str, tuple[type, tuple[int, ...]]]] = {
    "babyai-go-to-obj": {"discrete_observations": (np.int64, (148,)), "discrete_actions": (np.int64, ())},
    "metaworld-door-close": {
        "continuous_observations": (np.float32, (39,)),
        "continuous_actions": (np.float32, (4,)),
    },
    "mujoco-reacher": {"continuous_observations": (np.float32, (11,)), "continuous_actions": (np.float32, (2,))},
}


@pytest.mark.parametrize(("name", "kinds"), COLUMNS.items())
def test_columns_are_the_published_ones(name: str, kinds: dict[str, tuple[type, tuple[int, ...]]]) -> None:
    shown = show(name)
    expected = {*kinds, "rewards"} | ({"text_observations"} if name.startswith("babyai") else set())
    assert set(shown.columns) == expected
    for column, (dtype, shape) in kinds.items():
        values = shown.columns[column]
        assert isinstance(values, np.ndarray)
        assert values.dtype == dtype
        assert values.shape == (shown.length, *shape)
    assert len(shown.columns["rewards"]) == shown.length
    assert float(np.sum(shown.columns["rewards"])) == pytest.approx(shown.return_, rel=1e-5)


@pytest.mark.parametrize("name", ["babyai-go-to-local", "mujoco-reacher"])
def test_an_episode_depends_on_its_seed_and_noise_alone(name: str) -> None:
    first, other, again = show(name, 3, 0.3), show(name, 5, 0.3), show(name, 3, 0.3)
    assert first.columns.keys() == again.columns.keys()
    for column in first.columns:
        np.testing.assert_array_equal(first.columns[column], again.columns[column])
    assert first.return_ != other.return_


def test_noise_disturbs_what_is_executed_in_odd_seeds_and_not_what_is_recorded() -> None:
    task = TASKS["mujoco-pendulum"]
    calm, even, odd = show(task.name, 1), show(task.name, 2, 0.3), show(task.name, 1, 0.3)
    assert (calm.noise, even.noise, odd.noise) == (0.0, 0.0, 0.3)
    observations = odd.columns["continuous_observations"]
    assert np.abs(observations[-200:]).max() > 5 * np.abs(calm.columns["continuous_observations"][-200:]).max()
    # The recorded action is the regulator's answer to the observed state, to the last digit of float32.
    gain = np.linalg.lstsq(observations, odd.columns["continuous_actions"], rcond=None)[0]
    np.testing.assert_allclose(observations @ gain, odd.columns["continuous_actions"], atol=1e-3)


def test_a_task_without_an_expert_is_refused() -> None:
    assert "mujoco-ant" not in EXPERT_TASKS
    with (
        contextlib.closing(evaluation_env(TASKS["mujoco-ant"])) as env,
        pytest.raises(ValueError, match=r"expected one with an expert, got 'mujoco-ant'.*mujoco-pendulum"),
    ):
        make_expert(TASKS["mujoco-ant"], env)


def test_negative_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="noise: expected a finite number of at least 0, got -1"):
        show("mujoco-pendulum", noise=-1)
    with pytest.raises(ValueError, match=r"noise: expected a probability for babyai-go-to-obj, got 1.5"):
        show("babyai-go-to-obj", noise=1.5)
