"""Statistics of episodes: aggregates over tasks with bootstrap intervals, success rates, and paired comparisons.

Aggregates follow rliable (Agarwal et al., 2021, arXiv 2108.13264), whose scores are a matrix of runs x tasks. Here
tasks may have different numbers of episodes, and every task counts the same: an episode of a task with n episodes has
the weight 1 / n. With equal numbers these are rliable's values. All intervals are of 95 %, and the same in every call.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from .resampling import Pool, bootstrap

RESAMPLES = 2000
"""Default number of bootstrap repetitions."""

POWER = 0.8
"""Default probability of finding a difference that is there."""

_LEVEL = 0.05
"""1 - confidence of all intervals, and level of tests."""


@dataclass(frozen=True)
class Interval:
    """Estimate with the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Aggregates:
    """Aggregates of the scores of several tasks.

    Attributes:
        tasks, episodes: numbers of tasks and of episodes.
        iqm: interquartile mean: the mean of the middle half of all episodes' scores.
        median: median over tasks of the tasks' mean scores.
        mean: mean over tasks of the tasks' mean scores.
        optimality_gap: how far scores are below `gamma` on average; those above it count as `gamma`.
    """

    tasks: int
    episodes: int
    iqm: Interval
    median: Interval
    mean: Interval
    optimality_gap: Interval


@dataclass(frozen=True)
class Profile:
    """Performance profile: the share of episodes whose score is above each threshold. Every task counts the same.

    Attributes:
        thresholds: float64 [K].
        share: float64 [K], in [0, 1].
        low, high: float64 [K], bounds of the pointwise 95 % band.
    """

    thresholds: np.ndarray
    share: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Differences:
    """Differences of two agents' aggregates over the same tasks and seeds, second - first.

    Attributes:
        iqm: difference of the interquartile means.
        mean: difference of the means over tasks of the tasks' means.
    """

    iqm: Interval
    mean: Interval


@dataclass(frozen=True)
class SignTest:
    """Exact sign test of paired differences.

    Attributes:
        positive, negative, ties: numbers of differences above, below and equal to 0.
        p_value: two-sided, of the binomial distribution; ties are left out. 1 if there are only ties.
    """

    positive: int
    negative: int
    ties: int
    p_value: float


# ---- aggregates ------------------------------------------------------------------------------------------------------


def aggregate(
    scores: Iterable[np.ndarray], *, gamma: float = 1.0, resamples: int = RESAMPLES, seed: int = 0
) -> Aggregates | None:
    """Return interquartile mean, median, mean and optimality gap with stratified percentile bootstrap intervals.

    In each repetition the episodes of each task are resampled among themselves, with replacement. The interquartile
    mean cuts floor(N / 4) of N episodes at each end; where numbers of episodes differ, that share of the weight.

    Args:
        scores: normalised scores, one array [episodes] per task. Tasks without episodes are left out.
        gamma: score that is good enough, for the optimality gap.
        resamples: number of bootstrap repetitions.
        seed: seed of the resampling.

    Returns:
        The aggregates, with percentiles 2.5 and 97.5 of the repetitions; None if there are no scores. With one episode
        per task the intervals have no width, since there is nothing to resample.

    Example:
        >>> found = aggregate([np.array([0.0, 1.0, 1.0]), np.array([0.5, 0.5, 2.0])])
        >>> found.tasks, found.episodes, round(found.mean.value, 3), round(found.optimality_gap.value, 3)
        (2, 6, 0.833, 0.333)
    """
    pool = Pool.of(scores)
    if pool is None:
        return None
    clipped = np.minimum(pool.values, gamma)

    def estimate(counts: np.ndarray) -> np.ndarray:
        means = pool.task_means(counts)
        gaps = gamma - pool.task_means(counts, clipped).mean(axis=1)
        columns = (pool.interquartile_means(counts), np.median(means, axis=1), means.mean(axis=1), gaps)
        return np.stack(columns, axis=1)

    iqm, median, mean, gap = _intervals(*bootstrap(pool, estimate, resamples, seed))
    return Aggregates(pool.num_tasks, pool.num_episodes, iqm, median, mean, gap)


def interquartile_mean(scores: Iterable[np.ndarray], *, resamples: int = RESAMPLES, seed: int = 0) -> Interval | None:
    """Return the interquartile mean of `aggregate`; the arguments are the same."""
    found = aggregate(scores, resamples=resamples, seed=seed)
    return None if found is None else found.iqm


