"""`JatPolicy` in Gymnasium's vector environments: agents play as on their own, and misuse is refused."""

from __future__ import annotations

import functools
import inspect
import itertools
import re
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from helpers.engines import Load
from helpers.vector_envs import PLAYED, Episode, Recorder, options, play_alone

from jat_engine import InputError, JatEngine, JatPolicy, SessionError
from jat_engine.envs import TASKS, make, register_task
from jat_engine.policy.turns import first_turn, next_turn

NUM_AGENTS = 2
MODES = list(AutoresetMode)


@pytest.fixture(scope="module")
def engine() -> JatEngine:
    return JatEngine.from_pretrained("jat-mini", device="cpu", dtype="float32", num_threads=1)


@pytest.fixture(scope="module")
def alone(engine: JatEngine) -> Callable[[str, int], list[Episode]]:
    """Return the first three episodes of an agent on its own, played once."""
    return functools.cache(lambda task, seed: list(itertools.islice(play_alone(engine, task, seed), 3)))


def make_vector(task: str, kind: str, mode: AutoresetMode, num_envs: int = NUM_AGENTS, **given: Any) -> Any:
    simulator = {"atari": "ale_py", "babyai": "minigrid"}.get(TASKS[task].domain, TASKS[task].domain)
    pytest.importorskip(simulator, reason=f"needs the {TASKS[task].domain} extra")
    makers = [functools.partial(make, task, **(given or options(task)))] * num_envs
    return (AsyncVectorEnv if kind == "async" else SyncVectorEnv)(makers, autoreset_mode=mode)


def play(policy: JatPolicy, vector_env: Any, num_steps: int, seed: int = 0) -> None:
    """Play as the docstrings of `JatPolicy` do."""
    actions = policy.reset(*vector_env.reset(seed=seed))
    for _ in range(num_steps):
        observations, rewards, terminated, truncated, infos = vector_env.step(actions)
        reset_mask = terminated | truncated
        if policy.mode == "Disabled" and reset_mask.any():
            observations, _ = vector_env.reset(options={"reset_mask": reset_mask})
        actions = policy.step(observations, rewards, terminated, truncated, infos)


CASES = [(task, "sync", mode) for task in PLAYED for mode in MODES]
CASES += [("babyai-go-to-obj", "async", mode) for mode in MODES] + [("atari-breakout", "async", MODES[0])]


@pytest.mark.parametrize(("task", "kind", "mode"), CASES, ids=str)
def test_agents_play_as_on_their_own(
    task: str, kind: str, mode: AutoresetMode, engine: JatEngine, alone: Callable[[str, int], list[Episode]]
) -> None:
    """Actions and returns are those of `run_episode`, bit for bit, from the first episode to the third."""
    vector_env = Recorder(make_vector(task, kind, mode))
    with JatPolicy(engine, vector_env, deterministic=True) as policy:
        assert policy.context_window == min(TASKS[task].context_window, engine.config.max_context_tokens)
        play(policy, vector_env, PLAYED[task][2])
    vector_env.close()

    for agent, episodes in enumerate(vector_env.episodes):
        assert len(episodes) >= 2
        for actual, expected in zip(episodes, alone(task, agent), strict=False):
            assert actual == expected


