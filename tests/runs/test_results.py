"""Result files of evaluations that are made by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import episode, evaluation

from jat_engine.envs import TASKS, Score, get_task
from jat_engine.runs.records import Evaluation, TaskEpisodes
from jat_engine.runs.results import evaluations, results, write_results

PONG = TASKS["atari-pong"]
assert PONG.random is not None
assert PONG.expert is not None
RETURNS: dict[str, list[float | None]] = {
    "mujoco-hopper": [None],
    "babyai-go-to": [0.5, None, 1.0],
    "atari-pong": [PONG.random.mean, PONG.expert.mean],
    "atari-bowling": [30.0],
}


def _load(path: Path) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_files_of_an_evaluation(tmp_path: Path) -> None:
    made = evaluation(RETURNS, dtype="int8")
    write_results(tmp_path, made)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evaluations.json", "results.json"]
    assert list(_load(tmp_path / "evaluations.json").items()) == [
        ("atari-bowling", [30.0]),
        ("atari-pong", [PONG.random.mean, PONG.expert.mean]),  # type: ignore[union-attr]
        ("babyai-go-to", [0.5, 1.0]),
    ]

    written = _load(tmp_path / "results.json")
    assert written["complete"] is False
    assert written["settings"] == {"deterministic": False, "seed": 100, "dtype": "int8"}
    task = written["tasks"]["atari-pong"]
    assert task["complete"] is True
    assert (task["episodes"], task["seeds"], task["lengths"]) == ([0, 1], [100, 101], [10, 10])
    assert task["mean"] == pytest.approx((PONG.random.mean + PONG.expert.mean) / 2)  # type: ignore[union-attr]
    scores = task["expert_normalized"]
    assert (scores["mean"], scores["std"]) == pytest.approx((0.5, 0.5))
    assert scores["interval"] == pytest.approx({"value": 0.5, "low": 0.0, "high": 1.0})
    assert task["human_normalized"]["mean"] > 0
    assert task["success_rate"] is None
    assert task["demonstrator_normalized_reason"] == "undefined: no demonstrator score"

    bowling = written["tasks"]["atari-bowling"]
    assert bowling["expert_normalized"] is None
    assert bowling["expert_normalized_reason"] == "undefined: expert <= random"
    babyai = written["tasks"]["babyai-go-to"]
    assert babyai["complete"] is False
    assert (babyai["episodes"], babyai["seeds"]) == ([0, 2], [100, 102])
    assert "mujoco-hopper" not in written["tasks"]
    failure = {"episode": 0, "seed": 100, "step": 10, "error": "RuntimeError: diverged"}
    assert written["failed"] == {
        "babyai-go-to": [failure | {"episode": 1, "seed": 101}],
        "mujoco-hopper": [failure],
    }


def test_aggregates_leave_out_tasks_without_scores() -> None:
    found = results(evaluation(RETURNS))
    atari = found["domains"]["atari"]
    assert (atari["tasks"], atari["episodes"]) == (2, 3)
    assert atari["expert_normalized"]["tasks"] == 1, "not bowling"
    assert atari["expert_normalized"]["iqm"]["value"] == pytest.approx(0.5)
    assert atari["human_normalized"]["tasks"] == 2
    assert set(found["domains"]) == {"atari", "babyai"}
    assert (found["overall"]["tasks"], found["overall"]["episodes"]) == (3, 5)
    assert found["overall"]["expert_normalized"]["tasks"] == 2


def test_success_is_that_of_the_finished_episodes() -> None:
    made = (
        episode("babyai-go-to", 0, 0.5, success=True),
        episode("babyai-go-to", 1, None),
        episode("babyai-go-to", 2, 0.0, success=False),
    )
    found = results(Evaluation({}, {"babyai-go-to": TaskEpisodes(TASKS["babyai-go-to"], 3, made)}))
    task = found["tasks"]["babyai-go-to"]
    assert task["success"] == [True, False]
    assert task["success_rate"]["value"] == 0.5
    assert found["domains"]["babyai"]["success_rate"] == task["success_rate"]


def test_a_run_without_finished_episodes() -> None:
    found = results(evaluation({"mujoco-hopper": [None, None]}))
    assert (found["tasks"], found["domains"], found["overall"], found["complete"]) == ({}, {}, {}, False)
    assert len(found["failed"]["mujoco-hopper"]) == 2
    assert evaluations(evaluation({"mujoco-hopper": [None]})) == {}


def test_a_task_of_ones_own_comes_after_the_published_ones() -> None:
    cart = replace(
        get_task("gym:CartPole-v1"), random=Score(20.0, None), demonstrator=Score(500.0, None), module="cart"
    )
    tasks = {cart.name: cart, "atari-pong": PONG}
    found = results(evaluation({cart.name: [260.0], "atari-pong": [0.0]}, tasks))
    assert list(found["tasks"]) == ["atari-pong", cart.name]
    task = found["tasks"][cart.name]
    assert (task["module"], task["random_mean"], task["demonstrator_mean"]) == ("cart", 20.0, 500.0)
    assert task["demonstrator_normalized"]["mean"] == pytest.approx(0.5)


def test_equal_episodes_give_equal_files(tmp_path: Path) -> None:
    """In whatever order they were played, and whatever else is known of the run."""
    for name, returns in (("a", RETURNS), ("b", dict(reversed(RETURNS.items())))):
        (tmp_path / name).mkdir()
        write_results(tmp_path / name, evaluation(returns))
    for file in ("results.json", "evaluations.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_returns_are_written_exactly(tmp_path: Path) -> None:
    """Statistics are rounded, since processors may add in another order. What was played is not."""
    returns = [0.1 + 0.2, 1 / 3, 2.0**-40]
    write_results(tmp_path, evaluation({"atari-pong": returns}))
    assert _load(tmp_path / "evaluations.json")["atari-pong"] == returns
    task = _load(tmp_path / "results.json")["tasks"]["atari-pong"]
    assert task["returns"] == returns
    assert task["mean"] == float(f"{sum(returns) / 3:.9g}")
