"""Vector environments: the loop of docs/agents.md in every mode, missions in shared memory, `EpisodeStarts`."""

from __future__ import annotations

import copy
import functools
import importlib.util
import pickle
import re
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from helpers import ROOT

from jat_engine import InputError, JatEngine
from jat_engine.envs import TASKS, EpisodeStarts, make

NUM_AGENTS = 2
# Steps that an episode may take, and steps to play: so that each agent begins at least its second episode, and Breakout
# loses a life (after 22 steps).
PLAYED = {
    "atari-breakout": ("ale_py", 26, 56),
    "babyai-go-to-obj": ("minigrid", 64, 60),
    "metaworld-drawer-open": ("metaworld", 25, 60),
    "mujoco-reacher": ("mujoco", 20, 70),
}

Episodes = list[tuple[list[Any], float]]
"""Actions and return of one agent's episodes."""


class Recorder(gymnasium.vector.VectorWrapper):
    """Vector environment that records each agent's finished episodes."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.episodes: list[Episodes] = [[] for _ in range(env.num_envs)]
        self._running: list[tuple[list[Any], float]] = [([], 0.0) for _ in range(env.num_envs)]
        self._waits = np.zeros(env.num_envs, bool)

    def step(self, actions: Any) -> Any:
        result = super().step(actions)
        _, rewards, terminated, truncated, _ = result
        for agent in range(self.num_envs):
            if self._waits[agent]:  # the step that resets it
                continue
            played, total = self._running[agent]
            self._running[agent] = ([*played, np.asarray(actions[agent]).tolist()], total + float(rewards[agent]))
            if terminated[agent] or truncated[agent]:
                self.episodes[agent].append(self._running[agent])
                self._running[agent] = ([], 0.0)
        if self.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP:
            self._waits = terminated | truncated
        return result


def options(task: str) -> dict[str, Any]:
    return {"max_episode_steps": PLAYED[task][1], **({"clip_reward": False} if task.startswith("atari") else {})}


@pytest.fixture(scope="module")
def engine() -> JatEngine:
    return JatEngine.from_pretrained("jat-mini", device="cpu", dtype="float32", num_threads=1)


@pytest.fixture(scope="module")
def alone(engine: JatEngine) -> Callable[[str, int], Episodes]:
    """Return the first episodes of an agent on its own, played once."""

    @functools.cache
    def play(task: str, agent: int) -> Episodes:
        env = gymnasium.make(f"jat/{task}-v0", **options(task))
        episodes: Episodes = []
        steps = 0
        while steps < PLAYED[task][2]:
            observation, _ = env.reset(seed=None if episodes else agent)
            engine.reset_rl()
            reward, done, actions, total = None, False, [], 0.0
            while not done:
                action = engine.get_next_action(
                    **observation,
                    reward=reward,
                    action_space=env.action_space,
                    context_window=TASKS[task].context_window,
                    deterministic=True,
                )
                observation, reward, terminated, truncated, _ = env.step(action)
                actions.append(action)
                total += float(reward)
                done = terminated or truncated
            episodes.append((actions, total))
            steps += len(actions)
        return episodes

    return play


@functools.cache
def documented_loop() -> Callable[..., None]:
    """Return `play` of docs/agents.md."""
    text = (ROOT / "docs/agents.md").read_text()
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "def play(vector_env" in b)
    names: dict[str, Any] = {}
    exec(block.partition("\n\n\nvector_env = ")[0], names)
    return names["play"]  # type: ignore[no-any-return]


CASES = [(task, "sync", mode) for task in PLAYED for mode in AutoresetMode]
CASES += [("babyai-go-to-obj", "async", mode) for mode in AutoresetMode]


@pytest.mark.parametrize(("task", "kind", "mode"), CASES, ids=str)
def test_agents_play_as_on_their_own(
    task: str, kind: str, mode: AutoresetMode, engine: JatEngine, alone: Callable[[str, int], Episodes]
) -> None:
    simulator, _, num_steps = PLAYED[task]
    pytest.importorskip(simulator, reason=f"needs the {TASKS[task].domain} extra")
    inner = gymnasium.make_vec(
        f"jat/{task}-v0", NUM_AGENTS, kind, vector_kwargs={"autoreset_mode": mode}, **options(task)
    )
    vector_env = Recorder(inner)
    with engine.open_batch(NUM_AGENTS, TASKS[task].context_window) as batch:
        documented_loop()(vector_env, batch, num_steps, deterministic=True)
    vector_env.close()

    for agent, episodes in enumerate(vector_env.episodes):
        assert len(episodes) >= 2
        for (actions, total), (expected, expected_total) in zip(episodes, alone(task, agent), strict=False):
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