@pytest.mark.versions
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_sampled_agents_play_as_on_their_own(mode: AutoresetMode, engine: JatEngine) -> None:
    """An agent's first episode is that of its seed, and the later ones go on with the random numbers."""
    task, seed = "babyai-go-to-obj", 7
    vector_env = Recorder(make_vector(task, "sync", mode, 3))
    with JatPolicy(engine, vector_env, seed=seed) as policy:
        play(policy, vector_env, 150, seed)
    for agent, episodes in enumerate(vector_env.episodes):
        expected = play_alone(engine, task, seed + agent, deterministic=False)
        assert episodes == list(itertools.islice(expected, len(episodes)))
        assert len(episodes) > 3
    assert vector_env.episodes[0] != vector_env.episodes[1]


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_lost_life_ends_no_game(mode: AutoresetMode, load: Load) -> None:
    """Where the environment reports lost lives, agents play the games that they play without the reports."""
    engine = load(backend="auto", dtype="float32")
    task = "atari-breakout"
    given: dict[str, Any] = {"clip_reward": False, "max_episode_steps": 600}
    vector_env = Recorder(make_vector(task, "sync", mode, **given, terminal_on_life_loss=True))
    with JatPolicy(engine, vector_env, seed=0) as policy:
        play(policy, vector_env, 150)

    for agent, lives in enumerate(vector_env.episodes):
        actions, total = next(play_alone(engine, task, agent, deterministic=False, **given))
        played = list(itertools.accumulate(lives, lambda one, other: (one[0] + other[0], one[1] + other[1])))
        ends = [number for number, (so_far, _) in enumerate(played) if len(so_far) == len(actions)]
        assert ends, "the game ends with a life, or at its limit"
        assert ends[0] > 0, "and not with the first one"
        assert played[ends[0]] == (actions, total)


LOST = [True, True, False]


@pytest.mark.parametrize(
    ("mode", "infos"),
    [
        (AutoresetMode.NEXT_STEP, {"life_lost": np.array(LOST)}),
        (AutoresetMode.SAME_STEP, {"final_info": {"life_lost": np.array(LOST)}, "life_lost": np.zeros(3, bool)}),
        (AutoresetMode.SAME_STEP, [{"final_info": {"life_lost": lost}, "life_lost": False} for lost in LOST]),
        (AutoresetMode.DISABLED, [{"life_lost": lost} for lost in LOST]),
    ],
)
def test_the_reward_of_a_lost_life(mode: AutoresetMode, infos: Any) -> None:
    """It comes with the first observation after the reset. The second environment is at a limit of steps as well."""
    after = functools.partial(next_turn, mode.value)
    terminated, truncated, none = np.array([True, True, True]), np.array([False, True, False]), np.zeros(3, bool)
    turn = after(first_turn(3), [5.0, 6.0, 7.0], terminated, truncated, infos)
    if mode is AutoresetMode.NEXT_STEP:
        assert not turn.acts.any()
        turn = after(turn, np.zeros(3), none, none, {})
    assert turn.acts.all()
    assert turn.begins.tolist() == [False, True, True]
    assert turn.rewards.tolist() == [5, 0, 0]
    turn = after(turn, [1.0, 2.0, 3.0], none, none, {})
    assert turn.acts.all()
    assert not turn.begins.any()
    assert turn.rewards.tolist() == [1, 2, 3]


def test_rewards_matter(engine: JatEngine) -> None:
    """An agent that is told of no rewards does something else, and worse."""

    def total(knows: bool) -> float:
        vector_env = make_vector("metaworld-drawer-open", "sync", MODES[0], 1, max_episode_steps=500)
        with JatPolicy(engine, vector_env) as policy:
            actions, result = policy.reset(*vector_env.reset(seed=0)), 0.0
            for _ in range(100):
                observations, rewards, *ends = vector_env.step(actions)
                result += float(rewards[0])
                actions = policy.step(observations, rewards if knows else np.zeros(1), *ends)
        return result

    assert total(knows=False) < 0.8 * total(knows=True)


def test_memory_that_the_environment_writes_to_again(engine: JatEngine) -> None:
    """Without copies, the observations of a step are in the memory of those of the next one."""
    records = []
    for copies in (True, False):
        pytest.importorskip("mujoco", reason="needs the mujoco extra")
        makers = [functools.partial(make, "mujoco-reacher", max_episode_steps=20)] * 2
        vector_env = Recorder(SyncVectorEnv(makers, copy=copies))
        with JatPolicy(engine, vector_env) as policy:
            play(policy, vector_env, 50)
        records.append(vector_env.episodes)
    assert records[0] == records[1]


