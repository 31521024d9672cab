"""Figures of an evaluation: files, words, and that no text covers another."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the extra bench is not installed")

from helpers.evaluations import episodes_of, evaluation_of, sample_evaluation

from jat_engine.envs import TASKS, Score, get_task
from jat_engine.runs import figures
from jat_engine.runs.records import Evaluation
from jat_engine.runs.summary import Summary, summarize

OWN = [
    replace(get_task("gym:CartPole-v1"), name=f"cart-{number}", domain=f"carts {number}").with_scores(
        Score(20.0, None), Score(500.0, None)
    )
    for number in range(2)
]
ELEVEN = [name for name in TASKS if name.startswith(("atari-pong", "babyai-go-to-red", "metaworld-door", "mujoco-p"))]
SIZES = {
    "one task": sample_evaluation(["mujoco-hopper"], 3),
    "eleven tasks": Evaluation({"deterministic": True}, sample_evaluation(ELEVEN, 4).tasks),
    "all tasks": sample_evaluation(TASKS, 2),
    "tasks of one's own": evaluation_of([episodes_of(task, [30.0, 400.0, 5000.0, -900.0]) for task in OWN]),
}


def draw_all(evaluation: Evaluation, summary: Summary) -> dict[str, Any]:
    drawn = {}
    for reference in summary.references:
        drawn[f"intervals {reference}"] = figures.draw_intervals(summary, reference, "jat-mini")
        drawn[f"profile {reference}"] = figures.draw_profile(evaluation, summary, reference, "jat-mini")
        drawn[f"tasks {reference}"] = figures.draw_tasks(summary, reference, "jat-mini")
    if "human" in summary.references:
        drawn["atari"] = figures.draw_atari(summary, "jat-mini")
    return drawn


@pytest.mark.parametrize("name", SIZES)
def test_no_text_covers_another_or_is_cut_off(name: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    for kind, figure in draw_all(SIZES[name], summarize(SIZES[name])).items():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        hidden = {id(label) for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for label in _hidden(axis)}
        texts = [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
        boxes = [text.get_window_extent(canvas.get_renderer()).padded(-2) for text in texts]
        shown = [(text.get_text(), box) for text, box in zip(texts, boxes, strict=True) if id(text) not in hidden]
        assert len(shown) > 5
        for text, box in shown:
            whole = figure.bbox
            assert whole.x0 - 1 <= box.x0, (kind, text)
            assert box.x1 <= whole.x1 + 1, (kind, text)
            assert whole.y0 - 1 <= box.y0, (kind, text)
            assert box.y1 <= whole.y1 + 1, (kind, text)
        for (one, first), (other, second) in combinations(shown, 2):
            assert not first.overlaps(second), (kind, one, other)


def _hidden(axis: Any) -> list[Any]:
    """Return the labels of ticks beyond an axis's limits, which matplotlib does not draw."""
    low, high = sorted(axis.get_view_interval())
    return [tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high]


def test_axes_have_the_full_words() -> None:
    evaluation = SIZES["all tasks"]
    pendulum = TASKS["mujoco-pendulum"].with_scores(None, Score(1000.0, None))
    evaluation = Evaluation(
        evaluation.settings, dict(evaluation.tasks) | {pendulum.name: episodes_of(pendulum, [900.0, 1000.0])}
    )
    words = {
        "expert": "normalised by the published expert\n(0: random policy, 1: the expert)",
        "demonstrator": "normalised by its demonstrator\n(0: random policy, 1: the demonstrator)",
        "human": "normalised by humans\n(0: random policy, 1: humans)",
    }
    for kind, figure in draw_all(evaluation, summarize(evaluation)).items():
        label = words[kind.split()[-1] if kind != "atari" else "human"]
        found = [figure.get_supxlabel(), *(f(axes) for axes in figure.axes for f in (_xlabel, _ylabel))]
        assert any(text.endswith(label) for text in found), (kind, found)
        assert "2 episodes per task, sampled actions, seeds" in figure.get_suptitle()
        assert "95 % bootstrap intervals" in figure.get_suptitle()


def _xlabel(axes: Any) -> str:
    return str(axes.get_xlabel())


def _ylabel(axes: Any) -> str:
    return str(axes.get_ylabel())


def test_bars_have_the_means_and_intervals_of_the_tasks() -> None:
    summary = summarize(SIZES["eleven tasks"])
    (axes,) = figures.draw_tasks(summary, "expert").axes
    expected = sorted(
        (task.scores["expert"] for task in summary.tasks if "expert" in task.scores), key=lambda one: -one.value
    )
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([one.value for one in expected])
    (lines,) = [one for one in axes.collections if len(one.get_segments()) == len(expected)]
    bounds = [(segment[0][0], segment[1][0]) for segment in lines.get_segments()]
    assert np.array(bounds) == pytest.approx(np.array([(one.low, one.high) for one in expected]))


def test_large_scores_have_a_logarithmic_axis() -> None:
    atari = summarize(sample_evaluation(["atari-pong", "atari-atlantis"], 3))
    assert figures.draw_atari(atari).axes[0].get_yscale() == "symlog"
    assert figures.draw_tasks(atari, "human").axes[0].get_xscale() == "symlog"
    assert figures.draw_tasks(atari, "expert").axes[0].get_xscale() == "linear"


def test_files_are_the_same_for_equal_episodes(tmp_path: Path) -> None:
    import matplotlib

    evaluation = sample_evaluation(["atari-pong", "mujoco-hopper"], 3)
    summary = summarize(evaluation)
    first = figures.write_figures(evaluation, summary, tmp_path / "a", "jat-mini")
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 20}):  # as a matplotlibrc may have it
        second = figures.write_figures(evaluation, summary, tmp_path / "b", "jat-mini")
    names = ["intervals_expert", "profile_expert", "tasks_expert", "intervals_human", "profile_human", "atari_human"]
    assert [path.name for path in first] == [f"{name}.{kind}" for name in names for kind in ("png", "pdf")]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_missing_matplotlib_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"--figures: expected matplotlib.*pip install 'jat-engine\[bench\]'"):
        figures.check_figures("--figures")