def mean_interval(
    values: Sequence[float] | np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval | None:
    """Return the mean of values with its percentile bootstrap interval; None if there are no values.

    Args:
        values: such as returns of a task's episodes, or differences of paired episodes, [N].
        resamples: number of bootstrap repetitions.
        seed: seed of the resampling.
    """
    pool = Pool.of([np.asarray(values, np.float64)])
    if pool is None:
        return None
    (found,) = _intervals(*bootstrap(pool, pool.task_means, resamples, seed))
    return found


def performance_profile(
    scores: Iterable[np.ndarray],
    thresholds: Sequence[float] | np.ndarray,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Profile | None:
    """Return the share of episodes whose score is above each threshold, with a stratified bootstrap band.

    Args:
        scores: normalised scores, one array [episodes] per task. Tasks without episodes are left out.
        thresholds: scores to compare with, [K].
        resamples: number of bootstrap repetitions.
        seed: seed of the resampling.

    Returns:
        The profile; None if there are no scores.
    """
    pool = Pool.of(scores)
    if pool is None:
        return None
    taus = np.asarray(thresholds, np.float64)
    share, repeated = bootstrap(pool, lambda counts: pool.shares_above(counts, taus), resamples, seed)
    return Profile(taus, share, *_percentiles(repeated))


def probability_of_improvement(
    first: Iterable[np.ndarray], second: Iterable[np.ndarray], *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval | None:
    """Return how likely the second agent's episode has the higher score, averaged over tasks.

    In a task it is U / (n m) of the Mann-Whitney test: the share of pairs of episodes in which the second agent's score
    is higher; ties count half. Episodes are not paired by seed: both agents' are resampled independently.

    Args:
        first: scores of the first agent, one array [n] per task.
        second: scores of the second agent, one array [m] per task, for the same tasks.
        resamples: number of bootstrap repetitions.
        seed: seed of the resampling.

    Returns:
        The probability; None if there is no task with episodes of both.

    Raises:
        ValueError: the numbers of tasks differ.
    """
    pairs = [(a, b) for a, b in _by_task(first, second) if a.size and b.size]
    one, other = (Pool.of(pair[side] for pair in pairs) for side in (0, 1))
    if one is None or other is None:
        return None

    rng, other_rng = (np.random.default_rng([seed, side]) for side in (0, 1))
    rows = min(one.rows, other.rows)
    draws = zip(one.counts(resamples, rng, rows), other.counts(resamples, other_rng, rows), strict=True)
    repeated = np.concatenate([one.improvements(counts, other, counts_of_other) for counts, counts_of_other in draws])
    (found,) = _intervals(one.improvements(one.once, other, other.once), repeated[:, None])
    return found


def success_rate(successes: Sequence[bool] | np.ndarray) -> Interval | None:
    """Return the share of successes with Wilson's interval; None if there are no episodes.

    Args:
        successes: of the episodes, bool [N]. Of several tasks with equal numbers of episodes together, the interval is
            a little too wide, since the tasks are fixed.
    """
    values = np.asarray(successes, bool)
    if not values.size:
        return None
    bounds = stats.binomtest(int(values.sum()), values.size).proportion_ci(1 - _LEVEL, method="wilson")
    return Interval(float(values.mean()), float(bounds.low), float(bounds.high))


# ---- comparisons -----------------------------------------------------------------------------------------------------


def paired_difference(
    differences: Sequence[float] | np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval | None:
    """Return the mean of the differences of paired episodes of a task, with the interval of `aggregate_differences`.

    Args:
        differences: second - first, of episodes with the same seed, [N].
        resamples: number of bootstrap repetitions.
        seed: seed of the resampling.

    Returns:
        The mean; None for fewer than two pairs, whose spread is unknown.
    """
    values = np.asarray(differences, np.float64)
    found = aggregate_differences([np.zeros_like(values)], [values], resamples=resamples, seed=seed)
    return None if found is None else found.mean


def aggregate_differences(
    first: Iterable[np.ndarray], second: Iterable[np.ndarray], *, resamples: int = RESAMPLES, seed: int = 0
) -> Differences | None:
    """Return the differences of two agents' aggregates with paired bootstrap intervals, stratified by task.

    Pairs of episodes with the same seed are resampled, those of each task among themselves. A percentile interval of
    few pairs is too narrow, and shows differences that are chance. So n - 1 of n pairs are drawn, which makes the
    variance right, and the bounds' distances to the estimate are multiplied by t / z: 97.5 % quantiles of Student's
    distribution, with as many degrees of freedom as pairs minus tasks, and of the normal distribution.

    Args:
        first, second: scores of the agents, one array [episodes] per task; episode i of a task has one seed in both.
        resamples: number of bootstrap repetitions.
        seed: seed of the resampling.

    Returns:
        second - first over the tasks with at least two pairs, since one has no spread; None if there are none.

    Raises:
        ValueError: the numbers of tasks, or of a task's episodes, differ.
    """
    pairs = _by_task(first, second)
    for number, (a, b) in enumerate(pairs):
        if a.shape != b.shape:
            raise ValueError(f"second[{number}]: expected {a.size} episodes, as first has, got {b.size}; pair them")
    pairs = [pair for pair in pairs if pair[0].size >= 2]
    one, other = (Pool.of(pair[side] for pair in pairs) for side in (0, 1))
    if one is None or other is None:
        return None

    def estimate(counts: np.ndarray) -> np.ndarray:
        iqm = other.interquartile_means(counts) - one.interquartile_means(counts)
        mean = one.task_means(counts, other.values - one.values).mean(axis=1)
        return np.stack([iqm, mean], axis=1)

    upper = 1 - _LEVEL / 2
    wider = float(stats.t.ppf(upper, one.num_episodes - one.num_tasks) / stats.norm.ppf(upper))
    found = _intervals(*bootstrap(one, estimate, resamples, seed, fewer=1))
    return Differences(*(_widen(interval, wider) for interval in found))


def _widen(interval: Interval, factor: float) -> Interval:
    value = interval.value
    return Interval(value, value + factor * (interval.low - value), value + factor * (interval.high - value))


def sign_test(differences: Sequence[float] | np.ndarray) -> SignTest:
    """Test if positive and negative differences are equally likely.

    Args:
        differences: of paired episodes, [N].
    """
    values = np.asarray(differences, np.float64)
    positive, negative = int((values > 0).sum()), int((values < 0).sum())
    p_value = float(stats.binomtest(positive, positive + negative).pvalue) if positive + negative else 1.0
    return SignTest(positive, negative, values.size - positive - negative, p_value)


def adjust_p_values(p_values: Sequence[float]) -> list[float]:
    """Return p-values by Holm's method: comparing all of them with 0.05 errs in any test with that probability at most.

    Example:
        >>> adjust_p_values([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    values = np.asarray(p_values, np.float64)
    order = np.argsort(values, kind="stable")
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)), 1.0)
    return [float(value) for value in adjusted]


def detectable_difference(
    deviations: Sequence[float] | np.ndarray, episodes: Sequence[int] | int, *, paired: bool, power: float = POWER
) -> float | None:
    """Return the smallest difference of means that a comparison of two agents finds with probability `power`.

    It is (t[0.975] + t[power]) standard errors, of a two-sided test at 5 % with Student's t: of a task's mean if one
    task is given, of the mean over tasks otherwise. A smaller difference may be found too, by luck.

    Args:
        deviations: standard deviation in each task, [T]: if `paired` that of the differences of episodes with the same
            seed; otherwise that of the episodes, which both agents are taken to have.
        episodes: number of episodes of each agent in each task, or one for all tasks.
        paired: both agents play the same seeds, and the comparison uses it.
        power: probability of finding it.

    Returns:
        The difference in units of `deviations`; None with a single episode in each task, or without tasks.

    Example:
        >>> round(detectable_difference([0.5], 100, paired=False), 3)  # success rates near 50 %
        0.199
    """
    spread = np.asarray(deviations, np.float64)
    numbers = np.broadcast_to(np.asarray(episodes, np.int64), spread.shape)
    freedom = int((numbers - 1).sum()) * (1 if paired else 2)
    if not spread.size or freedom <= 0:
        return None
    variances = (1 if paired else 2) * spread**2 / numbers
    error = float(np.sqrt(variances.sum())) / spread.size
    return error * float(stats.t.ppf(1 - _LEVEL / 2, freedom) + stats.t.ppf(power, freedom))


# ---- parts -----------------------------------------------------------------------------------------------------------


def _by_task(first: Iterable[np.ndarray], second: Iterable[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    one, other = ([np.asarray(task, np.float64) for task in side] for side in (first, second))
    if len(one) != len(other):
        raise ValueError(f"second: expected scores of {len(one)} tasks, as first has, got {len(other)}")
    return list(zip(one, other, strict=True))


def _percentiles(repeated: np.ndarray) -> np.ndarray:
    """Return the bounds of the interval, float64 [2, K], of repeated estimates [R, K]."""
    return np.asarray(np.percentile(repeated, [100 * _LEVEL / 2, 100 - 100 * _LEVEL / 2], axis=0), np.float64)


def _intervals(estimates: np.ndarray, repeated: np.ndarray) -> list[Interval]:
    low, high = _percentiles(repeated)
    return [Interval(*map(float, bounds)) for bounds in zip(estimates, low, high, strict=True)]