def test_wrapped_infos_and_tensors(engine: JatEngine, alone: Callable[[str, int], list[Episode]]) -> None:
    """A wrapper of Gymnasium that turns infos into lists; and observations, rewards and flags as tensors."""
    vector_env = make_vector("mujoco-reacher", "sync", AutoresetMode.SAME_STEP)
    recorder = Recorder(gymnasium.wrappers.vector.DictInfoToList(vector_env))
    with JatPolicy(engine, recorder) as policy:
        actions = policy.reset(*recorder.reset(seed=0))
        for _ in range(45):
            observations, *results, infos = recorder.step(actions)
            tensors = {name: torch.from_numpy(value) for name, value in observations.items()}
            actions = policy.step(tensors, *map(torch.from_numpy, results), infos)
    assert [episodes[:2] for episodes in recorder.episodes] == [alone("mujoco-reacher", seed)[:2] for seed in (0, 1)]


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_environments_that_the_caller_resets(mode: AutoresetMode, engine: JatEngine) -> None:
    """In mid-episode: the agent begins with the observation of the reset. The other one's episodes have 8 steps."""
    vector_env = make_vector("mujoco-reacher", "sync", mode, max_episode_steps=8)
    with JatPolicy(engine, vector_env) as policy, engine.open_session() as alone:
        actions = policy.reset(*vector_env.reset(seed=0))
        for number in range(12):
            observations, rewards, terminated, truncated, infos = vector_env.step(actions)
            reset_mask = None
            if number in (3, 7, 9):
                reset_mask = np.array([policy.mode == "Disabled" and number == 7, True])
                observations, _ = vector_env.reset(options={"reset_mask": reset_mask})
                alone.reset()
            actions = policy.step(observations, rewards, terminated, truncated, infos, reset_mask=reset_mask)
            if number >= 3:
                expected = alone.get_next_action(
                    continuous_observation=observations["continuous_observation"][1],
                    reward=rewards[1],
                    action_space=vector_env.single_action_space,
                )
                assert np.array_equal(actions[1], np.float32(expected)), number


def test_masks_of_actions(engine: JatEngine) -> None:
    vector_env = make_vector("babyai-go-to-obj", "sync", MODES[0])
    masks = np.zeros((2, 7), bool)
    masks[0, 4] = masks[1, 5] = True
    with JatPolicy(engine, vector_env) as policy:
        first = policy.reset(*vector_env.reset(seed=0), action_masks=masks)
        assert first.tolist() == [4, 5]
        assert policy.step(*vector_env.step(first), action_masks=masks[::-1]).tolist() == [5, 4]


def test_a_task_of_ones_own(engine: JatEngine) -> None:
    """Observations are converted by `make`; the window is that of the task."""
    register_task("policy-cart", functools.partial(gymnasium.make, "CartPole-v1"), context_window=10)
    for name, window in (("policy-cart", 10), ("gym:CartPole-v1", 252)):
        vector_env = SyncVectorEnv([functools.partial(make, name)] * 2)
        with JatPolicy(engine, vector_env, seed=3) as policy:
            assert policy.context_window == window
            actions = policy.reset(*vector_env.reset(seed=0))
            for _ in range(30):
                actions = policy.step(*vector_env.step(actions))
    with JatPolicy(engine, vector_env, context_window=4) as policy:
        assert policy.context_window == 4
    with pytest.raises(InputError, match=r"got Box.*make\('gym:<id>'\)"):
        JatPolicy(engine, gymnasium.make_vec("CartPole-v1", 2))


