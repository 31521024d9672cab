"""Compare two agents that have played the same episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..envs import Task
from ..evaluation.scores import REFERENCES, Reference, normalize
from ..evaluation.statistics import (
    Differences,
    Interval,
    SignTest,
    adjust_p_values,
    aggregate_differences,
    detectable_difference,
    paired_difference,
    probability_of_improvement,
    sign_test,
)
from .records import Episode, Evaluation, TaskEpisodes

LEVEL = 0.05
"""Level of the tests: a difference is said to be there if p is below it."""


@dataclass(frozen=True)
class Pairs:
    """Episodes of a task that both agents have finished, paired by their seeds.

    Attributes:
        task: the task.
        first, second: episodes of the agents, in the order of their indices.
        left_out: episodes that only one of them has finished.
    """

    task: Task
    first: tuple[Episode, ...]
    second: tuple[Episode, ...]
    left_out: int

    @property
    def returns(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns of both agents, float64 [N] each."""
        first, second = (np.array([one.return_ for one in side], np.float64) for side in (self.first, self.second))
        return first, second

    def scores(self, reference: Reference) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the normalised returns of both agents, float64 [N] each; None if they are undefined."""
        first, second = (normalize(returns, self.task, reference) for returns in self.returns)
        return None if first is None or second is None else (first, second)

    @property
    def successes(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Success of both agents' episodes, 0.0 or 1.0, float64 [N] each; None if the task does not define it."""
        if self.task.success is None:
            return None
        first, second = (np.array([bool(one.success) for one in side], float) for side in (self.first, self.second))
        return first, second


@dataclass(frozen=True)
class TaskComparison:
    """Comparison of two agents in a task. Differences are second - first.

    Attributes:
        pairs: the episodes.
        equal: episodes that are equal step by step.
        means: mean returns of the agents.
        difference: of the mean returns, with its paired bootstrap interval; None for a single pair.
        success: difference of the success rates, with its paired bootstrap interval; None if it is not defined, and for
            a single pair.
        sign: sign test of the episodes' differences.
        p_value: of the sign test, by Holm's method for all tasks of the comparison.
        detectable: difference of the mean returns that so many episodes with such differences find with a probability
            of 80 %; None for a single episode.
    """

    pairs: Pairs
    equal: int
    means: tuple[float, float]
    difference: Interval | None
    success: Interval | None
    sign: SignTest
    p_value: float
    detectable: float | None

    @property
    def verdict(self) -> str:
        """Return "equal", "no difference found", "second is better" or "second is worse"."""
        if self.equal == len(self.pairs.first):
            return "equal"
        if self.p_value >= LEVEL:
            return NO_DIFFERENCE
        return BETTER if self.sign.positive > self.sign.negative else WORSE


NO_DIFFERENCE, BETTER, WORSE = "no difference found", "second is better", "second is worse"


@dataclass(frozen=True)
class OverallComparison:
    """Comparison of two agents over all tasks. Differences are second - first.

    Scores and success rates are compared in tasks with at least two pairs of episodes.

    Attributes:
        reference: of the scores; None if no task has a score by any.
        tasks, episodes: numbers of tasks with scores, and of their pairs of episodes.
        scores: differences of the aggregates; None without scores.
        improvement: probability that an episode of the second agent has the higher score; None without scores.
        success_tasks: number of tasks that define success.
        success: difference of the success rates, each task counting the same; None if no task defines it.
        sign: sign test of all pairs' differences.
        detectable: difference of the mean scores that is found with a probability of 80 %; None if it is not known.
    """

    reference: Reference | None
    tasks: int
    episodes: int
    scores: Differences | None
    improvement: Interval | None
    success_tasks: int
    success: Interval | None
    sign: SignTest
    detectable: float | None


@dataclass(frozen=True)
class Comparison:
    """Comparison of two agents on the same seeds.

    Attributes:
        settings: name of each setting that differs -> its value in both runs.
        tasks: by task, in the order of `sort_tasks`.
        overall: over all tasks.
        left_out: tasks and episodes that only one of the agents has, in words.
    """

    settings: Mapping[str, tuple[Any, Any]]
    tasks: Sequence[TaskComparison]
    overall: OverallComparison
    left_out: Sequence[str]

    @property
    def verdict(self) -> str:
        """Return the verdict over all tasks, by the interval of the difference of the mean scores.

        Without scores it is by that of the success rates, and without success by the sign test.
        """
        overall = self.overall
        if all(task.verdict == "equal" for task in self.tasks):
            return "equal"
        interval = overall.scores.mean if overall.scores is not None else overall.success
        if interval is not None:
            return BETTER if interval.low > 0 else WORSE if interval.high < 0 else NO_DIFFERENCE
        if overall.sign.p_value >= LEVEL:
            return NO_DIFFERENCE
        return BETTER if overall.sign.positive > overall.sign.negative else WORSE

    @property
    def losses(self) -> dict[str, Interval]:
        """Losses of the second agent in points, hundredths of a score or of a success rate, by what was lost."""
        found = {}
        if self.overall.scores is not None:
            found["mean score"] = _points_lost(self.overall.scores.mean)
        if self.overall.success is not None:
            found["success rate"] = _points_lost(self.overall.success)
        return found

    def regressions(self, most: float) -> dict[str, Interval]:
        """Return the losses of more than `most` points that are no chance: their intervals are above 0.

        Args:
            most: points that may be lost.

        Raises:
            ValueError: there are neither scores nor success rates of a task with at least two pairs of episodes.
        """
        if not self.losses:
            raise ValueError(
                "max_regression: expected scores or success rates of a task with at least two pairs of episodes, got "
                "none; play more episodes, or compare returns by the sign test alone"
            )
        return {name: loss for name, loss in self.losses.items() if loss.value > most and loss.low > 0}


