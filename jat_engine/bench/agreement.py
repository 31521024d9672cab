"""Whether two agents compute the same, before their times are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

TOLERANCES = {"float32": 1e-3, "bfloat16": 0.05, "int8": 0.2}
"""dtype -> the largest error of any step. Rounding of this engine is 5e-6, 0.02 and 0.08 (docs/benchmarks.md)."""


def error(predictions: Sequence[Any], expected: Sequence[Any]) -> float:
    """The largest distance of a prediction from what was expected, over the root mean square of what was expected.

    Predictions: [steps][values]. Infinite where one is not finite.
    """
    got, wanted = np.asarray(predictions, np.float64), np.asarray(expected, np.float64)
    if got.shape != wanted.shape:
        raise ValueError(f"predictions: expected shape {wanted.shape}, got {got.shape}")
    if not np.isfinite(got).all():
        return float("inf")
    norm = np.sqrt((wanted**2).sum(axis=-1).mean())
    return float(np.sqrt(((got - wanted) ** 2).sum(axis=-1)).max() / norm)
