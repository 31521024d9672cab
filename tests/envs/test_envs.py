"""The table of tasks, and real environments of every domain."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest

from jat_engine.envs import DOMAINS, TASKS, MissingSimulatorError, UnknownTaskError, expand_tasks, make

SAMPLE = [
    "atari-pong", "atari-breakout", "atari-montezumarevenge",
    "babyai-go-to-local", "babyai-put-next", "babyai-boss-level",
    "metaworld-reach", "metaworld-box-close", "metaworld-door-open",
    "mujoco-ant", "mujoco-hopper", "mujoco-pusher",
]  # fmt: skip
MODULES = {"atari": ("ale_py", "cv2"), "babyai": ("minigrid",), "metaworld": ("metaworld",), "mujoco": ("mujoco",)}


def need(task: str) -> None:
    domain = task.split("-")[0]
    for module in MODULES[domain]:
        pytest.importorskip(module, reason=f"needs the {domain} extra")


def rollout(env: Any, steps: int, seed: int | None = None) -> list[Any]:
    """Reset, take up to `steps` random actions, and return observations, rewards and dones."""
    observation, _ = env.reset(seed=seed)
    trace = [observation]
    for _ in range(steps):
        observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        trace += [observation, reward, terminated, truncated]
        if terminated or truncated:
            break
    return trace


def same(a: list[Any], b: list[Any]) -> bool:
    def equal(x: Any, y: Any) -> bool:
        if isinstance(x, dict):
            return x.keys() == y.keys() and all(np.array_equal(x[key], y[key]) for key in x)
        return bool(x == y)

    return len(a) == len(b) and all(map(equal, a, b))


# ---- the table


def test_table() -> None:
    assert Counter(t.domain for t in TASKS.values()) == {"atari": 57, "babyai": 39, "metaworld": 50, "mujoco": 11}
    assert all(t.context_window == (32 if t.domain == "atari" else 256) for t in TASKS.values())
    assert all(t.random and t.expert for t in TASKS.values())
    assert all((t.human is not None) == (t.domain == "atari") for t in TASKS.values())
    ant, pong, reach = TASKS["mujoco-ant"], TASKS["atari-pong"], TASKS["metaworld-reach"]
    assert (ant.env_id, ant.expert.mean, ant.random.std) == ("Ant-v4", 5846.42, 99.619)
    assert (pong.observation, pong.random.mean, pong.random.std, pong.human.mean) == ("image", -20.7, None, 14.6)
    assert (reach.env_id, reach.published_env_id, reach.observation) == ("reach-v3", "reach-v2", "continuous")


def test_expand_tasks() -> None:
    assert expand_tasks(["all"]) == list(TASKS)
    assert len(expand_tasks(["mujoco", "mujoco-ant", "atari-pong"])) == 12
    assert expand_tasks(["atari-pong", "atari-alien", "atari-pong"]) == ["atari-pong", "atari-alien"]
    assert [len(expand_tasks([domain])) for domain in DOMAINS] == [57, 39, 50, 11]
    with pytest.raises(UnknownTaskError, match="no task is named 'atari-pang'; did you mean atari-pong"):
        expand_tasks(["mujoco", "atari-pang"])
    with pytest.raises(UnknownTaskError, match="expected a list"):
        expand_tasks("atari-pong")


def test_import_and_errors_without_simulators() -> None:
    """No simulator is imported until an environment is made; the error then names the extra to install."""
    code = """
import sys
blocked = ("gymnasium", "ale_py", "cv2", "minigrid", "metaworld", "mujoco")
for name in blocked:
    sys.modules[name] = None
from jat_engine.envs import TASKS, make, MissingSimulatorError
for name in blocked[:1]:
    del sys.modules[name]
for task in ("atari-pong", "babyai-go-to", "metaworld-reach", "mujoco-ant"):
    try:
        make(task)
    except MissingSimulatorError as error:
        assert f"pip install 'jat-engine[{task.split('-')[0]}]'" in str(error), error
        print("ok")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["ok"] * 4


def test_wrong_requests() -> None:
    with pytest.raises(UnknownTaskError, match="did you mean mujoco-hopper"):
        make("mujoco-hoper")
    need("mujoco-hopper")
    with pytest.raises(TypeError, match="unexpected option 'clip_reward'; mujoco takes render_mode"):
        make("mujoco-hopper", clip_reward=False)
    with pytest.raises(ValueError, match="render_mode: expected None, 'human' or 'rgb_array', got 'ansi'"):
        make("mujoco-hopper", render_mode="ansi")
    assert issubclass(MissingSimulatorError, ImportError)