def _points_lost(difference: Interval) -> Interval:
    return Interval(*(-100 * value + 0.0 for value in (difference.value, difference.high, difference.low)))


def compare(first: Evaluation, second: Evaluation, reference: Reference | None = None) -> Comparison:
    """Compare two agents.

    Args:
        first, second: their episodes.
        reference: of the scores; by default the first of `REFERENCES` by which most tasks have a score.

    Raises:
        ValueError: there are no episodes of the same task and seed, or a task is another environment in each.
    """
    pairs, left_out = pair(first, second)
    if reference is None:
        counts = {one: sum(each.scores(one) is not None for each in pairs) for one in REFERENCES}
        best = max(counts, key=lambda one: counts[one])
        reference = best if counts[best] else None
    signs = [sign_test(np.subtract(*each.returns[::-1])) for each in pairs]
    adjusted = adjust_p_values([sign.p_value for sign in signs])
    tasks = [_compare_task(each, sign, p) for each, sign, p in zip(pairs, signs, adjusted, strict=True)]
    keys = dict.fromkeys((*first.settings, *second.settings))
    settings = {key: (first.settings.get(key), second.settings.get(key)) for key in keys}
    settings |= _simulators(first, second)
    differing = {key: values for key, values in settings.items() if values[0] != values[1]}
    return Comparison(differing, tasks, _compare_all(pairs, reference), left_out)


def pair(first: Evaluation, second: Evaluation) -> tuple[list[Pairs], list[str]]:
    """Pair the episodes of two evaluations by task and seed.

    Returns:
        The pairs of each task that has any, and descriptions of what is left out.

    Raises:
        ValueError: there are none, or a task is another environment in each.
    """
    pairs: list[Pairs] = []
    left_out: list[str] = []
    for name in dict.fromkeys((*first.tasks, *second.tasks)):
        sides = [side.tasks[name].finished if name in side.tasks else [] for side in (first, second)]
        by_seed = [{episode.seed: episode for episode in side} for side in sides]
        shared = sorted(by_seed[0].keys() & by_seed[1].keys())
        alone = len(by_seed[0].keys() ^ by_seed[1].keys())
        if alone:
            left_out.append(
                f"{name}: {alone} episode{'' if alone == 1 else 's'} that only one of the agents has played"
            )
        if shared:
            one, other = (tuple(side[seed] for seed in shared) for side in by_seed)
            pairs.append(Pairs(_common_task(first.tasks[name], second.tasks[name]), one, other, alone))
    if not pairs:
        raise ValueError(
            "compare: expected two runs with episodes of the same tasks and seeds, got none that both have; evaluate "
            "both agents with the same --tasks and --seed"
        )
    return pairs, left_out


def _common_task(first: TaskEpisodes, second: TaskEpisodes) -> Task:
    """Return the task that both agents have played, without a demonstrator unless both were trained on the same."""
    rules = [side.description.get("rule") or {} for side in (first, second)]
    for part in ("observation", "action", "adapter"):
        one, other = (rule.get(part) for rule in rules)
        if None not in (one, other) and one != other:
            raise ValueError(
                f"compare: {first.task.name}: expected both agents to play the same environment, got {part} {one} and "
                f"{other}; leave the task out"
            )
    same = first.task.demonstrator == second.task.demonstrator
    return first.task if same else replace(first.task, demonstrator=None)


def _simulators(first: Evaluation, second: Evaluation) -> dict[str, tuple[Any, Any]]:
    """Return the versions of the packages that the tasks' environments need, in both runs."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in first.tasks.keys() & second.tasks.keys():
        one, other = (side.tasks[name].description.get("versions") or {} for side in (first, second))
        found |= {f"version of {package}": (one.get(package), other.get(package)) for package in (*one, *other)}
    return dict(sorted(found.items()))


def _compare_task(pairs: Pairs, sign: SignTest, p_value: float) -> TaskComparison:
    first, second = pairs.returns
    differences = second - first
    success = None if pairs.successes is None else paired_difference(np.subtract(*pairs.successes[::-1]))
    return TaskComparison(
        pairs,
        equal=sum(
            a.digest == b.digest and a.return_ == b.return_ for a, b in zip(pairs.first, pairs.second, strict=True)
        ),
        means=(float(first.mean()), float(second.mean())),
        difference=paired_difference(differences),
        success=success,
        sign=sign,
        p_value=p_value,
        detectable=_detectable([differences]),
    )


def _compare_all(pairs: Sequence[Pairs], reference: Reference | None) -> OverallComparison:
    several = [each for each in pairs if len(each.first) >= 2]  # a single pair has no spread
    scores = [] if reference is None else [one for each in several if (one := each.scores(reference)) is not None]
    first, second = ([one[side] for one in scores] for side in (0, 1))
    successes = [each.successes for each in several if each.successes is not None]
    solved = aggregate_differences([one[0] for one in successes], [one[1] for one in successes])
    returns = np.concatenate([np.subtract(*each.returns[::-1]) for each in pairs])
    return OverallComparison(
        reference if scores else None,
        tasks=len(scores),
        episodes=sum(map(len, first)),
        scores=aggregate_differences(first, second),
        improvement=probability_of_improvement(first, second),
        success_tasks=len(successes),
        success=None if solved is None else solved.mean,
        sign=sign_test(returns),
        detectable=_detectable([b - a for a, b in scores]),
    )


def _detectable(differences: Sequence[np.ndarray]) -> float | None:
    """Return the difference of means that is found with a probability of 80 %; None if nothing differs."""
    if not differences or any(values.size < 2 for values in differences):
        return None
    deviations = [float(values.std(ddof=1)) for values in differences]
    return detectable_difference(deviations, [values.size for values in differences], paired=True)
