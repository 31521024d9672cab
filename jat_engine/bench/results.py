"""`results.json`: what was measured, on what, how it spread, and what can be told apart."""

from __future__ import annotations

import json
import math
import platform
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ..backends.report import collect

FORMAT = 1

# ---- statistics ------------------------------------------------------------------------------------------------------

PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9)

MOST = "max"
"""The largest, among percentiles."""

FEWEST = 6
"""Rounds from which resampling them tells how a median spreads; from fewer the range is given, which is wider."""

_RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A figure, such as a ratio of times, and where it lies: with 95 % confidence, or of few rounds their range."""

    value: float
    low: float
    high: float


def percentiles(seconds: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return `PERCENTILES` and `MOST` of all calls of all rounds, in seconds."""
    flat = np.concatenate([np.asarray(values, np.float64) for values in seconds])
    found = {str(p): float(v) for p, v in zip(PERCENTILES, np.percentile(flat, PERCENTILES), strict=True)}
    return {**found, MOST: float(flat.max())}


def round_medians(seconds: Sequence[Sequence[float]]) -> list[float]:
    """Return the median of each round."""
    return [float(np.median(values)) for values in seconds]


def percentile(seconds: Sequence[Sequence[float]], percent: float, seed: int = 0) -> Interval:
    """Return a percentile of all calls of all rounds, and by bootstrap of the rounds where it lies."""
    arrays = [np.asarray(values, np.float64) for values in seconds]
    value = float(np.percentile(np.concatenate(arrays), percent))
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(arrays), (_RESAMPLES // 4, len(arrays)))
    found = [np.percentile(np.concatenate([arrays[index] for index in pick]), percent) for pick in picks]
    low, high = np.percentile(found, [2.5, 97.5])
    return Interval(value, float(low), float(high))


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float], seed: int = 0) -> Interval:
    """Return the median over rounds of numerator / denominator; the interval is by bootstrap of rounds.

    Args:
        numerators, denominators: medians of the same rounds.

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
    """Return the ratio of two medians that were not measured together; the interval is by bootstrap of either's rounds.

    Raises:
        ValueError: there are no rounds.
    """
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


# ---- rows ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Row:
    """One agent in one case.

    Attributes:
        suite: "latency", ...
        case: what is measured, e.g. {"model": "small", "observation": "atari", "window": 256}.
        agent: its name, without the dtype.
        dtype: of its weights.
        seconds: percentile -> seconds of a call, over all calls.
        round_medians: seconds, of each round.
        num_calls: timed ones.
        facts: further figures, by the header of their column, unit included.
        error: largest relative error of a prediction; None where nothing can be compared.
        tolerance: what `error` may be.
        intervals: further figures that have one, by the header of their column.
        faster: how many times faster than the case's reference, in the same rounds; None for the reference, and where
            outputs do not agree.
        task: the task that was played: its name and its rule, with adapter and module; None where none was named.
    """

    suite: str
    case: dict[str, str | int]
    agent: str
    dtype: str
    seconds: dict[str, float]
    round_medians: list[float]
    num_calls: int
    facts: dict[str, float] = field(default_factory=dict)
    error: float | None = None
    tolerance: float | None = None
    intervals: dict[str, Interval] = field(default_factory=dict)
    faster: Interval | None = None
    task: dict[str, Any] | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """Identity of the measurement, which the same one of another run has too."""
        rule = json.dumps(self.task, sort_keys=True)
        return self.suite, *sorted(self.case.items()), self.agent, self.dtype, rule

    @property
    def name(self) -> str:
        return f"{self.agent} {self.dtype}"

    @property
    def agrees(self) -> bool:
        """False if its outputs are not the reference's, so that its times mean nothing."""
        return self.error is None or self.tolerance is None or self.error <= self.tolerance

    @property
    def p50(self) -> float:
        return self.seconds["50"]


