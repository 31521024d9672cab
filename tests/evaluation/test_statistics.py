"""Statistics of episodes, compared with rliable's recorded numbers, formulas, and the truth of simulated episodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from jat_engine.evaluation.statistics import (
    Interval,
    adjust_p_values,
    aggregate,
    aggregate_differences,
    detectable_difference,
    interquartile_mean,
    mean_interval,
    paired_difference,
    performance_profile,
    probability_of_improvement,
    sign_test,
    success_rate,
)

RLIABLE: dict[str, Any] = json.loads(Path(__file__).with_name("rliable.json").read_text())
CASES = RLIABLE["cases"].values()


def by_task(matrix: list[list[float]]) -> list[np.ndarray]:
    return list(np.array(matrix).T)


def check(found: list[Interval], recorded: dict[str, list[float]]) -> None:
    """Compare with recorded intervals; bounds of two bootstraps differ by some hundredths of the width."""
    assert [one.value for one in found] == pytest.approx(recorded["value"], abs=1e-12)
    for one, low, high in zip(found, recorded["low"], recorded["high"], strict=True):
        assert (one.low, one.high) == pytest.approx((low, high), abs=0.03 * (high - low) + 1e-12)


# ---- rliable ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=RLIABLE["cases"])
def test_aggregates_are_rliable_s(case: dict[str, Any]) -> None:
    found = aggregate(by_task(case["first"]), resamples=20_000)
    assert found is not None
    check([found.iqm, found.median, found.mean, found.optimality_gap], case["iqm, median, mean, optimality gap"])
    assert (found.episodes, found.tasks) == (np.size(case["first"]), np.shape(case["first"])[1])


@pytest.mark.parametrize("case", CASES, ids=RLIABLE["cases"])
def test_profiles_are_rliable_s(case: dict[str, Any]) -> None:
    found = performance_profile(by_task(case["first"]), RLIABLE["thresholds"], resamples=20_000)
    assert found is not None
    assert found.share == pytest.approx(case["profile"]["value"], abs=1e-12)
    episode = 1 / np.size(case["first"])  # bounds are shares of the episodes
    assert found.low == pytest.approx(case["profile"]["low"], abs=episode + 1e-12)
    assert found.high == pytest.approx(case["profile"]["high"], abs=episode + 1e-12)


@pytest.mark.parametrize("case", CASES, ids=RLIABLE["cases"])
def test_probabilities_of_improvement_are_rliable_s(case: dict[str, Any]) -> None:
    found = probability_of_improvement(by_task(case["first"]), by_task(case["second"]), resamples=20_000)
    assert found is not None
    check([found], case["probability that second is better"])


# ---- tasks with different numbers of episodes ------------------------------------------------------------------------


def test_every_task_counts_the_same() -> None:
    """Episodes that are repeated as often as the others of their task do not change anything but the interval."""
    short, long = np.array([0.0, 1.0, 2.0, 5.0]), np.array([3.0, 4.0, 4.0, 7.0])
    once = aggregate([short, long])
    twice = aggregate([short, np.tile(long, 3)])
    assert once is not None
    assert twice is not None
    for name in ("iqm", "median", "mean", "optimality_gap"):
        assert getattr(twice, name).value == pytest.approx(getattr(once, name).value, abs=1e-12)

    taus = [0.0, 2.5, 4.0]
    profiles = [performance_profile([short, scores], taus) for scores in (long, np.tile(long, 3))]
    assert profiles[0] is not None
    assert profiles[1] is not None
    assert profiles[0].share == pytest.approx(profiles[1].share, abs=1e-12)


def test_the_interquartile_mean_cuts_weight() -> None:
    found = interquartile_mean([np.array([1.0]), np.array([2.0, 2.0, 2.0])])
    assert found is not None
    assert found.value == pytest.approx(1.5)  # half of the weight is the first task's; a quarter is cut at each end
    assert interquartile_mean([]) is None
    assert interquartile_mean([np.array([])]) is None
    assert interquartile_mean([np.array([]), np.array([4.0])]) == Interval(4, 4, 4)


# ---- intervals -------------------------------------------------------------------------------------------------------


def test_the_interquartile_mean_ignores_the_outer_quarters() -> None:
    found = interquartile_mean([np.array([0, 1, 2, 3]), np.array([4, 5, 6, 1000])])
    assert found is not None
    assert found.value == pytest.approx((2 + 3 + 4 + 5) / 4)
    assert found.low < found.value < found.high
    lucky = interquartile_mean([np.append(np.linspace(0, 1, 39), 1e6)])
    assert lucky is not None
    assert lucky.high < 1


def test_the_bootstrap_resamples_each_task_by_itself() -> None:
    # Tasks differ, episodes of a task do not: a bootstrap over the pooled scores would have a wide interval.
    found = aggregate([np.full(5, float(task)) for task in range(8)])
    assert found is not None
    for one in (found.iqm, found.mean, found.median):
        assert one.low == one.value == one.high == pytest.approx(3.5)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    covered = np.zeros(3)
    for _ in range(200):
        scores = [rng.normal(size=30) for _ in range(3)]
        found, one = aggregate(scores, resamples=300), mean_interval(scores[0], resamples=300)
        assert found is not None
        assert one is not None
        covered += [interval.low <= 0 <= interval.high for interval in (found.iqm, found.mean, one)]
    assert (covered >= 180).all()
    assert (covered <= 199).all()


def test_intervals_are_reproducible_and_need_no_more_memory_for_more_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = [np.random.default_rng(0).normal(size=size) for size in (9, 4)]
    found = aggregate(scores)
    assert aggregate(scores) == found
    assert aggregate(scores, seed=1) != found
    monkeypatch.setattr("jat_engine.evaluation.resampling._CHUNK", 40)  # three repetitions at a time
    assert aggregate(scores) == found


@pytest.mark.parametrize(("successes", "episodes"), [(0, 10), (3, 10), (10, 10), (1, 1), (50, 157)])
def test_success_rates_have_wilson_s_interval(successes: int, episodes: int) -> None:
    found = success_rate(np.arange(episodes) < successes)
    assert found is not None
    z, share = stats.norm.ppf(0.975), successes / episodes
    centre = (share + z**2 / (2 * episodes)) / (1 + z**2 / episodes)
    margin = z / (1 + z**2 / episodes) * np.sqrt(share * (1 - share) / episodes + z**2 / (4 * episodes**2))
    assert found.value == share
    assert (found.low, found.high) == pytest.approx((centre - margin, centre + margin), abs=1e-12)
    assert success_rate([]) is None


# ---- comparisons -----------------------------------------------------------------------------------------------------


def test_pairs_are_resampled_together() -> None:
    """Episodes vary a lot, differences do not: only a paired bootstrap finds the small one."""
    rng = np.random.default_rng(0)
    first = [rng.normal(scale=10, size=20) for _ in range(4)]
    found = aggregate_differences(first, [task + 0.1 for task in first])
    assert found is not None
    for one in (found.mean, found.iqm):
        assert (one.value, one.low, one.high) == pytest.approx((0.1, 0.1, 0.1))
    assert aggregate_differences(first, first) == type(found)(Interval(0, 0, 0), Interval(0, 0, 0))


@pytest.mark.parametrize(("tasks", "pairs", "share"), [(1, 2, 0.11), (1, 5, 0.07), (11, 2, 0.07), (40, 3, 0.07)])
def test_few_pairs_show_hardly_any_difference_between_equal_agents(tasks: int, pairs: int, share: float) -> None:
    """A percentile bootstrap finds one in 50 % of comparisons of one task with two pairs, in 18 % with eleven tasks."""
    rng = np.random.default_rng(0)
    found = np.zeros(2)
    for _ in range(300):
        first, second = ([rng.exponential(size=pairs) for _ in range(tasks)] for _ in range(2))
        differences = aggregate_differences(first, second, resamples=300)
        assert differences is not None
        found += [not one.low <= 0 <= one.high for one in (differences.mean, differences.iqm)]
    assert (found / 300 <= share).all()


def test_a_single_pair_has_no_interval() -> None:
    single, several = np.array([1.0]), np.array([1.0, 2.0, 4.0])
    assert paired_difference(single) is None
    assert aggregate_differences([single], [single + 1]) is None
    with_it, without = (
        aggregate_differences([*tasks, several], [*(task + 5 for task in tasks), several + 1])
        for tasks in ([single], [])
    )
    assert with_it == without
    assert paired_difference(several - 2.0) == aggregate_differences([several * 0], [several - 2.0]).mean  # type: ignore[union-attr]


def test_differences_need_the_same_tasks_and_numbers_of_episodes() -> None:
    task = np.zeros(3)
    with pytest.raises(ValueError, match="second: expected scores of 2 tasks, as first has, got 1"):
        aggregate_differences([task, task], [task])
    with pytest.raises(ValueError, match=r"second\[1\]: expected 3 episodes, as first has, got 2"):
        aggregate_differences([task, task], [task, task[:2]])
    assert aggregate_differences([], []) is None
    assert probability_of_improvement([task, np.array([])], [np.array([]), task]) is None


def test_the_sign_test_leaves_out_ties() -> None:
    found = sign_test([1, 2, 3, 0.5, 1e-9, -1, 0, 0])
    assert (found.positive, found.negative, found.ties) == (5, 1, 2)
    assert found.p_value == pytest.approx(2 * (1 + 6) / 2**6)
    assert sign_test([0, 0]).p_value == sign_test([]).p_value == 1


def test_p_values_are_adjusted_by_holm_s_method() -> None:
    assert adjust_p_values([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjust_p_values([0.9, 0.8]) == [1, 1]
    assert adjust_p_values([]) == []


@pytest.mark.parametrize("paired", [True, False])
def test_a_detectable_difference_is_found_in_four_of_five_comparisons(paired: bool) -> None:
    deviations, episodes = np.array([1.0, 2.0, 0.5]), np.array([12, 20, 6])
    detectable = detectable_difference(deviations, episodes, paired=paired)
    assert detectable is not None
    rng, found = np.random.default_rng(0), 0
    for _ in range(500):
        means = []
        for deviation, number in zip(deviations, episodes, strict=True):
            one = rng.normal(detectable, deviation, number)
            means.append(one.mean() - (0 if paired else rng.normal(0, deviation, number).mean()))
        error = np.sqrt(((1 if paired else 2) * deviations**2 / episodes).sum()) / 3
        found += abs(np.mean(means)) > 2 * error
    assert 0.75 <= found / 500 <= 0.88


def test_detectable_differences_of_one_episode_are_unknown() -> None:
    assert detectable_difference([1.0, 2.0], 1, paired=True) is None
    assert detectable_difference([], 10, paired=True) is None
    per_task = detectable_difference([1.0], 2, paired=True)
    assert per_task is not None
    assert per_task > 8  # a t-test of two differences