def test_random_numbers(engine: JatEngine) -> None:
    """Agents have the seeds that the environments have, given in the same way."""
    vector_env = make_vector("babyai-go-to-obj", "sync", MODES[0])
    observations, _ = vector_env.reset(seed=0)

    def sample(seed: Any) -> list[list[int]]:
        with JatPolicy(engine, vector_env, seed=seed, temperature=9) as policy:
            return [policy.reset(observations).tolist() for _ in range(20)]

    assert sample(5) == sample([5, 6]) == sample(np.array([5, 6]))
    assert [row[0] for row in sample([6, 5])] != [row[0] for row in sample(5)]
    torch.manual_seed(0)
    assert sample(None) != sample(None)
    for seed, message in (([5], "one for each of 2"), ("ab", "expected None or an integer"), (-1, "expected None or")):
        with pytest.raises(InputError, match=f"seed: .*{message}"):
            JatPolicy(engine, vector_env, seed=seed)


# ---- misuse


def test_what_no_policy_can_be_made_of(engine: JatEngine, load: Load) -> None:
    vector_env = make_vector("babyai-go-to-obj", "sync", MODES[0])
    arm = make_vector("mujoco-reacher", "sync", MODES[0])
    for arguments, given, message in [
        (("jat-mini", vector_env), {}, "engine: expected a JatEngine, got str"),
        ((engine, make("babyai-go-to-obj")), {}, "expected a vector environment, got"),
        ((engine, vector_env), {"mode": "Next"}, "has the mode 'Next'; expected one of NextStep"),
        ((engine, vector_env), {"deterministic": 1}, "deterministic: expected True or False"),
        ((engine, vector_env), {"context_window": 0}, "context_window: expected None or an integer >= 1"),
        ((engine, vector_env), {"top_k": 0}, "top_k: expected"),
        ((engine, vector_env), {"action_clip": "box"}, "action_clip: expected a Box"),
        ((engine, arm), {"temperature": 1.0}, "temperature: expected a Discrete"),
        ((engine, type("Other", (), {"num_envs": 2, "metadata": vector_env.metadata})()), {}, "got Other"),
    ]:
        with pytest.raises(InputError, match=re.escape(message)):
            JatPolicy(*arguments, **given)

    free = engine.cache_stats.free
    with pytest.raises(InputError, match="seed"):
        JatPolicy(engine, vector_env, seed=[0, -1])
    assert engine.cache_stats.free == free, "the first agent's session is closed again"


def test_order_of_calls(engine: JatEngine) -> None:
    vector_env = make_vector("babyai-go-to-obj", "sync", MODES[0])
    policy = JatPolicy(engine, vector_env)
    observations = vector_env.reset(seed=0)
    results = vector_env.step([0, 0])
    with pytest.raises(SessionError, match="step: expected reset"):
        policy.step(*results)
    with pytest.raises(InputError, match=r"predict: .*one of Gymnasium's; call reset"):
        policy.predict(observations[0])

    policy.reset(*observations)
    assert repr(policy) == "JatPolicy(num_envs=2, mode='NextStep', context_window=252)"
    with policy:
        policy.step(*results)
    policy.close()
    assert policy.closed
    for call in (lambda: policy.reset(*observations), lambda: policy.step(*results), policy.__enter__):
        with pytest.raises(SessionError, match="policy: expected an open one, got one that was closed"):
            call()
    with pytest.raises(TypeError, match="a policy cannot be pickled or copied"):
        policy.__reduce__()


def test_an_engine_that_is_closed(load: Load) -> None:
    vector_env = make_vector("babyai-go-to-obj", "sync", MODES[0])
    engine = JatEngine.from_pretrained("jat-mini", device="cpu", dtype="float32", num_threads=1)
    policy = JatPolicy(engine, vector_env)
    policy.reset(*vector_env.reset(seed=0))
    engine.close()
    assert policy.closed
    with pytest.raises(SessionError, match="policy: expected an open one"):
        policy.step(*vector_env.step([0, 0]))