# ---- every domain


@pytest.mark.versions
@pytest.mark.parametrize("task", SAMPLE)
def test_random_steps(task: str) -> None:
    need(task)
    env = make(task, seed=0)
    observation, _ = env.reset()
    size = env.action_space.n if TASKS[task].action == "discrete" else env.action_space.shape[0]
    assert TASKS[task].action_size == size
    for _ in range(10):
        assert env.observation_space.contains(observation)
        observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        assert isinstance(reward, float)
        if terminated or truncated:
            observation, _ = env.reset()
    env.close()


@pytest.mark.versions
@pytest.mark.parametrize("task", ["atari-breakout", "babyai-go-to-local", "metaworld-reach", "mujoco-hopper"])
def test_seeds(task: str) -> None:
    """A seed determines an episode, given to make or to reset, in a new environment and in a used one."""
    need(task)
    first = rollout(make(task, seed=3), 60)
    assert same(first, rollout(make(task, seed=3), 60))
    assert not same(first, rollout(make(task, seed=4), 60))
    used = make(task, seed=9)
    rollout(used, 25)
    used.action_space.seed(3)
    assert same(first, rollout(used, 60, seed=3))
    assert not same(first, rollout(used, 60)), "the next episode is another one"


def test_seeds_hold_across_processes() -> None:
    for task in ("metaworld-pick-place", "babyai-go-to", "atari-pong"):
        need(task)
    code = """
import zlib, numpy as np
from jat_engine.envs import make
for task in ("metaworld-pick-place", "babyai-go-to", "atari-pong"):
    env, crc = make(task, seed=11), 0
    observation, _ = env.reset()
    for _ in range(20):
        crc = zlib.crc32(repr([(k, np.asarray(v).tolist()) for k, v in observation.items()]).encode(), crc)
        observation, *_ = env.step(env.action_space.sample())
    print("crc", crc)
"""
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]

    lines = [[line for line in run.splitlines() if line.startswith("crc")] for run in runs]
    assert lines[0] == lines[1]
    assert len(set(lines[0])) == 3


# ---- Atari


