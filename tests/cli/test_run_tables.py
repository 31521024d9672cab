"""Tables of an evaluation on a terminal: a reader knows what each number is."""

from __future__ import annotations

import io
import re
import sys
from dataclasses import replace

import pytest
from helpers.runs import episode, evaluation

from jat_engine.cli.run_tables import failures_line, power_line, print_evaluation
from jat_engine.envs import TASKS, Score, get_task
from jat_engine.runs.records import Evaluation, TaskEpisodes

MADE = evaluation({"atari-pong": [-20.0, 10.0, 18.0], "atari-bowling": [30.0], "mujoco-reacher": [-5.0, None]})


def printed(made: Evaluation, capsys: pytest.CaptureFixture[str], *names: str) -> str:
    print_evaluation(made, names or list(made.tasks))
    return capsys.readouterr().out


def row(text: str, name: str) -> str:
    (found,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return found


def test_the_title_says_how_episodes_were_played(capsys: pytest.CaptureFixture[str]) -> None:
    for settings, words in (({"deterministic": True}, "greedy"), ({"deterministic": False}, "sampled actions")):
        made = replace(MADE, settings=settings)
        title = printed(made, capsys).splitlines()[0]
        assert words in title
        assert "seeds 100 to 102" in title


def test_rows_and_aggregates(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(MADE, capsys)
    assert "2.67 [-20.0, 18.0]" in row(text, "atari-pong")
    assert "1 of 2" in row(text, "mujoco-reacher")
    assert "by the published expert" in text.splitlines()[2]
    assert "success" not in text.splitlines()[2], "none of the tasks defines it"
    assert "atari-bowling: score by the expert undefined: expert <= random" in text
    assert re.search(r"^atari: IQM normalised by the published expert \S+ \[.*\], from 1 of 2 tasks$", text, re.M)
    assert re.search(r"^overall: IQM .*, from 2 of 3 tasks$", text, re.M)
    assert "IQM is the interquartile mean" in text
    assert "± is the standard deviation of the episodes' returns" in text
    assert "0 is the mean return of a random policy, 1 that of the expert" in text


def test_only_the_tasks_that_were_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(MADE, capsys, "atari-pong")
    assert "bowling" not in text
    assert "reacher" not in text
    assert "overall" not in text
    assert printed(MADE, capsys, "mujoco-hopper") == ""
    assert printed(evaluation({"mujoco-hopper": [None]}), capsys) == ""


def test_success_and_episodes_that_were_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    played = tuple(
        episode("babyai-go-to", index, value, success=value > 0, capped=index == 1)
        for index, value in enumerate((0.9, 0.0, 0.8, 0.7))
    )
    made = Evaluation(
        {"deterministic": False, "max_steps": 10}, {"babyai-go-to": TaskEpisodes(TASKS["babyai-go-to"], 4, played)}
    )
    text = printed(made, capsys)
    assert "75 % [30 %, 95 %]" in row(text, "babyai-go-to")
    assert " 4* " in row(text, "babyai-go-to")
    assert "1 episode stopped at 10 steps" in text
    assert "of success rates they are Wilson's" in text


def test_scores_of_tasks_of_ones_own_name_the_demonstrator(capsys: pytest.CaptureFixture[str]) -> None:
    cart = replace(get_task("gym:CartPole-v1"), random=Score(20.0, None), demonstrator=Score(500.0, None))
    text = printed(evaluation({cart.name: [260.0, 500.0]}, {cart.name: cart}), capsys)
    assert "by its demonstrator" in text
    assert "0.750 [0.500, 1.000]" in row(text, cart.name)
    assert "normalised by its demonstrator" in text


def test_narrow_encodings(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", output)
    print_evaluation(MADE, list(MADE.tasks))
    output.seek(0)
    text = output.read()
    assert "+/- is the standard deviation" in text
    assert "\\u" not in text


def test_failures_are_one_line() -> None:
    failed = [episode("mujoco-reacher", index, None, length=4) for index in (7, 1, 2)]
    line = "mujoco-reacher: failed in episode 2 (seed 101), step 5: RuntimeError: diverged"
    assert failures_line([failed[1]]) == line
    assert failures_line(failed) == f"{line} (2 more of its episodes failed; see results.json)"


def test_the_differences_that_can_be_found_are_said_before_a_run() -> None:
    def smallest(text: str) -> list[float]:
        return [
            float(value) for value in re.findall(r"(\d+\.\d+) standard deviations|of (\d+\.\d+) in", text)[0] if value
        ]

    assert "no difference between two agents can be shown" in power_line({"a": 1, "b": 30})
    assert "in the mean over" not in power_line({"a": 30})
    few, many = power_line({"a": 10, "b": 10}), power_line({"a": 100, "b": 100})
    assert "in the mean over 2 tasks" in few
    assert smallest(few)[0] > 2 * smallest(many)[0]
    assert "With 10 episodes of a task" in power_line({"a": 10, "b": 50})