def bad_inputs(good: tuple[Any, ...]) -> list[tuple[str, tuple[Any, ...]]]:
    """Return what a step must refuse, with the beginning of the message."""
    observations, rewards, terminated, _, infos = good
    numbers, missions = observations["discrete_observation"], observations["text_observation"]

    def seen(**changes: Any) -> tuple[Any, ...]:
        merged = {**observations, **changes}
        return {name: value for name, value in merged.items() if value is not None}, *good[1:]

    cases: list[tuple[str, tuple[Any, ...]]] = [
        ("observations: expected a dict", (None, *good[1:])),
        ("observations: expected a dict", (numbers, *good[1:])),
        ("observations: expected a dict", seen(text_observation=None)),
        ("observations: expected a dict", seen(image_observation=numbers)),
        ("discrete_observation", seen(discrete_observation=numbers[0])),
        ("discrete_observation", seen(discrete_observation=numbers[:1])),
        ("discrete_observation", seen(discrete_observation=np.concatenate([numbers, numbers]))),
        ("discrete_observation", seen(discrete_observation=numbers[:, :-1])),
        ("discrete_observation", seen(discrete_observation=-1 - numbers)),
        ("discrete_observation", seen(discrete_observation=numbers + 10**6)),
        ("discrete_observation", seen(discrete_observation=numbers * 0.5)),
        ("discrete_observation", seen(discrete_observation=[{}, {}])),
        ("text_observation", seen(text_observation=missions[0])),
        ("text_observation", seen(text_observation=missions[:1])),
        ("text_observation", seen(text_observation=[1, 2])),
        ("text_observation", seen(text_observation=np.zeros(2, int))),
        ("text_observation", seen(text_observation=np.full((2, 4), -1))),
        ("text_observation", seen(text_observation=np.full((2, 4), 0x110000))),
        ("text_observation", seen(text_observation=np.full((2, 4), 0xD800))),
        ("text_observation", seen(text_observation=np.zeros((2, 4)))),
    ]
    for value in (None, 1.0, [0.0], [0.0] * 3, [[0.0, 0.0]], ["a", "b"], {}, infos):
        cases.append(("rewards", (observations, value, *good[2:])))
    for value in (None, True, [True], [False] * 3, [0, 1], [[True, False]], ["a", "b"], rewards, infos):
        cases.append(("terminated", (observations, rewards, value, *good[3:])))
        cases.append(("truncated", (observations, rewards, terminated, value, infos)))
    for value in (None, 1, "infos", [{}], [{}, {}, {}], [1, 2], rewards, [None, {}], [{"final_info": 1}, {}]):
        cases.append(("infos", (*good[:4], value)))
    cases.append(("infos", (*good[:4], {"life_lost": np.array([True] * 3)})))
    cases.append(("infos", (*good[:4], {"final_info": np.array([True] * 3)})))
    return cases


def test_a_refused_step_changes_nothing(engine: JatEngine) -> None:
    """In a step after which an episode begins; each refused call is followed by the right one."""
    vector_env = make_vector("babyai-go-to-obj", "sync", AutoresetMode.SAME_STEP, max_episode_steps=4)
    with JatPolicy(engine, vector_env, seed=0) as policy, JatPolicy(engine, vector_env, seed=0) as expected:
        actions = policy.reset(*vector_env.reset(seed=0))
        expected.reset(*vector_env.reset(seed=0))
        cases = bad_inputs(vector_env.step(actions))
        for number, (message, _) in enumerate(cases):
            good = vector_env.step(actions)
            bad = bad_inputs(good)[number][1]
            with pytest.raises(InputError, match=f"^{message}"):
                policy.step(*bad)
            with pytest.raises(InputError, match="reset_mask"):
                policy.step(*good, reset_mask=[1, 0])
            with pytest.raises(InputError, match="action_masks"):
                policy.step(*good, action_masks=np.zeros((2, 7), bool))
            with pytest.raises(InputError):
                policy.reset(bad[0] if message.startswith(("obs", "disc", "text")) else None)
            actions = policy.step(*good)
            assert np.array_equal(actions, expected.step(*good)), number


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_rewards_that_are_no_numbers(bad: float, engine: JatEngine) -> None:
    vector_env = make_vector("babyai-go-to-obj", "sync", MODES[0])
    with JatPolicy(engine, vector_env, deterministic=True) as policy:
        observations, _, *ends = vector_env.step(policy.reset(*vector_env.reset(seed=0)))
        with pytest.raises(InputError, match="rewards: expected 2 finite numbers"):
            policy.step(observations, [0.0, bad], *ends)
        policy.step(observations, [0.0, 0.0], *ends)


