"""Vector environments: a batch with `EpisodeStarts` in every mode, missions in shared memory."""

from __future__ import annotations

import copy
import functools
import importlib.util
import itertools
import pickle
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from helpers.vector_envs import PLAYED, Recorder, options, play_alone

from jat_engine import AgentBatch, InputError, JatEngine
from jat_engine.envs import TASKS, EpisodeStarts, make


@pytest.fixture(scope="module")
def engine() -> JatEngine:
    return JatEngine.from_pretrained("jat-mini", device="cpu", dtype="float32", num_threads=1)


def play(vector_env: Any, batch: AgentBatch, num_steps: int) -> None:
    observations, _ = vector_env.reset(seed=0)
    starts, rewards = EpisodeStarts(vector_env), None
    for _ in range(num_steps):
        actions = batch.get_next_actions(
            **{f"{name}s": values for name, values in observations.items()},
            rewards=rewards,
            action_space=vector_env.single_action_space,
            deterministic=True,
        )
        observations, rewards, terminated, truncated, _ = vector_env.step(actions)
        if starts.mode == "Disabled" and (terminated | truncated).any():
            observations, _ = vector_env.reset(options={"reset_mask": terminated | truncated})
        batch.reset(starts(terminated, truncated))


@pytest.mark.parametrize("mode", AutoresetMode, ids=str)
@pytest.mark.parametrize("task", ["babyai-go-to-obj", "mujoco-reacher"])
def test_a_batch_plays_as_agents_on_their_own(task: str, mode: AutoresetMode, engine: JatEngine) -> None:
    simulator, _, num_steps = PLAYED[task]
    pytest.importorskip(simulator, reason=f"needs the {TASKS[task].domain} extra")
    vector_env = Recorder(SyncVectorEnv([functools.partial(make, task, **options(task))] * 2, autoreset_mode=mode))
    with engine.open_batch(2, TASKS[task].context_window) as batch:
        play(vector_env, batch, num_steps)

    for agent, episodes in enumerate(vector_env.episodes):
        assert len(episodes) >= 2
        for (actions, total), (expected, expected_total) in zip(
            episodes, itertools.islice(play_alone(engine, task, agent), 2), strict=False
        ):
            assert len(actions) == len(expected)
            assert np.allclose(actions, expected, rtol=0, atol=1e-3)
            assert total == pytest.approx(expected_total, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("copies", [True, False])
def test_missions_in_shared_memory(copies: bool) -> None:
    """Missions of each step and of each new episode, not those that the memory held when it was made."""
    pytest.importorskip("minigrid", reason="needs the babyai extra")
    makers = [functools.partial(make, task) for task in ("babyai-go-to-obj", "babyai-go-to-obj", "babyai-go-to-obj")]
    expected_env, env = SyncVectorEnv(makers), AsyncVectorEnv(makers, copy=copies)
    seen = []
    for seed in (0, 1):
        expected, _ = expected_env.reset(seed=seed)
        observations, _ = env.reset(seed=seed)
        seen.append((observations["text_observation"], expected["text_observation"]))
        assert tuple(observations["text_observation"]) == expected["text_observation"]
        expected_env.step([6, 6, 6])
        assert env.step([6, 6, 6])[0]["text_observation"] == expected["text_observation"]
    env.close()
    assert seen[0][1] != seen[1][1]
    if copies:
        assert seen[0][0] == seen[0][1], "the caller's own"


def test_a_view_of_missions_is_a_sequence() -> None:
    from jat_engine.envs.mission import CHARACTERS, MissionsView

    codes = np.full((3, 8), len(CHARACTERS), np.int32)
    for row, text in enumerate(("", "go, a", "zz")):
        codes[row, : len(text)] = [CHARACTERS.index(character) for character in text]
    view = MissionsView(codes)
    assert list(view) == ["", "go, a", "zz"]
    assert (view[1], view[-1], view[1:], len(view)) == ("go, a", "zz", ("go, a", "zz"), 3)
    assert copy.deepcopy(view) == pickle.loads(pickle.dumps(view)) == ("", "go, a", "zz")
    assert repr(view) == "('', 'go, a', 'zz')"


def test_every_mission_fits_its_space() -> None:
    pytest.importorskip("minigrid", reason="needs the babyai extra")
    for task in (task for task in TASKS.values() if task.domain == "babyai"):
        env = make(task.name, seed=0)
        for _ in range(3):
            observation, _ = env.reset()
            assert observation in env.observation_space, observation["text_observation"]


# ---- EpisodeStarts

Flags = list[bool]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (AutoresetMode.NEXT_STEP, [[False, False], [True, False], [False, False], [False, True]]),
        (AutoresetMode.SAME_STEP, [[True, False], [False, False], [False, True], [False, False]]),
        (AutoresetMode.DISABLED, [[True, False], [False, False], [False, True], [False, False]]),
    ],
)
def test_episode_starts(mode: AutoresetMode, expected: list[Flags]) -> None:
    pytest.importorskip("mujoco", reason="needs the mujoco extra")
    env = SyncVectorEnv([functools.partial(make, "mujoco-pendulum")] * 2, autoreset_mode=mode)
    no, terminated, truncated = np.array([False, False]), np.array([True, False]), np.array([False, True])
    ends = [(terminated, no), (no, no), (no, truncated), (no, no)]
    starts = EpisodeStarts(gymnasium.wrappers.vector.RecordEpisodeStatistics(env))
    assert [starts(*each).tolist() for each in ends] == expected
    assert [EpisodeStarts(env)(torch.tensor(each)).tolist() for each in (terminated,)] == expected[:1]
    starts(terminated, no)
    starts.reset()
    assert starts(no, no).tolist() == [False, False]


def test_vector_environments_of_other_makers() -> None:
    class Other:
        num_envs = 2

    with pytest.raises(InputError, match=r"Other does not state its mode.*mode='SameStep'"):
        EpisodeStarts(Other())
    assert EpisodeStarts(Other(), mode="SameStep").mode == "SameStep"
    assert EpisodeStarts(Other(), mode=AutoresetMode.DISABLED).mode == "Disabled"
    with pytest.raises(InputError, match="Other has the mode 'next'; expected one of NextStep, SameStep, Disabled"):
        EpisodeStarts(Other(), mode="next")
    stable_baselines = type("DummyVecEnv", (Other,), {"__module__": "stable_baselines3.common.vec_env"})()
    dones = np.array([True, False])
    assert EpisodeStarts(stable_baselines)(dones).tolist() == [True, False]


@pytest.mark.skipif(importlib.util.find_spec("mujoco") is None, reason="needs the mujoco extra")
def test_what_episode_starts_refuses() -> None:
    with pytest.raises(InputError, match="expected a vector environment, got TaskEnv"):
        EpisodeStarts(make("mujoco-pendulum"))
    starts = EpisodeStarts(SyncVectorEnv([functools.partial(make, "mujoco-pendulum")] * 2))
    for value in (True, [True], [0, 1], [[True, False]], np.zeros(3, bool), None):
        with pytest.raises(InputError, match=r"terminated: expected a bool for each of 2 environments, got"):
            starts(value)
