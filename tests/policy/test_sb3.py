"""`JatPolicy` in Stable-Baselines3's `evaluate_policy`: its returns are those of `run_episode`, or it says why not."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from helpers.engines import Load
from helpers.vector_envs import PLAYED, Episode, options, play_alone

from jat_engine import InputError, JatEngine, JatPolicy, SessionError
from jat_engine.envs import TASKS, make

pytest.importorskip("stable_baselines3", reason="needs the sb3 extra")

from stable_baselines3.common import env_util, evaluation
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor

from jat_engine.policy.missions import EncodeMission, decode_missions
from jat_engine.policy.sb3 import RecordRewards, make_vec_env

pytestmark = pytest.mark.filterwarnings("ignore:The environment is already wrapped with a `Monitor`:UserWarning")

evaluate = functools.partial(evaluation.evaluate_policy, return_episode_rewards=True)


@pytest.fixture(scope="module")
def engine() -> JatEngine:
    return JatEngine.from_pretrained("jat-mini", device="cpu", dtype="float32", num_threads=1)


@pytest.fixture(scope="module")
def alone(engine: JatEngine) -> Callable[[str, int], list[Episode]]:
    """Return the first two episodes of an agent on its own, played once."""
    return functools.cache(lambda task, seed: list(itertools.islice(play_alone(engine, task, seed), 2)))


def make_envs(task: str, count: int = 2, **given: Any) -> RecordRewards:
    pytest.importorskip(PLAYED[task][0], reason=f"needs the {TASKS[task].domain} extra")
    return make_vec_env(task, count, seed=0, env_kwargs=options(task), **given)


CASES: list[tuple[str, Any]] = [*((task, None) for task in PLAYED), ("babyai-go-to-obj", SubprocVecEnv)]


@pytest.mark.parametrize(("task", "kind"), CASES, ids=str)
def test_returns_are_those_of_agents_on_their_own(
    task: str, kind: Any, engine: JatEngine, alone: Callable[[str, int], list[Episode]]
) -> None:
    """Two environments play three episodes: one plays the third while the other has done its share."""
    vec_env = make_envs(task, vec_env_cls=kind)
    with JatPolicy(engine, vec_env) as policy:
        returns, lengths = evaluate(policy, vec_env, n_eval_episodes=3)
    vec_env.close()
    (first, _), second = alone(task, 0), alone(task, 1)
    assert len(returns) == 3
    expected = [(round(total, 6), len(actions)) for actions, total in (first, *second)]
    assert sorted(zip(returns, lengths, strict=True)) == sorted(expected)


def test_an_evaluation_can_be_repeated(engine: JatEngine, alone: Callable[[str, int], list[Episode]]) -> None:
    """Episodes that the first one has left unfinished are forgotten."""
    vec_env = make_envs("babyai-go-to-obj")
    with JatPolicy(engine, vec_env) as policy:
        first = evaluate(policy, vec_env, n_eval_episodes=1)
        vec_env.seed(0)
        both = evaluate(policy, vec_env, n_eval_episodes=2)
    totals = {round(alone("babyai-go-to-obj", agent)[0][1], 6) for agent in (0, 1)}
    assert set(both[0]) == totals
    assert set(first[0]) <= totals


def test_a_loop_without_states_and_starts(engine: JatEngine, alone: Callable[[str, int], list[Episode]]) -> None:
    """The loop of Stable-Baselines3's documentation, with other wrappers around."""
    vec_env = VecMonitor(make_envs("mujoco-reacher"))
    with JatPolicy(engine, vec_env) as policy:
        observation, actions = vec_env.reset(), []
        for _ in range(40):
            action, state = policy.predict(observation, deterministic=True)
            assert state is None
            observation, _, _, _ = vec_env.step(action)
            actions.append(action)
    for agent in (0, 1):
        expected = [action for played, _ in alone("mujoco-reacher", agent) for action in played]
        assert np.array_equal(np.stack(actions)[:, agent], np.float32(expected))