def test_an_environment_that_was_not_reset(engine: JatEngine) -> None:
    vector_env = make_vector("babyai-go-to-obj", "sync", AutoresetMode.DISABLED, max_episode_steps=1)
    with JatPolicy(engine, vector_env) as policy:
        results = vector_env.step(policy.reset(*vector_env.reset(seed=0)))
        with pytest.raises(InputError, match=r"reset_mask: expected True for environments \[1\]"):
            policy.step(*results, reset_mask=np.array([True, False]))


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_an_episode_that_ends_with_nan(mode: AutoresetMode, engine: JatEngine) -> None:
    """As a simulation that diverges: what no agent reads is not refused."""
    pytest.importorskip("mujoco", reason="needs the mujoco extra")
    vector_env = make_vector("mujoco-reacher", "sync", mode)
    with JatPolicy(engine, vector_env) as policy, JatPolicy(engine, vector_env) as expected:
        start = vector_env.reset(seed=0)
        actions = policy.reset(*start)
        expected.reset(*start)
        observations, rewards, terminated, truncated, infos = vector_env.step(actions)
        terminated[1], rewards[1] = True, np.nan
        last = observations["continuous_observation"].copy()
        if mode is AutoresetMode.NEXT_STEP:
            last[1] = np.nan
        actions = policy.step({"continuous_observation": last}, rewards, terminated, truncated, infos)
        usual = expected.step(observations, np.nan_to_num(rewards), terminated, truncated, infos)
        assert np.array_equal(actions, usual)
        results = vector_env.step(actions)
        assert np.array_equal(policy.step(*results), expected.step(*results))


def test_a_step_that_fails_half_way(engine: JatEngine) -> None:
    """The other agents have taken it: the policy goes on after a reset only."""
    pytest.importorskip("mujoco", reason="needs the mujoco extra")
    vector_env = make_vector("mujoco-reacher", "sync", MODES[0])
    with JatPolicy(engine, vector_env) as policy:
        start = vector_env.reset(seed=0)
        expected = policy.reset(*start)
        observations, *others = vector_env.step(expected)
        large = {"continuous_observation": observations["continuous_observation"].copy()}
        large["continuous_observation"][1] = 3e38
        with pytest.raises(InputError, match=r"agents \[1\]: .*not finite.*reset environments and policy"):
            policy.step(large, *others)
        with pytest.raises(SessionError, match="a call since then that failed in the middle of a step"):
            policy.step(observations, *others)
        assert np.array_equal(policy.reset(*start), expected)


def test_the_documented_loop(engine: JatEngine) -> None:
    """That of the mode "Disabled", which is in the docstring of `step`; the other one is an example of the page."""
    lines = inspect.cleandoc(JatPolicy.step.__doc__ or "").splitlines()
    indented = itertools.takewhile(lambda line: not line.startswith("Args"), lines)
    code = "\n".join(line.removeprefix("    ") for line in indented if line.startswith("    "))
    assert "reset_mask" in code
    vector_env = make_vector("babyai-go-to-obj", "sync", AutoresetMode.DISABLED, max_episode_steps=3)
    with JatPolicy(engine, vector_env) as policy:
        names = {"policy": policy, "vector_env": vector_env, "actions": policy.reset(*vector_env.reset(seed=0))}
        for _ in range(10):
            exec(code, names)
