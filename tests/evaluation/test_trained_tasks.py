"""Test what a checkpoint knows about its training: tasks, rules, scores and seeds, and the seeds of evaluations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from jat_engine.checkpoint.trained_tasks import (
    FILE_NAME,
    TrainedTask,
    join_earlier,
    read_trained_tasks,
    seed_runs,
    to_json,
    trained_task,
    write_trained_tasks,
)
from jat_engine.envs import Score, TaskError, get_task
from jat_engine.errors import CheckpointError
from jat_engine.evaluation.seeds import choose_seed, overlap_warning

CART = get_task("gym:CartPole-v1").with_scores(Score(20.0, 5.0), Score(500.0, None))


def test_tasks_are_read_as_they_were_written(tmp_path: Path) -> None:
    tasks = [
        trained_task(CART, [(0, 99), (2000, 2000)]),
        replace(
            trained_task(get_task("atari-pong").with_scores(None, Score(19.0, 1.0)), [(7, 9)]),
            is_earlier=True,
        ),
    ]
    write_trained_tasks(tmp_path, to_json(tasks))
    assert read_trained_tasks(tmp_path) == tasks
    assert (tasks[0].random, tasks[0].demonstrator) == (Score(20.0, 5.0), Score(500.0, None))
    assert tasks[1].random is None  # the published score is the package's
    assert tasks[1].demonstrator == Score(19.0, 1.0)


def test_experts_of_earlier_files_are_demonstrators(tmp_path: Path) -> None:
    for name in ("gym:CartPole-v1", "mujoco-pendulum"):
        entry = {"name": name, "rule": get_task(name).rule, "expert": {"mean": 7.0}}
        (tmp_path / FILE_NAME).write_text(json.dumps({"tasks": [entry]}))
        (known,) = read_trained_tasks(tmp_path)
        played = known.apply(get_task(name))
        assert played.demonstrator == Score(7.0, None)
        assert played.expert == get_task(name).expert


def test_checkpoints_without_tasks_and_damaged_ones(tmp_path: Path) -> None:
    assert read_trained_tasks(tmp_path) == []
    for text in ('{"tasks": [{"name": "x"}]}', '{"tasks": [3]}', "[]"):
        (tmp_path / FILE_NAME).write_text(text)
        with pytest.raises(CheckpointError, match=rf"{FILE_NAME}: expected"):
            read_trained_tasks(tmp_path)


def test_tasks_of_earlier_trainings_are_kept() -> None:
    cart, pong = TrainedTask("cart", {}, seeds=((5, 9),)), TrainedTask("pong", {}, seeds=((0, 3),))
    joined = join_earlier([cart], [replace(cart, seeds=((0, 4),)), pong])
    assert joined == [replace(cart, seeds=((0, 4), (5, 9))), replace(pong, is_earlier=True)]
    (again,) = [task for task in join_earlier([pong], joined) if task.name == "pong"]
    assert not again.is_earlier

    shown = replace(pong, demonstrator=Score(21.0, None))
    assert join_earlier([pong], [shown]) == [replace(shown, seeds=pong.seeds)]
    assert join_earlier([shown], [replace(shown, demonstrator=Score(3.0, None))])[0].demonstrator == Score(21.0, None)


def test_a_task_must_be_the_trained_one() -> None:
    known = trained_task(replace(CART, random=None, demonstrator=None))
    known = replace(known, random=Score(22.0, 1.0))
    assert known.apply(CART).random == Score(20.0, 5.0)  # its own come first
    assert known.apply(get_task("gym:CartPole-v1")).random == Score(22.0, 1.0)

    other = replace(get_task("gym:Acrobot-v1"), name=CART.name)
    with pytest.raises(TaskError, match=r"expected adapter .*'size': 4.*got .*'size': 6.*another task"):
        known.apply(other)
    lake = replace(get_task("gym:FrozenLake-v1"), name=CART.name)
    with pytest.raises(TaskError, match=r"expected observation continuous.*got discrete"):
        known.apply(lake)


def test_the_rule_of_demonstrations_is_kept_without_their_environment() -> None:
    """A task that is trained without its module is known by its demonstrations alone, and is evaluated with it."""
    stored = replace(CART, maker=None, adapter=None)
    known = trained_task(stored, stored_rule=CART.rule)
    assert known.rule == CART.rule
    assert known.apply(CART) == CART
    with pytest.raises(TaskError, match="expected adapter"):
        known.apply(replace(get_task("gym:Acrobot-v1"), name=CART.name))


def test_a_rule_without_adapter_takes_any() -> None:
    """Of a table that was imported without an environment only the kinds are known."""
    imported = trained_task(replace(CART, maker=None, adapter=None))
    assert imported.apply(CART) == CART
    with pytest.raises(TaskError, match="expected observation continuous"):
        imported.apply(get_task("gym:FrozenLake-v1"))


def test_runs_of_seeds() -> None:
    assert seed_runs([]) == []
    assert seed_runs([4, 0, 2, 1003]) == [(0, 1003)]
    assert seed_runs([0, 1, 1002, 2**40]) == [(0, 1), (1002, 1002), (2**40, 2**40)]


@pytest.mark.parametrize(
    ("seeds", "chosen"),
    [
        ([], 1_000_000),
        ([(0, 999_999)], 1_000_000),
        ([(0, 1_000_000)], 2_000_000),
        ([(1_000_009, 1_000_009)], 2_000_000),
        ([(1_000_010, 1_000_010)], 1_000_000),
        ([(2_500_000, 2_500_000), (1_000_000, 1_999_999)], 2_000_000),
        ([(2_000_005, 3_000_000), (1_000_000, 1_000_000)], 4_000_000),
        ([(0, 2**60)], (2**60 // 1_000_000 + 1) * 1_000_000),
    ],
)
def test_episodes_of_an_evaluation_are_no_demonstrations(seeds: list[tuple[int, int]], chosen: int) -> None:
    tasks = [TrainedTask(str(number), {}, seeds=(run,)) for number, run in enumerate(seeds)]
    assert choose_seed(tasks, num_episodes=10) == chosen
    assert not overlap_warning(tasks, chosen, 10)


def test_a_warning_names_tasks_and_other_seeds() -> None:
    tasks = [TrainedTask("a", {}, seeds=((0, 9),)), TrainedTask("b", {}, seeds=((10, 19), (1_000_000, 1_000_001)))]
    assert overlap_warning(tasks, 20, 5) == ""
    warning = overlap_warning(tasks, 8, 2)
    assert warning.startswith("warning: episodes of a begin as demonstrations")
    assert warning.endswith("from 2000000")
    assert "episodes of a, b begin" in overlap_warning(tasks, 9, 2)
    assert "and 1 more" in overlap_warning([TrainedTask(name, {}, seeds=((0, 0),)) for name in "abcd"], 0, 1)


def test_the_file_of_jat_mini_is_complete() -> None:
    tasks = read_trained_tasks("jat-mini")
    assert len([task for task in tasks if not task.is_earlier]) == 11
    for task in tasks:
        played = task.apply(get_task(task.name))
        assert replace(played, demonstrator=None) == get_task(task.name)
        assert (played.demonstrator is None) == task.is_earlier
        assert json.loads(json.dumps(to_json([task])))[0]["seeds"]
