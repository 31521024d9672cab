"""Environments in slots: an episode depends on its seed and its actions, whatever else happens in its process."""

from __future__ import annotations

import hashlib
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.dice import BAD_REWARD, DICE, RESET_FAILS, STEP_FAILS, Dice

from jat_engine.envs import TASKS, Task
from jat_engine.evaluation.environment import evaluation_env, missing_simulators
from jat_engine.runs.plan import Item
from jat_engine.runs.recorders import Recorders
from jat_engine.runs.slots import (
    CHAIN_BYTES,
    Act,
    Begin,
    Ended,
    Fail,
    Observed,
    PlayOptions,
    Report,
    Slots,
    hash_observation,
)

PONG, BABYAI, REACH, REACHER = (
    TASKS[name] for name in ("atari-pong", "babyai-go-to-local", "metaworld-reach", "mujoco-reacher")
)


def make_slots(*tasks: Task, **options: Any) -> Slots:
    if missing := missing_simulators(tasks):
        pytest.skip(" ".join(missing.values()))
    return Slots({task.name: task for task in tasks}, PlayOptions(**options))


def action_for(task: Task, seed: int, step: int, space: Any) -> Any:
    """Return an action that depends on these alone, as an agent returns one."""
    numbers = np.random.default_rng([seed, step])
    return int(numbers.integers(space.n)) if task.action == "discrete" else numbers.uniform(-1, 1, space.shape).tolist()


class Playing:
    """An episode in a slot, played step by step."""

    def __init__(self, slots: Slots, slot: int, task: Task, seed: int, index: int = 0) -> None:
        self._slots, self._slot, self._task, self._seed = slots, slot, task, seed
        self.observations: list[dict[str, Any]] = []
        self.rewards: list[float | None] = []
        self._take(slots.obey(Begin(slot, Item(task.name, index, seed))))

    def _take(self, report: Report) -> None:
        self.report = report
        if isinstance(report, Observed):
            if report.action_space is not None:
                self.space = report.action_space
            self.observations.append({key: np.copy(value) for key, value in report.observation.items()})
            self.rewards.append(report.reward)

    def step(self) -> bool:
        """Take a step. Returns True if the episode had not ended."""
        if isinstance(self.report, Ended):
            return False
        action = action_for(self._task, self._seed, len(self.observations), self.space)
        self._take(self._slots.obey(Act(self._slot, action)))
        return True

    def to_end(self) -> Ended:
        """Play to the end."""
        while self.step():
            pass
        assert isinstance(self.report, Ended)
        return self.report


def result(ended: Ended) -> Any:
    return ended.episode, ended.chain


# ---- episodes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [PONG, BABYAI, REACH, REACHER], ids=lambda task: task.name)
def test_an_episode_is_that_of_its_environment(task: Task) -> None:
    """Its hash chain is over (observation, action, reward) of each step, in that order."""
    slots = make_slots(task, max_steps=15)
    playing = Playing(slots, 3, task, 7)
    ended = playing.to_end()

    env = evaluation_env(task)
    observation, _ = env.reset(seed=7)
    chain, kept, total = hashlib.sha256(), b"", 0.0
    for step in range(1, ended.episode.length + 1):
        for key, value in observation.items():
            np.testing.assert_array_equal(playing.observations[step - 1][key], value)
        action = action_for(task, 7, step, env.action_space)
        executed = action if task.action == "discrete" else np.array(action, np.float32)
        hash_observation(chain, observation)
        chain.update(struct.pack("<q", action) if task.action == "discrete" else executed.tobytes())
        observation, reward, terminated, truncated, _ = env.step(executed)
        chain.update(struct.pack("<d", float(reward)))
        kept += chain.digest()[:CHAIN_BYTES]
        total += float(reward)
    env.close()
    slots.close()

    assert ended.episode.length == 15 or terminated or truncated
    assert ended.episode.capped == (not (terminated or truncated))
    assert (ended.episode.return_, ended.episode.seed, ended.episode.digest) == (total, 7, chain.hexdigest())
    assert ended.chain == kept
    assert playing.rewards[0] is None


def test_an_episode_is_the_same_among_others_and_in_an_environment_that_was_used() -> None:
    tasks = [BABYAI, REACHER, DICE]
    alone = {
        (task.name, seed): result(Playing(make_slots(task, max_steps=20), 0, task, seed).to_end())
        for task in tasks
        for seed in (3, 4)
    }
    slots = make_slots(*tasks, max_steps=20)
    for _ in range(2):
        chosen = [(task, seed) for seed in (3, 4) for task in tasks]
        among = [Playing(slots, slot, task, seed) for slot, (task, seed) in enumerate(chosen)]
        while sum(playing.step() for playing in among):
            pass
        for playing in among:
            ended = playing.to_end()
            assert result(ended) == alone[ended.episode.task, ended.episode.seed]
    slots.close()


def test_a_chain_says_which_step_differs_first() -> None:
    class Planted(Playing):
        def step(self) -> bool:
            if len(self.observations) == 4 and isinstance(self.report, Observed):
                action = action_for(REACHER, 7, 4, self.space)
                action[0] = np.nextafter(np.float32(action[0]), np.float32(2))  # the least difference
                self._take(self._slots.obey(Act(0, [float(value) for value in action])))
                return True
            return super().step()

    slots = make_slots(REACHER, max_steps=9)
    first, second = Playing(slots, 0, REACHER, 7).to_end(), Planted(slots, 0, REACHER, 7).to_end()
    steps = [first.chain[i : i + CHAIN_BYTES] == second.chain[i : i + CHAIN_BYTES] for i in range(0, 36, CHAIN_BYTES)]
    assert steps == [True] * 3 + [False] * 6
    assert first.episode.digest != second.episode.digest


