"""Record rliable's numbers for `test_statistics.py` in `rliable.json`.

In an environment of its own, since rliable 1.2 needs older releases of arch and pandas:
pip install rliable==1.2.0 "arch<8" "pandas<3" && python tests/evaluation/record_rliable.py
It takes some minutes.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rliable import library, metrics

REPETITIONS, THRESHOLDS = 50_000, [-0.5, 0.0, 0.25, 0.5, 1.0, 2.0]


def cases() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return score matrices [runs, tasks] of two agents by name: few runs, skewed ones with ties, one task."""
    rng = np.random.default_rng(0)
    skewed = np.floor(rng.exponential(size=(30, 5)) * 4) / 4 * np.array([0.5, 1, 1, 2, 4])
    return {
        "normal": (rng.normal(0.5, 0.4, size=(7, 6)), rng.normal(0.7, 0.4, size=(9, 6))),
        "skewed": (skewed, np.floor(rng.exponential(1.2, size=(30, 5)) * 4) / 4),
        "one task": (rng.uniform(size=(25, 1)), rng.uniform(0.1, 1.2, size=(10, 1))),
    }


def estimate(scores: list[np.ndarray] | np.ndarray, function: Any) -> dict[str, Any]:
    np.random.seed(0)  # noqa: NPY002  # the generator that rliable uses
    values, intervals = library.get_interval_estimates({"agent": scores}, function, reps=REPETITIONS)
    low, high = intervals["agent"]
    return {
        name: np.asarray(found).tolist() for name, found in (("value", values["agent"]), ("low", low), ("high", high))
    }


def aggregates(scores: np.ndarray) -> np.ndarray:
    functions = (
        metrics.aggregate_iqm,
        metrics.aggregate_median,
        metrics.aggregate_mean,
        metrics.aggregate_optimality_gap,
    )
    return np.array([function(scores) for function in functions])


def profile(scores: np.ndarray) -> np.ndarray:
    return library.score_distributions(scores, np.array(THRESHOLDS))


def main() -> None:
    recorded: dict[str, Any] = {
        "recorded": "by record_rliable.py",
        "versions": {name: version(name) for name in ("rliable", "arch", "numpy", "scipy")},
        "repetitions": REPETITIONS,
        "thresholds": THRESHOLDS,
        "cases": {},
    }
    for name, matrices in cases().items():
        first, second = (np.round(matrix, 3) for matrix in matrices)
        recorded["cases"][name] = {
            "first": first.tolist(),
            "second": second.tolist(),
            "iqm, median, mean, optimality gap": estimate(first, aggregates),
            "profile": estimate(first, profile),
            "probability that second is better": estimate(
                [second, first], lambda x, y: np.array([metrics.probability_of_improvement(x, y)])
            ),
        }
    Path(__file__).with_name("rliable.json").write_text(json.dumps(recorded) + "\n")


if __name__ == "__main__":
    main()
