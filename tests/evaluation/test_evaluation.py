"""Episodes, scores and files, on real environments."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from jat_engine import InputError, JatEngine
from jat_engine.atomic_io import write_json
from jat_engine.envs import TASKS, Score, UnknownTaskError, get_task, make
from jat_engine.evaluation import (
    main_reference,
    normalize,
    reference_words,
    run_episode,
    run_episodes,
    undefined_reason,
)
from jat_engine.evaluation.environment import missing_simulators


class Scripted:
    """Agent that records its inputs and plays random or given actions."""

    def __init__(self, action: Any = None) -> None:
        self.action = action
        self.resets = 0
        self.inputs: list[dict[str, Any]] = []

    def reset_rl(self) -> None:
        self.resets += 1

    def get_next_action(self, processor: Any, **inputs: Any) -> Any:
        self.inputs.append(inputs)
        if self.action is not None:
            return self.action
        action = inputs["action_space"].sample()
        return int(action) if isinstance(inputs["action_space"], gymnasium.spaces.Discrete) else action.tolist()


class Recorder(gymnasium.Wrapper):
    """Wrapper that records what passes between the loop and the environment."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.reset_seeds: list[int | None] = []
        self.actions: list[Any] = []
        self.rewards: list[float] = []
        self.infos: list[dict[str, Any]] = []
        self.ends: list[bool] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.reset_seeds.append(seed)
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        self.actions.append(action)
        observation, reward, terminated, truncated, info = super().step(action)
        self.rewards.append(float(reward))
        self.infos.append(info)
        self.ends.append(terminated or truncated)
        return observation, reward, terminated, truncated, info


# ---- episodes ------------------------------------------------------------------------------------------------------


def test_episode_follows_the_published_protocol() -> None:
    task = TASKS["mujoco-hopper"]
    env, agent = Recorder(make(task.name)), Scripted()
    env.action_space.seed(0)
    episode = run_episode(agent, None, env, task=task, seed=3, deterministic=True)
    assert agent.resets == 1
    assert env.reset_seeds == [3]
    assert [inputs["reward"] for inputs in agent.inputs] == [None, *env.rewards[:-1]]
    assert {inputs["context_window"] for inputs in agent.inputs} == {256}
    assert all(inputs["deterministic"] for inputs in agent.inputs)
    assert episode.return_ == pytest.approx(sum(env.rewards))
    assert episode.length == len(env.rewards) == len(episode.latencies_us)
    assert env.ends[-1]
    assert not episode.capped


@pytest.mark.parametrize("name", ["mujoco-hopper", "babyai-go-to-local"])
def test_options_are_passed_on_if_they_are_set(name: str) -> None:
    """Pass options that fit the kind of action, and only if given: agents of the published package know none."""
    given: dict[str, Any] = {"temperature": 0.5, "top_k": 3, "action_clip": "box", "use_action_mask": True}
    passed = {"mujoco-hopper": {"action_clip": "box"}, "babyai-go-to-local": {"temperature": 0.5, "top_k": 3}}
    for options, expected in [({}, {}), (given, passed[name])]:
        agent = Scripted()
        run_episode(agent, None, make(name), task=TASKS[name], seed=0, max_steps=2, **options)
        published = {"reward", "action_space", "deterministic", "context_window"}
        for inputs in agent.inputs:
            keys = inputs.keys() - published
            assert {key: inputs[key] for key in keys if not key.endswith("observation")} == expected


