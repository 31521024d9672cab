"""Decide whether two agents compute the same, before their times are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

TOLERANCES = {"float32": 1e-3, "bfloat16": 0.05, "int8": 0.2, "int4": 0.75}
"""dtype -> the largest error of any step. Rounding of this engine is 5e-6, 0.02, 0.08 and 0.3 (docs/benchmarks.md)."""


def error(predictions: Sequence[Any], expected: Sequence[Any]) -> float:
    """Return the largest of `errors`."""
    return float(errors(predictions, expected).max())


def errors(predictions: Sequence[Any], expected: Sequence[Any]) -> np.ndarray:
    """Return each step's distance from what was expected, over the root mean square of what was expected.

    Args:
        predictions, expected: [steps][values].

    Returns:
        float64 [steps]; infinite where a prediction is not finite, or differs from zeros.
    """
    got, wanted = np.asarray(predictions, np.float64), np.asarray(expected, np.float64)
    if got.shape != wanted.shape:
        raise ValueError(f"predictions: expected shape {wanted.shape}, got {got.shape}")

    distances = np.sqrt(((got - wanted) ** 2).sum(axis=-1))
    distances[~np.isfinite(got).all(axis=-1)] = np.inf
    norm = np.sqrt((wanted**2).sum(axis=-1).mean())
    if norm == 0:
        return np.where(distances > 0, np.inf, 0.0)
    return np.asarray(distances / norm)