def test_atari_frames_equal_a_computation_from_raw_frames() -> None:
    """Drive a bare emulator with the same raw actions, and process its screens here in a few lines."""
    need("atari-breakout")
    import ale_py
    import cv2
    import gymnasium as gym

    for task, game in (("atari-breakout", "ALE/Breakout-v5"), ("atari-pong", "ALE/Pong-v5")):
        env = make(task, clip_reward=False)
        raw_actions: list[int] = []
        inner = env.unwrapped.step
        env.unwrapped.step = lambda action, inner=inner, log=raw_actions: (log.append(int(action)), inner(action))[1]
        rng = np.random.default_rng(0)
        observation, _ = env.reset(seed=5)
        observations, rewards, lengths = [observation["image_observation"]], [], [len(raw_actions)]
        for _ in range(30):
            observation, reward, terminated, _, _ = env.step(int(rng.integers(env.action_space.n)))
            if terminated:
                break
            observations.append(observation["image_observation"])
            rewards.append(reward)
            lengths.append(len(raw_actions))
        assert len(observations) > 20

        gym.register_envs(ale_py)
        bare = gym.make(game, frameskip=1, repeat_action_probability=0.0)
        screens, raw_rewards = [bare.reset(seed=5)[0]], [0.0]
        for action in raw_actions:
            screen, reward, *_ = bare.step(action)
            screens.append(screen)
            raw_rewards.append(reward)

        def grey(end: int, screens: list[np.ndarray] = screens) -> np.ndarray:
            pooled = np.maximum(screens[end - 1], screens[end])
            return cv2.cvtColor(cv2.resize(pooled, (84, 84), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)

        noops = raw_actions.index(1)  # no-ops, then FIRE and action 2 for four frames each
        assert 1 <= noops <= 30
        assert raw_actions[noops : lengths[0]] == [1] * 4 + [2] * 4
        frames = [grey(lengths[0])] * 4
        assert np.array_equal(observations[0], np.stack(frames, -1))
        for i in range(1, len(observations)):
            frames = [*frames[1:], grey(lengths[i])]
            assert np.array_equal(observations[i], np.stack(frames, -1)), f"{task} step {i}"
            assert rewards[i - 1] == sum(raw_rewards[lengths[i - 1] + 1 : lengths[i] + 1])


def play_game(env: Any, steps: int) -> tuple[list[Any], dict[str, int] | None]:
    """Play by the published loop with seeded actions; return what the agent sees, and a whole game's statistics."""
    rng = np.random.default_rng(0)
    observation, _ = env.reset(seed=1)
    trace: list[Any] = [observation]
    done = False
    while not done and len(trace) < 2 * steps:
        observation, reward, terminated, truncated, info = env.step(int(rng.integers(env.action_space.n)))
        done = terminated or truncated
        if done and "episode" not in info:  # published: the "fake done" of a lost life
            observation, _ = env.reset()
            done = False
        trace += [observation, reward]
    return trace, {name: int(info["episode"][name]) for name in ("r", "l")} if done else None


@pytest.mark.parametrize(
    ("task", "steps"), [("atari-breakout", 1000), ("atari-mspacman", 400), ("atari-montezumarevenge", 300)]
)
def test_lost_lives_within_a_step_equal_the_published_loop(task: str, steps: int) -> None:
    """Bit for bit: no-op, FIRE, filled frames, kept and dropped rewards, the statistics of the game."""
    need(task)
    whole, statistics = play_game(make(task), steps)
    published, published_statistics = play_game(make(task, terminal_on_life_loss=True), steps)
    assert same(whole, published)
    assert statistics == published_statistics
    if task == "atari-breakout":
        assert statistics is not None
        assert statistics["l"] > 4 * (len(whole) // 2)  # raw frames, those after lost lives too


def test_an_atari_episode_is_a_whole_game() -> None:
    """Breakout has five lives; a plain loop of Gymnasium plays all of them."""
    need("atari-breakout")

    def play(**options: Any) -> tuple[list[bool], dict[str, Any], int]:
        env = make("atari-breakout", seed=1, **options)
        env.reset()
        lost, done, info = [], False, {}
        while not done:
            _, reward, terminated, truncated, info = env.step(env.action_space.sample())
            assert reward in (0.0, 1.0)
            lost.append(info["life_lost"])
            done = terminated or truncated
        return lost, info, env.unwrapped.ale.lives()

    lost, info, lives = play()
    assert (sum(lost), lives) == (4, 0)
    assert not lost[-1]
    assert "episode" in info
    lost, info, _ = play(episode_statistics=False)
    assert sum(lost) == 4
    assert "episode" not in info
    lost, info, _ = play(episodic_life=False)
    assert sum(lost) == 0
    assert "episode" in info
    lost, info, lives = play(terminal_on_life_loss=True)
    assert (sum(lost), lives) == (1, 4)
    assert lost[-1]
    assert "episode" not in info
    with pytest.raises(ValueError, match="terminal_on_life_loss: expected False with episodic_life=False"):
        make("atari-breakout", episodic_life=False, terminal_on_life_loss=True)


def test_a_reset_starts_a_new_game() -> None:
    """Also while a game is running and lives are lost: the reset of a TimeLimit, of a vector environment, of a user."""
    need("atari-breakout")
    env = make("atari-breakout", seed=1)
    env.reset()
    while not env.step(0)[4]["life_lost"]:
        pass
    assert env.unwrapped.ale.lives() == 4
    env.reset()
    assert env.unwrapped.ale.lives() == 5
    continued = make("atari-breakout", seed=1, terminal_on_life_loss=True)
    continued.reset()
    while not continued.step(0)[2]:
        pass
    continued.reset()
    assert continued.unwrapped.ale.lives() == 4, "as published"


def test_a_seed_starts_a_new_game_after_a_lost_life() -> None:
    need("atari-breakout")
    env = make("atari-breakout", seed=1, terminal_on_life_loss=True)
    first, _ = env.reset(seed=2)
    terminated = False
    while not terminated:
        _, _, terminated, _, _ = env.step(env.action_space.sample())
    again, _ = env.reset(seed=2)
    assert np.array_equal(first["image_observation"], again["image_observation"])
    assert env.unwrapped.ale.lives() == 5


def test_gymnasiums_wrappers_see_whole_games() -> None:
    """A time limit ends the episode where it says, and statistics cover the game."""
    need("atari-breakout")
    import gymnasium as gym

    env = gym.make("jat/atari-breakout-v0", max_episode_steps=100)
    env = gym.wrappers.RecordEpisodeStatistics(env)
    lengths = []
    env.reset(seed=0)
    for _ in range(2):
        done, lost = False, 0
        while not done:
            _, _, terminated, truncated, info = env.step(0)
            done, lost = terminated or truncated, lost + info["life_lost"]
        assert truncated
        assert lost >= 1
        lengths.append(info["episode"]["l"])
        env.reset()
        assert env.unwrapped.ale.lives() == 5
    assert lengths == [100, 100]


def test_montezuma_is_cut() -> None:
    need("atari-montezumarevenge")
    env = make("atari-montezumarevenge", seed=0, episodic_life=False)
    truncated, steps = False, 0
    env.reset()
    while not truncated:
        _, _, terminated, truncated, info = env.step(0)
        steps += 1
        assert not terminated
    assert info["episode"]["l"] == 18_000
    assert steps <= 4_500


# ---- BabyAI


def test_babyai_observation_and_mission_in_the_frame() -> None:
    need("babyai-go-to-local")
    env = make("babyai-go-to-local", seed=0, render_mode="rgb_array")
    observation, _ = env.reset()
    assert observation["text_observation"] == env.unwrapped.mission
    raw = env.unwrapped.gen_obs()
    integers = observation["discrete_observation"]
    assert integers.shape == (148,)
    assert integers[0] == raw["direction"]
    assert np.array_equal(integers[1:].reshape(7, 7, 3), raw["image"])
    difference = (env.render() != env.unwrapped.render()).any(-1)
    assert difference[5:35].any()
    assert not difference[40:].any()


# ---- Meta-World


def test_metaworld_episodes() -> None:
    need("metaworld-reach")
    env = make("metaworld-reach", seed=0, render_mode="rgb_array")
    goals = []
    for _ in range(2):
        observation, _ = env.reset()
        values = observation["continuous_observation"]
        assert values.shape == (39,)
        assert values.dtype == np.float32
        assert not values[36:].any(), "the goal is not shown"
        goals.append(env.unwrapped._env._target_pos.copy())
        steps, truncated = 0, False
        while not truncated:
            _, _, terminated, truncated, _ = env.step(np.full(4, 1e6, np.float32))  # clipped
            assert not terminated
            steps += 1
        assert steps == 100

    assert not np.array_equal(*goals)
    goal = make("metaworld-reach", seed=0)
    goal.reset()
    assert np.array_equal(goal.unwrapped._env._target_pos, goals[0])


# ---- MuJoCo


def test_mujoco_sizes() -> None:
    need("mujoco-ant")
    sizes = {
        "ant": (27, 8), "doublependulum": (11, 1), "halfcheetah": (17, 6), "hopper": (11, 3), "humanoid": (376, 17),
        "pendulum": (4, 1), "pusher": (23, 7), "reacher": (11, 2), "standup": (376, 17), "swimmer": (8, 2),
        "walker": (17, 6),
    }  # fmt: skip
    for name, (observation_size, action_size) in sizes.items():
        env = make(f"mujoco-{name}", seed=0)
        assert env.reset()[0]["continuous_observation"].shape == (observation_size,)
        assert env.action_space.shape == (action_size,)


def test_pusher_reward_is_that_of_v4() -> None:
    """v4 uses the positions before the step, v5 those after it."""
    need("mujoco-pusher")
    env = make("mujoco-pusher", seed=0)
    values = env.reset()[0]["continuous_observation"]
    for _ in range(20):
        action = env.action_space.sample()
        fingertip, thing, goal = values[14:17], values[17:20], values[20:23]
        expected = -np.linalg.norm(thing - goal) - 0.1 * np.sum(action**2) - 0.5 * np.linalg.norm(thing - fingertip)
        observation, reward, *_ = env.step(action)
        values = observation["continuous_observation"]
        assert reward == pytest.approx(expected, rel=1e-6)


def test_atari_in_a_window() -> None:
    need("atari-pong")
    code = """
from jat_engine.envs import make
env = make("atari-pong", render_mode="human", seed=0)
env.reset()
for _ in range(3):
    env.step(env.action_space.sample())
env.close()
"""
    silent = {**os.environ, "SDL_VIDEODRIVER": "dummy", "SDL_AUDIODRIVER": "dummy"}
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=silent)