@pytest.mark.parametrize(
    ("observation", "other"),
    [
        ({"x": np.zeros(4)}, {"x": np.zeros((2, 2))}),
        ({"x": np.zeros(4)}, {"x": np.zeros(4, np.int64)}),
        ({"x": np.zeros(4)}, {"y": np.zeros(4)}),
        ({"x": "ab", "y": "c"}, {"x": "a", "y": "bc"}),
        ({"x": np.zeros(1)}, {"x": np.full(1, -0.0)}),
    ],
)
def test_observations_that_differ_have_different_hashes(observation: Any, other: Any) -> None:
    digests = []
    for given in (observation, other, dict(reversed(observation.items()))):
        chain = hashlib.sha256()
        hash_observation(chain, given)
        digests.append(chain.hexdigest())
    assert digests[0] != digests[1]
    assert digests[0] == digests[2], "the order of the parts does not count"


def test_success_and_lives() -> None:
    breakout = TASKS["atari-breakout"]
    slots = make_slots(DICE, breakout, BABYAI, max_steps=60)
    assert Playing(slots, 0, DICE, 0).to_end().episode.success is True, "in a step before the last one"
    played = Playing(slots, 1, breakout, 0).to_end().episode
    assert (played.success, played.capped) == (None, True)
    assert played.lives in (3, 4), "of five"
    solved = [Playing(slots, 2, BABYAI, seed).to_end().episode for seed in range(6)]
    assert {episode.success for episode in solved} == {True, False}
    assert all(episode.success == (episode.return_ > 0) for episode in solved if episode.return_ is not None)


# ---- global random numbers -----------------------------------------------------------------------------------------


def test_environments_that_draw_global_numbers_are_repeated_and_change_none() -> None:
    slots = make_slots(DICE)
    alone = result(Playing(slots, 0, DICE, 5).to_end())

    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    expected = [random.random(), random.random(), np.random.rand(), np.random.rand()]  # noqa: NPY002
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    playing = [Playing(slots, number, DICE, seed) for number, seed in enumerate((5, 6))]
    drawn = [random.random(), np.random.rand()]  # noqa: NPY002
    while sum(one.step() for one in playing):
        pass
    drawn += [random.random(), np.random.rand()]  # noqa: NPY002
    assert result(playing[0].to_end()) == alone
    assert result(playing[1].to_end())[1] != alone[1]
    assert [drawn[0], drawn[2], drawn[1], drawn[3]] == expected


# ---- failures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "length", "reason"),
    [
        (RESET_FAILS, 0, "TaskError: dice: reset() of the environment raised RuntimeError: no dice"),
        (STEP_FAILS, 2, "TaskError: dice: step() of the environment raised RuntimeError: lost a die"),
        (BAD_REWARD, 0, "ValueError: reward: expected a finite number, got nan; mend the environment"),
    ],
)
def test_a_failure_ends_its_own_episode(seed: int, length: int, reason: str) -> None:
    slots = make_slots(DICE)
    expected = result(Playing(slots, 0, DICE, 5).to_end())
    other = Playing(slots, 1, DICE, 5)
    closed = Dice.closed
    failed = Playing(slots, 0, DICE, seed).to_end()
    assert (failed.episode.return_, failed.episode.length, failed.episode.error) == (None, length, reason)
    assert failed.episode.failed
    assert "Traceback" in failed.trace
    assert result(other.to_end()) == expected
    assert Dice.closed == closed + 1, "its environment is not used again"
    assert result(Playing(slots, 0, DICE, 5).to_end()) == expected


def test_an_agent_without_an_action_ends_the_episode() -> None:
    slots = make_slots(DICE)
    playing = Playing(slots, 0, DICE, 5)
    playing.step()
    ended = slots.obey(Fail(0, "InputError: too long", "Traceback of the agent"))
    assert isinstance(ended, Ended)
    assert (ended.episode.length, ended.episode.error) == (1, "InputError: too long")
    assert ended.trace == "Traceback of the agent"


def test_an_action_that_does_not_fit_ends_the_episode() -> None:
    slots = make_slots(DICE)
    Playing(slots, 0, DICE, 5)
    ended = slots.obey(Act(0, 3))
    assert isinstance(ended, Ended)
    assert "expected an integer in [0, 3), got 3" in ended.episode.error


def test_recorders_of_an_episode_that_failed_leave_nothing(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs the train extra")
    pytest.importorskip("imageio_ffmpeg", reason="needs the video extra")
    recorders = Recorders(tmp_path, frozenset({0}), trajectories=True)
    slots = make_slots(BABYAI, max_steps=5, recording=recorders)
    Playing(slots, 0, BABYAI, 5, index=0).step()
    slots.obey(Fail(0, "InputError: too long", ""))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    Playing(slots, 0, BABYAI, 5, index=0).to_end()
    Playing(slots, 0, BABYAI, 6, index=1).to_end()
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {
        "episode-0000.mp4",
        "episode-0000.parquet",
        "episode-0001.parquet",
    }


def test_a_recorder_that_fails_costs_no_episode(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs the train extra")
    (tmp_path / "trajectories").touch()
    ended = Playing(make_slots(DICE, recording=Recorders(tmp_path, trajectories=True)), 0, DICE, 5).to_end()
    assert result(ended) == result(Playing(make_slots(DICE), 0, DICE, 5).to_end())
    (problem,) = ended.problems
    assert problem.startswith("no trajectory of dice, episode 0: ")