class Taxi(gymnasium.ObservationWrapper):
    """Gymnasium's Taxi, whose `info` has masks, with the keywords of `get_next_action`."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # which version it is does not matter
            super().__init__(gymnasium.make("Taxi"))

    def observation(self, observation: int) -> dict[str, Any]:
        decoded: Any = self.unwrapped
        return {"discrete_observation": list(decoded.decode(observation))}


def test_masks_of_the_environment(tiny_folder: Path) -> None:
    engine = JatEngine.from_pretrained(tiny_folder, device="cpu", dtype="float32")
    allowed = []
    for use_action_mask in (False, True):
        env = Recorder(Taxi())
        _, info = env.reset(seed=0)
        run_episode(
            engine, None, env, task=TASKS["babyai-go-to-obj"], seed=0, max_steps=100, use_action_mask=use_action_mask
        )
        masks = [info["action_mask"], *(info["action_mask"] for info in env.infos)]
        allowed.append([bool(mask[action]) for mask, action in zip(masks, env.actions, strict=False)])
    assert len(allowed[1]) == 100
    assert all(allowed[1])
    assert not all(allowed[0])


def test_life_loss_does_not_end_an_atari_episode() -> None:
    task = TASKS["atari-breakout"]
    env, agent = Recorder(make(task.name, clip_reward=False)), Scripted()
    env.action_space.seed(0)
    episode = run_episode(agent, None, env, task=task, seed=0)
    lost = [info["life_lost"] for info in env.infos]
    assert sum(lost) == 4
    assert env.ends == [False] * (episode.length - 1) + [True]
    assert env.reset_seeds == [0]
    assert agent.resets == 1
    after_life = lost.index(True) + 1
    assert agent.inputs[after_life]["reward"] == env.rewards[after_life - 1]
    assert {inputs["context_window"] for inputs in agent.inputs} == {32}
    assert episode.return_ == pytest.approx(sum(env.rewards))
    assert episode.return_ == pytest.approx(env.infos[-1]["episode"]["r"])


def test_a_time_limit_ends_an_atari_episode() -> None:
    """Around the environment, also after a lost life; in `make`, in frames of the emulator; and `max_steps`."""
    task = TASKS["atari-breakout"]

    def play(env: Any, **options: Any) -> tuple[int, bool]:
        episode = run_episode(Scripted(0), None, env, task=task, seed=0, **options)
        return episode.length, episode.capped

    assert play(gymnasium.wrappers.TimeLimit(make(task.name), 60)) == (60, False)
    assert play(gymnasium.make("jat/atari-breakout-v0", max_episode_steps=60)) == (60, False)
    assert play(make(task.name), max_steps=60) == (60, True)
    env = Recorder(make(task.name, max_episode_steps=241))
    length, capped = play(env)
    assert (env.infos[-1]["episode"]["l"], capped) == (241, False)
    assert 20 < length < 60
    assert any(info["life_lost"] for info in env.infos)


@pytest.mark.parametrize(
    "convert",
    [int, np.int64, np.array, lambda a: np.array([a]), torch.tensor],
    ids=["int", "int64", "scalar", "array", "tensor"],
)
def test_discrete_actions_of_any_agent(convert: Any) -> None:
    task = TASKS["babyai-go-to-local"]
    env = Recorder(make(task.name))
    run_episode(Scripted(convert(2)), None, env, task=task, seed=0, max_steps=5)
    assert {type(action) for action in env.actions} == {int}


def test_continuous_actions_of_any_agent() -> None:
    task = TASKS["mujoco-pendulum"]
    for action in (0.5, [0.5], np.float64(0.5), np.array([[0.5]]), torch.tensor([0.5], requires_grad=True)):
        env = Recorder(make(task.name))
        run_episode(Scripted(action), None, env, task=task, seed=0, max_steps=2)
        assert [(each.shape, each.dtype, each.item()) for each in env.actions] == [((1,), np.float32, 0.5)] * 2


@pytest.mark.parametrize("action", [6.0, "left", [1, 2], 7, -1, float("nan")], ids=str)
def test_an_action_that_does_not_fit_is_named(action: Any) -> None:
    task = TASKS["babyai-go-to-local"]
    with pytest.raises(InputError, match=r"action: expected an integer in \[0, 7\), got"):
        run_episode(Scripted(action), None, make(task.name), task=task, seed=0, max_steps=2)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, "1"])
def test_a_seed_that_does_not_fit_is_named(seed: Any) -> None:
    task = TASKS["babyai-go-to-local"]
    with pytest.raises(InputError, match="seed: expected None or an integer"):
        run_episode(Scripted(), None, make(task.name), task=task, seed=seed)


def test_atari_rewards_are_not_clipped() -> None:
    from jat_engine.evaluation.environment import evaluation_env

    task = TASKS["atari-spaceinvaders"]  # an invader is worth at least 5
    env, agent = Recorder(evaluation_env(task)), Scripted()
    env.action_space.seed(0)
    run_episode(agent, None, env, task=task, seed=0, max_steps=200)
    assert max(env.rewards) >= 5


def test_actions_outside_the_box_reach_the_environment_unchanged() -> None:
    task = TASKS["mujoco-pendulum"]
    env = Recorder(make(task.name))
    run_episode(Scripted([1234.5]), None, env, task=task, seed=0, max_steps=2)
    assert [action.tolist() for action in env.actions] == [[1234.5]] * len(env.actions)
    assert env.actions[0].dtype == np.float32


def test_max_steps_cuts_the_episode_and_says_so() -> None:
    task = TASKS["babyai-go-to-local"]
    seen: list[tuple[int, float]] = []
    episode = run_episode(
        Scripted(0),  # turns left forever
        None,
        make(task.name),
        task=task,
        seed=0,
        max_steps=7,
        on_step=lambda steps, total: seen.append((steps, total)),
    )
    assert (episode.length, episode.capped) == (7, True)
    assert seen == [(i + 1, 0.0) for i in range(7)]


def test_a_seed_fixes_environment_and_sampling(tiny_model: Any, tiny_processor: Any) -> None:
    task = TASKS["babyai-go-to-local"]

    def play(seed: int, num_episodes: int) -> list[tuple[float, int, list[int]]]:
        env = Recorder(make(task.name))
        found, start = [], 0
        for e in run_episodes(tiny_model, tiny_processor, env, num_episodes, task=task, seed=seed, max_steps=20):
            found.append((e.return_, e.length, [int(a) for a in env.actions[start:]]))
            start = len(env.actions)
        return found

    first = play(5, 3)
    assert play(5, 3) == first
    assert play(7, 1) == first[2:]  # episode i has seed + i, whatever was played before it
    assert first[0][2] != first[1][2]


@pytest.mark.parametrize("name", ["atari-pong", "metaworld-reach", "mujoco-hopper"])
def test_a_seed_fixes_every_domain(name: str, tiny_model: Any, tiny_processor: Any) -> None:
    task = TASKS[name]

    def play() -> list[float]:
        env = Recorder(make(task.name))
        list(run_episodes(tiny_model, tiny_processor, env, 2, task=task, seed=11, max_steps=6))
        return [*env.rewards, *np.ravel(env.actions).tolist()]

    assert play() == play()


# ---- scores --------------------------------------------------------------------------------------------------------


def test_normalized_scores() -> None:
    task = TASKS["atari-pong"]
    assert task.random is not None
    assert task.expert is not None
    halfway = (task.random.mean + task.expert.mean) / 2
    scores = normalize([task.random.mean, halfway, task.expert.mean], task)
    assert scores is not None
    assert scores.tolist() == pytest.approx([0, 0.5, 1])
    human = normalize([task.human.mean], task, "human")  # type: ignore[union-attr]
    assert human is not None
    assert human.tolist() == pytest.approx([1])


def test_scores_by_the_published_call() -> None:
    """The published `normalize(values, env_id, strategy)` gives these values."""
    scores = normalize([-20.7, 0.0, 20.0], "atari-pong", "expert")
    assert scores is not None
    assert scores.tolist() == pytest.approx([0, 20.7 / 41.6867987, 40.7 / 41.6867987], rel=1e-3)
    assert normalize([-20.7, 0.0], "atari-pong", "max").tolist() == pytest.approx([0, 1])  # type: ignore[union-attr]
    assert normalize([-20.8, -20.7], "atari-pong", "max") is None
    assert normalize([], "atari-pong", "max") is None
    for name in ("atari-bowling", "atari-venture"):  # random is better than the expert
        assert normalize([100.0], name, "expert") is None
    with pytest.raises(UnknownTaskError, match="did you mean atari-pong"):
        normalize([1.0], "atari-pongg", "expert")


def test_scores_by_the_demonstrator_and_their_words() -> None:
    pendulum = TASKS["mujoco-pendulum"].with_scores(None, Score(1000.0, None))
    own = get_task("gym:CartPole-v1").with_scores(Score(20.0, None), Score(500.0, None))
    registered = replace(own, expert=Score(260.0, None))
    for task, reference, words in (
        (pendulum, "expert", "by the published expert"),
        (own, "demonstrator", "by its demonstrator"),
        (registered, "expert", "by its expert"),
    ):
        assert main_reference(task) == reference
        assert reference_words(reference, [task]) == words
    assert reference_words("expert", [pendulum, registered]) == "by the expert"

    assert normalize([1000.0], pendulum, "demonstrator") == pytest.approx([1.0])
    assert normalize([1000.0], pendulum) == pytest.approx([2.118], abs=1e-3)
    assert normalize([260.0], own) == pytest.approx([0.5])
    assert normalize([260.0], registered) == pytest.approx([1.0])
    assert undefined_reason(own, "expert") == "undefined: no expert score"
    assert undefined_reason(TASKS["mujoco-pendulum"], "demonstrator") == "undefined: no demonstrator score"


@pytest.mark.parametrize("name", ["atari-bowling", "atari-venture"])
def test_normalized_scores_are_undefined_where_the_expert_is_no_better_than_random(name: str) -> None:
    assert normalize([100.0], TASKS[name]) is None
    assert undefined_reason(TASKS[name]) == "undefined: expert <= random"


def test_only_atari_has_human_scores() -> None:
    assert normalize([1.0], TASKS["mujoco-hopper"], "human") is None
    assert undefined_reason(TASKS["mujoco-hopper"], "human") == "undefined: no human score"
    with pytest.raises(ValueError, match="reference: expected 'expert', 'demonstrator', 'human' or 'max', got 'best'"):
        normalize([1.0], TASKS["mujoco-hopper"], "best")  # type: ignore[arg-type]


def test_every_other_task_has_an_expert_score() -> None:
    undefined = {name for name, task in TASKS.items() if undefined_reason(task)}
    assert undefined == {"atari-bowling", "atari-venture"}


# ---- files ---------------------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "evaluations.json"
    write_json(path, {"old": [1.0]})

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_json(path, {"new": [2.0]})
    assert json.loads(path.read_text()) == {"old": [1.0]}
    assert list(tmp_path.iterdir()) == [path]


# ---- simulators ----------------------------------------------------------------------------------------------------


def no_simulator() -> gymnasium.Env[Any, Any]:
    raise ImportError("No module named 'simulator'")


def test_a_missing_simulator_is_that_of_its_own_task() -> None:
    """Tasks of one's own share a domain, and not a simulator."""
    cart = get_task("gym:CartPole-v1")
    broken = replace(cart, name="my-broken", maker=no_simulator)
    missing = missing_simulators([cart, broken])
    assert missing == {
        "my-broken": "my-broken: its environment needs a package (No module named 'simulator'); install it"
    }