def test_a_lost_life_ends_no_game(load: Load) -> None:
    """The environment reports an end, and the agent plays on with the game."""
    engine = load(backend="auto", dtype="float32")
    pytest.importorskip("ale_py", reason="needs the atari extra")
    given: dict[str, Any] = {"clip_reward": False, "max_episode_steps": 600}
    vec_env = make_vec_env("atari-breakout", 2, seed=0, env_kwargs={**given, "terminal_on_life_loss": True})
    expected = [next(play_alone(engine, "atari-breakout", seed, False, **given))[0] for seed in (0, 1)]
    num_steps = min(map(len, expected))
    with JatPolicy(engine, vec_env, seed=0) as policy:
        observation, actions, num_lives = vec_env.reset(), [], 0
        starts = np.ones(2, bool)
        for _ in range(num_steps):
            action, _ = policy.predict(observation, episode_start=starts)
            observation, _, starts, _ = vec_env.step(action)
            actions.append(action)
            num_lives += int(starts.sum())
    assert num_lives > 2
    for agent in (0, 1):
        assert np.stack(actions)[:, agent].tolist() == expected[agent][:num_steps]


def test_sampling(engine: JatEngine) -> None:
    """Sampled actions are those of the seed."""
    vec_env = make_envs("babyai-go-to-obj")
    with JatPolicy(engine, vec_env, seed=0) as policy:
        returns, _ = evaluate(policy, vec_env, n_eval_episodes=2, deterministic=False)
    expected = [next(play_alone(engine, "babyai-go-to-obj", seed, deterministic=False))[1] for seed in (0, 1)]
    assert sorted(returns) == sorted(round(total, 6) for total in expected)


# ---- misuse


def test_an_environment_that_carries_no_rewards_is_refused(engine: JatEngine) -> None:
    vec_env = make_envs("mujoco-reacher").venv
    with pytest.raises(InputError, match=r"expected a RecordRewards, got DummyVecEnv without.*make_vec_env"):
        JatPolicy(engine, vec_env)
    with pytest.raises(InputError, match=r"got VecMonitor without"):
        JatPolicy(engine, VecMonitor(vec_env))

    with JatPolicy(engine, RecordRewards(vec_env)) as policy:
        with pytest.raises(InputError, match="no reset or step of RecordRewards since the last call"):
            evaluate(policy, vec_env, n_eval_episodes=1)
        for call in (policy.reset, lambda seen: policy.step(seen, *[np.zeros(2, bool)] * 3, {})):
            with pytest.raises(InputError, match=r"one of Stable-Baselines3's; call predict\(observation\)"):
                call(vec_env.reset())


def test_missions_need_an_encoder(engine: JatEngine) -> None:
    """Stable-Baselines3 has no texts. With `EncodeMission`, its own function makes the environments."""
    pytest.importorskip("minigrid", reason="needs the babyai extra")
    with pytest.raises(TypeError):
        env_util.make_vec_env("jat/babyai-go-to-obj-v0", 2)
    vec_env = RecordRewards(env_util.make_vec_env("jat/babyai-go-to-obj-v0", 2, 0, wrapper_class=EncodeMission))
    missions = make("babyai-go-to-obj", seed=0).reset()[0]["text_observation"]
    assert decode_missions(vec_env.reset()["text_observation"])[0] == missions
    assert vec_env.observation_space["text_observation"].contains(vec_env.reset()["text_observation"][1])
    with JatPolicy(engine, vec_env) as policy:
        assert policy.predict(vec_env.reset())[0].shape == (2,)


class Texts(gymnasium.Env):  # type: ignore[type-arg]
    observation_space = gymnasium.spaces.Dict(
        {"text_observation": gymnasium.spaces.Text(4, charset="aö∀😀"), "n": gymnasium.spaces.Discrete(2)}
    )
    text = ""

    def reset(self, **_: Any) -> Any:
        return {"text_observation": self.text, "n": 1}, {}


