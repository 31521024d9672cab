"""Tables of an evaluation: the values of CSV, and the form and the words of LaTeX."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.evaluations import SETTINGS, episodes_of, evaluation_of, sample_evaluation

from jat_engine.envs import TASKS, Score, get_task
from jat_engine.evaluation.statistics import aggregate, mean_interval, success_rate
from jat_engine.runs.records import Evaluation
from jat_engine.runs.summary import summarize
from jat_engine.runs.tables import escape, groups_csv, groups_latex, tasks_csv, tasks_latex, write_tables

PENDULUM = TASKS["mujoco-pendulum"].with_scores(None, Score(1000.0, None))
OWN = replace(get_task("gym:CartPole-v1"), name="my_cart", domain="carts & co").with_scores(
    Score(20.0, None), Score(500.0, None)
)
MIXED = evaluation_of(
    [
        episodes_of(PENDULUM, [900.0, 1000.0]),
        episodes_of(TASKS["babyai-go-to-obj"], [0.9, 0.0, 0.8], [True, False, True]),
        episodes_of(OWN, [260.0]),
    ]
)


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_has_the_values_of_each_task() -> None:
    babyai, pendulum, own = rows(tasks_csv(summarize(MIXED)))
    assert (babyai["task"], babyai["domain"], babyai["episodes"], babyai["planned"]) == (
        "babyai-go-to-obj",
        "babyai",
        "3",
        "3",
    )
    returns = [0.9, 0.0, 0.8]
    mean, rate = mean_interval(returns), success_rate([True, False, True])
    assert mean is not None
    assert rate is not None
    found = [float(babyai[f"return_{name}"]) for name in ("mean", "low", "high", "std")]
    assert found == pytest.approx([mean.value, mean.low, mean.high, np.std(returns)])
    found = [float(babyai[f"success_{name}"]) for name in ("rate", "low", "high")]
    assert found == pytest.approx([rate.value, rate.low, rate.high])
    assert pendulum["success_rate"] == babyai["demonstrator_normalized_mean"] == own["expert_normalized_mean"] == ""

    assert float(pendulum["expert_normalized_mean"]) == pytest.approx(2.01, abs=0.01)
    assert float(pendulum["demonstrator_normalized_mean"]) == pytest.approx(0.95, abs=0.001)
    assert float(own["demonstrator_normalized_mean"]) == pytest.approx(0.5)


def test_csv_has_the_aggregates_of_domains_and_all_tasks() -> None:
    evaluation = sample_evaluation(["atari-pong", "atari-bowling", "atari-qbert", "metaworld-reach"], 8)
    found = {(row["group"], row["normalized_by"]): row for row in rows(groups_csv(summarize(evaluation)))}
    assert list(found) == [
        ("atari", "expert"),
        ("atari", "human"),
        ("metaworld", "expert"),
        ("overall", "expert"),
        ("overall", "human"),
    ]
    scores = [evaluation.tasks[name].scores("expert") for name in ("atari-pong", "atari-qbert")]
    expected = aggregate(one for one in scores if one is not None)
    assert expected is not None
    atari = found["atari", "expert"]
    assert (atari["tasks"], atari["defined"], atari["episodes"]) == ("3", "2", "24")  # bowling's is undefined
    for name in ("iqm", "median", "mean", "optimality_gap"):
        interval = getattr(expected, name)
        cells = [float(atari[f"{name}_{part}"]) for part in ("value", "low", "high")]
        assert cells == pytest.approx([interval.value, interval.low, interval.high])
    assert (atari["success_rate"], found["overall", "expert"]["success_tasks"]) == ("", "1")


def columns_of(line: str) -> int:
    """Return the number of columns that a row of LaTeX fills."""
    wide = sum(int(number) - 1 for number in re.findall(r"\\multicolumn\{(\d+)\}", line))
    return len(re.split(r"(?<!\\)&", line)) + wide


@pytest.mark.parametrize("count", [1, 3, 60])
@pytest.mark.parametrize("make", [tasks_latex, groups_latex])
def test_latex_is_well_formed(make: object, count: int) -> None:
    evaluation = sample_evaluation(list(TASKS)[-count:], 4)
    text = make(summarize(Evaluation(SETTINGS, evaluation.tasks | MIXED.tasks)), "my_agent 50%")  # type: ignore[operator]
    assert text.isascii()
    unescaped = re.sub(r"\\[{}]", "", text)
    assert unescaped.count("{") == unescaped.count("}")
    begun, ended = (re.findall(rf"\\{word}{{(\w+)}}", text) for word in ("begin", "end"))
    assert begun == ended[::-1]
    assert ("longtable" in begun) == (make is tasks_latex and count == 60)

    spec = re.search(r"\\begin\{(?:tabular|longtable)\}\{(\w+)\}", text)
    assert spec is not None
    lines = [line for line in text.splitlines() if line.endswith(r" \\") and not line.startswith(r"\caption")]
    assert len(lines) > count if make is tasks_latex else len(lines) > 4
    assert {columns_of(line) for line in lines} == {len(spec[1])}


def test_captions_can_be_taken_over() -> None:
    greedy = Evaluation({"deterministic": True, "seed": 1_000_000}, MIXED.tasks)
    caption = tasks_latex(summarize(greedy), "my_agent")
    for words in (
        r"Returns of my\_agent in each task (1 to 3 episodes per task, greedy (most likely) actions, seeds 1000000 to",
        r"$\pm$ is the standard deviation of the episodes' returns.",
        r"Brackets are 95 \% percentile bootstrap intervals (2,000 resamples of the episodes within each task); of",
        "Normalised by the published expert: 0 is the mean return of a random policy, 1 that of the expert.",
        "Normalised by its demonstrator: 0 is",
    ):
        assert words in caption, words
    assert "by humans" not in caption
    groups = groups_latex(summarize(MIXED))
    assert "sampled actions" in groups
    assert "IQM is the interquartile mean: the mean of the middle half of all episodes' scores." in groups
    assert r"\multicolumn{10}{l}{\textit{Normalised by its demonstrator}}" in groups


def test_captions_say_what_is_missing() -> None:
    task = replace(MIXED.tasks["mujoco-pendulum"], planned=5)
    assert "3 planned episodes were not finished." in tasks_latex(summarize(evaluation_of([task])))
    short = replace(task, episodes=tuple(replace(episode, capped=True) for episode in task.episodes))
    caption = tasks_latex(summarize(evaluation_of([short], {"max_steps": 10})))
    assert "2 episodes stopped at 10 steps" in caption


def test_special_characters_are_escaped() -> None:
    assert escape(r"a_b & 5% {x} \y ~^ #$ ±") == (
        r"a\_b \& 5\% \{x\} \textbackslash{}y \textasciitilde{}\textasciicircum{} \#\$ $\pm$"
    )
    text = tasks_latex(summarize(MIXED))
    assert r"my\_cart & 1 & " in text
    assert r"\textit{carts \& co}" in text


def test_files_are_the_same_for_equal_episodes(tmp_path: Path) -> None:
    paths = [write_tables(summarize(MIXED), tmp_path / name) for name in ("a", "b")]
    assert [path.name for path in paths[0]] == ["tasks.csv", "tasks.tex", "groups.csv", "groups.tex"]
    assert [path.read_bytes() for path in paths[0]] == [path.read_bytes() for path in paths[1]]


def test_tasks_without_episodes_are_left_out() -> None:
    empty = replace(MIXED.tasks["my_cart"], episodes=())
    found = rows(tasks_csv(summarize(Evaluation(SETTINGS, dict(MIXED.tasks) | {"my_cart": empty}))))
    assert [row["task"] for row in found] == ["babyai-go-to-obj", "mujoco-pendulum"]
    with pytest.raises(ValueError, match="evaluation: expected finished episodes, got none"):
        summarize(evaluation_of([empty]))