def make_row(
    suite: str,
    case: dict[str, str | int],
    name: str,
    seconds: Sequence[Sequence[float]],
    *,
    reference: Sequence[Sequence[float]] | None = None,
    error: float | None = None,
    tolerance: float | None = None,
    facts: dict[str, float] | None = None,
) -> Row:
    """Return a row from seconds by round.

    Args:
        suite, case: where it was measured.
        name: agent and dtype.
        seconds: [rounds][calls].
        reference: of the case's reference, in the same rounds.
        error, tolerance: of the outputs; no ratio is given where they do not agree.
        facts: further figures.
    """
    agent, _, dtype = name.rpartition(" ")
    medians = round_medians(seconds)
    agrees = error is None or tolerance is None or error <= tolerance
    return Row(
        suite=suite,
        case=case,
        agent=agent,
        dtype=dtype,
        seconds=percentiles(seconds),
        round_medians=medians,
        num_calls=sum(map(len, seconds)),
        facts=facts or {},
        error=error,
        tolerance=tolerance,
        faster=paired_ratio(round_medians(reference), medians) if reference is not None and agrees else None,
    )


# ---- files -----------------------------------------------------------------------------------------------------------


@dataclass
class Results:
    """All results of a run.

    Attributes:
        machine: hardware, versions, commit, date, and the memory's speed while it was measured.
        settings: options of the run.
        rows: what was measured.
        skipped: agent -> why it was not.
    """

    machine: dict[str, Any]
    settings: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the file, its folder included."""
        path.parent.mkdir(parents=True, exist_ok=True)
        found = {"format": FORMAT, **asdict(self)}
        path.write_text(json.dumps(_finite(found), indent=1, allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read what `write` wrote.

        Raises:
            ValueError: the file is not there, or not one that `write` wrote; names the field.
        """
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: expected the results of a benchmark, got {error}") from None
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            got = found.get("format") if isinstance(found, dict) else type(found).__name__
            if isinstance(found, dict) and {"tasks", "overall"} <= found.keys():
                raise ValueError(
                    f"{path}: expected the results of a benchmark, got those of an evaluation; compare agents with "
                    "`jat-engine compare-agents A B`, A and B being the folders of the runs"
                )
            raise ValueError(f"{path}: expected results with format {FORMAT}, got {got!r}")
        try:
            rows = [_row(values) for values in found["rows"]]
            return cls(dict(found["machine"]), dict(found["settings"]), rows, dict(found["skipped"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: expected the results of a benchmark, got a broken one: {error!r}") from None

    def of_suite(self, suite: str) -> list[Row]:
        """Return the rows of one suite."""
        return [row for row in self.rows if row.suite == suite]

    @property
    def suites(self) -> list[str]:
        """Suites that have rows, in order."""
        return list(dict.fromkeys(row.suite for row in self.rows))


def _row(values: dict[str, Any]) -> Row:
    unknown = values.keys() - {field.name for field in fields(Row)}
    if unknown:
        raise ValueError(f"row: unknown field {sorted(unknown)[0]}")
    faster = values.get("faster")
    error = math.inf if values.get("error") == _INFINITE else values.get("error")
    intervals = {name: Interval(**found) for name, found in values.get("intervals", {}).items()}
    faster = None if faster is None else Interval(**faster)
    row = Row(**{**values, "error": error, "intervals": intervals, "faster": faster})
    if not row.round_medians or "50" not in row.seconds:
        raise ValueError(f"row {row.name}: expected round_medians and percentiles")
    return row


_INFINITE = "infinite"


def _finite(value: Any) -> Any:
    """Replace infinities, which JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return _INFINITE
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value


def machine() -> dict[str, Any]:
    """Return hardware, versions and commit."""
    found = collect()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "platform": platform.platform(),
        **{key: found[key] for key in ("device", "cpu", "versions", "backend")},
    }


CHECKOUT = Path(__file__).resolve().parents[2]
"""Folder that the package is imported from."""


def commit(checkout: Path = CHECKOUT) -> str:
    """Return the commit of a checkout, by default of the one that runs; "" where it is none, or without git."""
    if not (checkout / ".git").exists():
        return ""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def disagreeing(rows: Iterable[Row]) -> list[str]:
    """Return remarks on rows whose outputs are not the reference's."""
    return [
        f"{describe(row.case)}, {row.name}: outputs differ by {row.error:.3g}, expected at most {row.tolerance:.3g}; "
        "it is not compared"
        for row in rows
        if not row.agrees
    ]


def describe(case: dict[str, str | int]) -> str:
    """Return a case in words."""
    return ", ".join(f"{name} {value}" for name, value in case.items())
