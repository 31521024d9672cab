"""Test which task a folder of episodes defines, and that episodes of another rule are refused."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

for package in ("datasets", "pyarrow"):
    pytest.importorskip(package, reason="the extra train is not installed")

from helpers.training_data import episode, write_split

from jat_engine.datasets.collection import Collection
from jat_engine.datasets.stored_tasks import check_rule, task_of_folder
from jat_engine.envs import Score, Task, get_task
from jat_engine.errors import DataError

CART = get_task("gym:CartPole-v1")


def describe(dataset: Path, task: Task) -> None:
    """Write the `collection.json` of a task without episodes."""
    scores = {"random": {"mean": 20.0, "std": 5.0, "episodes": 3}, "expert": {"mean": 500.0, "std": 0.0}}
    collection = Collection(
        task=task.name,
        settings={"versions": {}},
        expert="test",
        test_fraction=0.1,
        attempts=0,
        successes=None,
        seeds=[],
        returns=[],
        lengths=[],
        splits=[],
        files={},
        sha256="",
        task_rule=None if task.is_published else task.rule,
        scores=scores,
    )
    (dataset / task.folder_name).mkdir()
    collection.write(dataset / task.folder_name)


@pytest.mark.parametrize("name", ["gym:CartPole-v1", "gym--CartPole-v1"])
def test_a_description_defines_a_task(name: str, tmp_path: Path) -> None:
    describe(tmp_path, CART)
    task = task_of_folder(tmp_path, name)
    assert task is not None
    assert (task.name, task.maker, task.observation, task.action) == (CART.name, None, "continuous", "discrete")
    assert (task.random, task.demonstrator) == (Score(20.0, 5.0), Score(500.0, 0.0))


@pytest.mark.parametrize(
    ("kind", "observation", "action", "window"),
    [
        ("continuous", "continuous", "continuous", 256),
        ("discrete", "discrete+text", "discrete", 256),
        ("image", "image", "discrete", 32),
    ],
)
def test_columns_define_a_task(kind: str, observation: str, action: str, window: int, tmp_path: Path) -> None:
    write_split(tmp_path, "my-robot", "train", [episode(kind, 3, 0)])
    task = task_of_folder(tmp_path, "my-robot")
    assert task is not None
    assert (task.name, task.observation, task.action, task.context_window) == ("my-robot", observation, action, window)
    assert task.maker is None


def test_folders_that_define_no_task(tmp_path: Path) -> None:
    assert task_of_folder(tmp_path, "absent") is None
    (tmp_path / "empty").mkdir()
    assert task_of_folder(tmp_path, "empty") is None
    (tmp_path / "atari-pong").mkdir()
    assert task_of_folder(tmp_path, "atari-pong") == get_task("atari-pong")
    write_split(tmp_path, "texts", "train", [{"text_observations": ["a"], "rewards": [0.0]}])
    with pytest.raises(DataError, match=r"texts.*observation columns: expected continuous_observations"):
        task_of_folder(tmp_path, "texts")


def test_a_published_task_keeps_its_scores_and_gets_its_demonstrator(tmp_path: Path) -> None:
    pong = get_task("atari-pong")
    describe(tmp_path, pong)
    expected = replace(pong, demonstrator=Score(500.0, 0.0))
    assert check_rule(pong, tmp_path) == task_of_folder(tmp_path, pong.name) == expected


def test_episodes_of_another_rule_are_refused(tmp_path: Path) -> None:
    assert check_rule(CART, tmp_path) == CART
    describe(tmp_path, CART)
    assert check_rule(CART, tmp_path) == replace(CART, random=Score(20.0, 5.0), demonstrator=Score(500.0, 0.0))
    own = replace(CART, random=Score(22.0, None))
    assert check_rule(own, tmp_path).random == Score(22.0, None)

    for other, message in (
        (
            "gym:Acrobot-v1",
            r"expected episodes of gym:CartPole-v1 with adapter .*'size': 6.*got some with ",
        ),
        ("gym:FrozenLake-v1", "with observation discrete, got some with continuous; give --adapter continuous"),
        ("gym:Pendulum-v1", "with action continuous, got some with discrete"),
    ):
        with pytest.raises(DataError, match=message):
            check_rule(replace(get_task(other), name=CART.name), tmp_path)


def test_a_score_is_read_as_it_was_written() -> None:
    for score in (Score(1.5, 0.5), Score(-2.0, None)):
        assert Score.from_json(asdict(score)) == score
    assert Score.from_json(None) is None
    with pytest.raises(KeyError):
        Score.from_json({"std": 1.0})