def test_every_text_is_decoded_as_it_was() -> None:
    env, inner = EncodeMission(Texts()), Texts
    for text in ("", "a", "ö∀😀a", "😀"):
        inner.text = text
        codes = env.reset()[0]["text_observation"]
        assert env.observation_space["text_observation"].contains(codes)  # type: ignore[index]
        assert decode_missions(np.stack([codes, codes])) == [text, text]
    inner.text = "aaaaa"
    with pytest.raises(InputError, match="text_observation: expected at most 4 characters, got 5"):
        env.reset()
    other = EncodeMission(gymnasium.make("CartPole-v1"))
    assert other.observation_space == other.env.observation_space
    assert other.reset()[0].shape == (4,)


def test_order_of_calls(engine: JatEngine) -> None:
    vec_env = make_envs("mujoco-reacher")
    with JatPolicy(engine, vec_env) as policy:
        observation = vec_env.reset()
        first, _ = policy.predict(observation)
        with pytest.raises(InputError, match="call predict once for each"):
            policy.predict(observation)
        vec_env.step(first)
        observation, *_ = vec_env.step(first)
        with pytest.raises(InputError, match=r"expected that of step 1 since vec_env\.reset\(\), got that of step 2"):
            policy.predict(observation)
        observation = vec_env.reset()
        policy.predict(observation)
    with pytest.raises(SessionError, match="policy: expected an open one"):
        policy.predict(observation)

    observation, *_ = vec_env.step(first)
    with pytest.raises(SessionError, match=r"predict: expected a call after vec_env.reset"):
        JatPolicy(engine, vec_env).predict(observation)


def test_what_predict_refuses(engine: JatEngine) -> None:
    """Each refused call changes nothing: the next one is right, in the step after which an episode begins."""
    vec_env = make_envs("mujoco-reacher", 3)
    no, yes = np.zeros(3, bool), np.ones(3, bool)
    with JatPolicy(engine, vec_env) as policy, JatPolicy(engine, vec_env) as expected:
        observation, begins = vec_env.reset(), yes
        numbers = observation["continuous_observation"]
        for number in range(43):
            cases: list[tuple[str, Any, dict[str, Any]]] = [
                ("state: expected None", observation, {"state": (no,)}),
                ("deterministic: expected True or False", observation, {"deterministic": 1}),
                ("episode_start: expected a bool", observation, {"episode_start": True}),
                ("episode_start: expected a bool", observation, {"episode_start": [True]}),
                ("episode_start: expected a bool", observation, {"episode_start": np.ones(3)}),
                ("episode_start: expected a bool", observation, {"episode_start": np.ones((3, 1), bool)}),
                ("observations: expected a dict", numbers, {}),
                ("observations: expected a dict", {}, {}),
                ("continuous_observation", {"continuous_observation": numbers[0]}, {}),
                ("continuous_observation", {"continuous_observation": numbers[:2]}, {}),
                ("continuous_observation", {"continuous_observation": numbers[:, 1:]}, {}),
                ("continuous_observation", {"continuous_observation": numbers * np.nan}, {}),
            ]
            if begins.any():
                cases.append(("episode_start: expected True for environments", observation, {"episode_start": no}))
            for message, bad, given in cases:
                with pytest.raises(InputError, match=f"^{message}"):
                    policy.predict(bad, **given)
            action, _ = policy.predict(observation, episode_start=yes if number % 2 else begins)
            assert np.array_equal(action, expected.predict(observation)[0])
            observation, _, begins, _ = vec_env.step(action)
            numbers = observation["continuous_observation"]


def test_without_stable_baselines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "jat_engine.policy.sb3")
    monkeypatch.setitem(sys.modules, "stable_baselines3.common", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'jat-engine\[sb3\]'"):
        import jat_engine.policy.sb3  # noqa: F401


def test_a_single_environment_is_no_vector_environment(engine: JatEngine) -> None:
    pytest.importorskip("mujoco", reason="needs the mujoco extra")
    vec_env = DummyVecEnv([functools.partial(make, "mujoco-reacher")])
    with pytest.raises(InputError, match="expected a vector environment, got"):
        JatPolicy(engine, make("mujoco-reacher"))
    with JatPolicy(engine, RecordRewards(vec_env)) as policy:
        assert policy.num_envs == 1
