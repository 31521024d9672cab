"""Comparison of two agents: pairs, verdicts, and how often chance or a planted loss is taken for a difference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from helpers.evaluations import SETTINGS, episodes_of, evaluation_of, sample_evaluation

from jat_engine.envs import TASKS, Score, get_task
from jat_engine.evaluation.statistics import Interval
from jat_engine.runs.compare import BETTER, NO_DIFFERENCE, WORSE, compare
from jat_engine.runs.records import Evaluation

METAWORLD = [name for name in TASKS if name.startswith("metaworld")]
MIXED = sample_evaluation(["atari-pong", "babyai-go-to-obj", "metaworld-reach", "mujoco-hopper"], 6)


def played(returns: Mapping[str, np.ndarray], seed: int = 1_000_000) -> Evaluation:
    """Return an evaluation of published tasks with these normalised returns, of which those above 0.5 are successes."""
    tasks = []
    for name, scores in returns.items():
        task = TASKS[name]
        assert task.random is not None
        assert task.expert is not None
        values = task.random.mean + scores * (task.expert.mean - task.random.mean)
        tasks.append(episodes_of(task, values, None if task.success is None else scores > 0.5, seed))
    return evaluation_of(tasks)


def solved(rng: np.random.Generator, names: list[str], episodes: int, loss: float) -> tuple[Evaluation, Evaluation]:
    """Return two agents that solve tasks on the same seeds, the second one with a probability lower by `loss`."""
    first, second = {}, {}
    for name in names:
        chance, shared = rng.uniform(0.4, 0.95), rng.uniform(size=episodes)
        other = np.where(rng.uniform(size=episodes) < 0.5, shared, rng.uniform(size=episodes))
        first[name], second[name] = (shared < chance).astype(float), (other < chance - loss).astype(float)
    return played(first), played(second)


# ---- verdicts --------------------------------------------------------------------------------------------------------


def test_two_runs_of_one_agent_are_equal() -> None:
    found = compare(MIXED, MIXED)
    assert found.verdict == "equal"
    assert {task.verdict for task in found.tasks} == {"equal"}
    for task in found.tasks:
        assert (task.equal, task.difference, task.p_value) == (6, Interval(0, 0, 0), 1)
    assert found.overall.scores is not None
    assert found.overall.scores.mean == found.overall.scores.iqm == found.overall.success == Interval(0, 0, 0)
    assert (found.settings, found.left_out, found.regressions(0)) == ({}, [], {})


def test_an_episode_of_another_course_is_not_equal() -> None:
    pong = MIXED.tasks["atari-pong"]
    other = replace(pong, episodes=(replace(pong.episodes[0], digest="another"), *pong.episodes[1:]))
    found = compare(evaluation_of([pong]), evaluation_of([other]))
    assert found.tasks[0].equal == 5  # its return is equal
    assert (found.verdict, found.tasks[0].verdict) == (NO_DIFFERENCE, NO_DIFFERENCE)


def test_a_planted_loss_of_five_points_is_found_and_limited() -> None:
    rng = np.random.default_rng(0)
    results = [compare(*solved(rng, METAWORLD, 30, 0.05)) for _ in range(8)]  # 1,500 pairs
    assert sum(found.verdict == WORSE for found in results) >= 7
    for found in results:
        loss = found.losses["success rate"]
        assert loss.low < 5 < loss.high
        assert loss.value == pytest.approx(found.losses["mean score"].value)
    assert sum(bool(found.regressions(2)) for found in results) >= 7
    assert not any(found.regressions(10) for found in results)


@pytest.mark.parametrize(("tasks", "episodes"), [(1, 3), (8, 2), (12, 5)])
def test_equal_agents_are_seldom_told_apart(tasks: int, episodes: int) -> None:
    rng = np.random.default_rng(1)
    results = [compare(*solved(rng, METAWORLD[:tasks], episodes, 0.0)) for _ in range(60)]
    assert sum(found.verdict != NO_DIFFERENCE for found in results if found.verdict != "equal") <= 6
    assert sum(bool(found.regressions(0)) for found in results) <= 4
    assert sum(task.verdict in (BETTER, WORSE) for found in results for task in found.tasks) <= 4


def test_one_task_among_many_is_found() -> None:
    rng = np.random.default_rng(0)
    first = {name: rng.normal(0.8, 0.3, 20) for name in METAWORLD[:20]}
    noise = {name: scores + rng.normal(0, 0.05, 20) for name, scores in first.items()}
    better = compare(played(first), played({**noise, METAWORLD[3]: first[METAWORLD[3]] + 0.1}))
    assert [task.pairs.task.name for task in better.tasks if task.verdict == BETTER] == [METAWORLD[3]]
    assert not [task for task in better.tasks if task.verdict == WORSE]
    worse = compare(played(first), played({**noise, METAWORLD[3]: first[METAWORLD[3]] - 0.1}))
    (task,) = [task for task in worse.tasks if task.verdict == WORSE]
    assert (task.pairs.task.name, task.sign.negative) == (METAWORLD[3], 20)
    assert task.p_value == pytest.approx(20 * 2 / 2**20)  # by Holm's method


def test_detectable_differences_are_in_the_units_of_the_means() -> None:
    rng = np.random.default_rng(0)
    first = {"mujoco-hopper": rng.normal(size=50)}
    found = compare(played(first), played({"mujoco-hopper": first["mujoco-hopper"] + rng.normal(0, 0.5, 50)}))
    assert found.overall.detectable == pytest.approx(2.8 * 0.5 / 50**0.5, rel=0.25)
    hopper = TASKS["mujoco-hopper"]
    assert hopper.expert is not None
    assert hopper.random is not None
    scale = hopper.expert.mean - hopper.random.mean
    assert found.tasks[0].detectable == pytest.approx(found.overall.detectable * scale)


def test_single_episodes_are_judged_by_the_sign_test() -> None:
    """Their spread is unknown: an interval would have no width, and call every difference one that is there."""
    names = METAWORLD[:10]
    first = {name: np.array([0.8]) for name in names}
    mixed = {name: np.array([0.8 + 0.1 * (-1) ** number]) for number, name in enumerate(names)}
    found = compare(played(first), played(mixed))
    assert (found.verdict, found.overall.scores, found.tasks[0].difference) == (NO_DIFFERENCE, None, None)
    with pytest.raises(ValueError, match=r"max_regression: expected scores.* at least two pairs"):
        found.regressions(5)
    assert compare(played(first), played({name: np.array([0.1]) for name in names})).verdict == WORSE


# ---- pairs -----------------------------------------------------------------------------------------------------------


def test_other_seeds_are_refused() -> None:
    scores = {"mujoco-hopper": np.linspace(0, 1, 5)}
    with pytest.raises(ValueError, match=r"expected two runs with episodes of the same tasks and seeds.*--seed"):
        compare(played(scores), played(scores, seed=1_000_005))
    with pytest.raises(ValueError, match="same tasks and seeds"):
        compare(played(scores), played({"mujoco-ant": np.linspace(0, 1, 5)}))


def test_episodes_are_paired_by_their_seeds_and_others_are_counted() -> None:
    scores = np.linspace(0, 1, 5)
    found = compare(
        played({"mujoco-hopper": scores, "mujoco-ant": scores}), played({"mujoco-hopper": scores[2:]}, seed=1_000_002)
    )
    (task,) = found.tasks
    assert (task.equal, task.pairs.left_out) == (3, 2)
    assert found.left_out == [
        "mujoco-ant: 5 episodes that only one of the agents has played",
        "mujoco-hopper: 2 episodes that only one of the agents has played",
    ]


def test_failed_episodes_are_left_out() -> None:
    hopper = MIXED.tasks["mujoco-hopper"]
    failed = replace(hopper.episodes[0], return_=None, error="the simulator ended", digest="")
    found = compare(evaluation_of([hopper]), evaluation_of([replace(hopper, episodes=(failed, *hopper.episodes[1:]))]))
    assert (found.verdict, found.tasks[0].equal, found.tasks[0].pairs.left_out) == ("equal", 5, 1)


def test_settings_and_versions_that_differ_are_named() -> None:
    hopper = MIXED.tasks["mujoco-hopper"]
    sides = [
        Evaluation(
            {**SETTINGS, "dtype": dtype},
            {"mujoco-hopper": replace(hopper, description={"versions": {"mujoco": version}})},
        )
        for dtype, version in (("float32", "3.3.0"), ("int8", "3.4.0"))
    ]
    assert compare(*sides).settings == {"dtype": ("float32", "int8"), "version of mujoco": ("3.3.0", "3.4.0")}


def test_another_environment_of_the_same_name_is_refused() -> None:
    cart = get_task("gym:CartPole-v1")
    task = episodes_of(cart, [10.0, 20.0])
    other = replace(task, description={"rule": {**cart.rule, "adapter": {"size": 6}}})
    with pytest.raises(ValueError, match="gym:CartPole-v1: expected both agents to play the same environment"):
        compare(evaluation_of([replace(task, description={"rule": cart.rule})]), evaluation_of([other]))


def test_the_reference_is_one_that_both_agents_have() -> None:
    hopper = TASKS["mujoco-hopper"]
    mine, theirs = (hopper.with_scores(None, Score(mean, None)) for mean in (1000.0, 1500.0))
    first, same, other = (episodes_of(task, [500.0, 900.0]) for task in (mine, mine, theirs))
    assert compare(evaluation_of([first]), evaluation_of([same])).overall.reference == "expert"
    by_demonstrator = compare(evaluation_of([first]), evaluation_of([same]), "demonstrator")
    assert by_demonstrator.overall.reference == "demonstrator"
    assert compare(evaluation_of([first]), evaluation_of([other]), "demonstrator").overall.reference is None
