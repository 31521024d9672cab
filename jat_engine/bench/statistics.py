"""Medians, their spread, and what can be told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9)

MOST = "max"
"""The largest, among percentiles."""

_RESAMPLES = 2000


FEWEST = 6
"""Rounds from which resampling them tells how a median spreads; from fewer the range is given, which is wider."""


@dataclass(frozen=True)
class Interval:
    """A ratio of times, and where it lies: with 95 % confidence, or for fewer rounds than `FEWEST` its range."""

    value: float
    low: float
    high: float


def percentiles(seconds: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return `PERCENTILES` and `MOST` of all calls of all rounds, in seconds."""
    flat = np.concatenate([np.asarray(values, np.float64) for values in seconds])
    found = {str(p): float(v) for p, v in zip(PERCENTILES, np.percentile(flat, PERCENTILES), strict=True)}
    return {**found, MOST: float(flat.max())}


def round_medians(seconds: Sequence[Sequence[float]]) -> list[float]:
    return [float(np.median(values)) for values in seconds]


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float], seed: int = 0) -> Interval:
    """Median over rounds of numerator / denominator, both of the same round; interval by bootstrap of rounds.

    Raises:
        ValueError: not the same number of rounds, or none.
    """
    if len(numerators) != len(denominators) or not numerators:
        raise ValueError(f"rounds: expected as many of both, got {len(numerators)} and {len(denominators)}")
    ratios = np.asarray(numerators, np.float64) / np.asarray(denominators, np.float64)
    if len(ratios) < FEWEST:
        return Interval(float(np.median(ratios)), float(ratios.min()), float(ratios.max()))
    picks = np.random.default_rng(seed).integers(0, len(ratios), (_RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(ratios[picks], axis=1), [2.5, 97.5])
    return Interval(float(np.median(ratios)), float(low), float(high))


def ratio(numerators: Sequence[float], denominators: Sequence[float], seed: int = 0) -> Interval:
    """Ratio of two medians that were not measured together; interval by bootstrap of either's
    rounds."""
    if not numerators or not denominators:
        raise ValueError("rounds: expected at least one, got none")
    value = float(np.median(numerators) / np.median(denominators))
    if min(len(numerators), len(denominators)) < FEWEST:
        return Interval(value, min(numerators) / max(denominators), max(numerators) / min(denominators))
    rng = np.random.default_rng(seed)
    medians = []
    for values in (numerators, denominators):
        array = np.asarray(values, np.float64)
        medians.append(np.median(array[rng.integers(0, len(array), (_RESAMPLES, len(array)))], axis=1))
    low, high = np.percentile(medians[0] / medians[1], [2.5, 97.5])
    return Interval(value, float(low), float(high))
