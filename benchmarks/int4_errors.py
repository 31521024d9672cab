"""Measure how far predictions of the native CPU backend are from float32 by dtype, and by the kind of matrix in int4.

    python -m benchmarks.int4_errors [--models recorded jat-mini FOLDER] [--calibrated FOLDER] [--write]

Each step follows on the recorded action, or on float32's. "recorded" is the tiny model with the recorded episodes of
the published implementation; checkpoints see the recorded observations that come with the package. --write keeps the
table in benchmarks/results/int4_errors.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from jat_engine import JatConfig, JatEngine
from jat_engine.backends import cpu
from jat_engine.bench.parity import Followed, follow, follow_episode, predict
from jat_engine.bench.report import markdown
from jat_engine.checkpoint.quantized import KINDS, dtypes_of
from jat_engine.observation import Limits
from jat_engine.testing import golden
from jat_engine.testing.recordings import load_recordings

RESULTS = Path(__file__).parent / "results" / "int4_errors"
RECORDED = "recorded"
WINDOW = 32


def variants() -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield the name of each row, the engine's dtype, and the dtype of each kind of matrix."""
    for dtype in ("bfloat16", "int8", "int4"):
        yield dtype, dtype, dtypes_of(dtype)
    yield "int4, all kinds", "int4", dict.fromkeys(KINDS, "int4")
    for kind in KINDS:
        yield f"int8, {kind} int4", "int4", dict.fromkeys(KINDS, "int8") | {kind: "int4"}


def load(source: str | Path, dtype: str, kinds: dict[str, str] | None = None) -> JatEngine:
    with mock.patch.object(cpu, "dtypes_of", lambda dtype: kinds or dtypes_of(dtype)):
        return JatEngine.from_pretrained(source, device="cpu", backend="cpu", dtype=dtype)


def recorded_steps(source: str | Path) -> list[list[dict[str, Any]]]:
    """Return episodes of arguments: recorded observations that the model takes."""
    limits = Limits.of(JatConfig.from_pretrained(source))
    episodes = []
    for recording in load_recordings():
        first = recording.observations[0].get("continuous_observation")
        if first is None or first.size <= limits.num_numbers:
            pairs = zip(recording.observations, recording.rewards, strict=True)
            episodes.append([{**o, "action_space": recording.action_space, "reward": r} for o, r in pairs])
    return episodes


def follower(source: str | Path) -> Callable[[JatEngine], list[Followed]]:
    """Return a function that lets an engine follow all episodes of a model."""
    if source == RECORDED:
        return lambda engine: [follow_episode(engine.open_session(e.context_window), e) for e in golden.EPISODES]
    episodes = recorded_steps(source)
    with load(source, "float32") as engine:
        expected = [predict(engine.open_session(WINDOW), steps) for steps in episodes]
    return lambda engine: [
        follow(engine.open_session(WINDOW), steps, wanted) for steps, wanted in zip(episodes, expected, strict=True)
    ]


def row(name: str, engine: JatEngine, follow_all: Callable[[JatEngine], list[Followed]]) -> dict[str, Any]:
    with engine:
        found = sum(follow_all(engine), Followed())
    agreement = found.agreement
    return {
        "weights": name,
        "relative error": round(found.relative_error, 5),
        "greedy actions that agree": "" if agreement is None else f"{agreement:.1%} of {len(found.agreed)}",
    }


def measure(source: str, calibrated: str | None) -> list[dict[str, Any]]:
    """Return the rows of one model."""
    with tempfile.TemporaryDirectory() as folder:
        place = golden.write_checkpoint(Path(folder)) if source == RECORDED else source
        follow_all = follower(source)
        rows = [row(name, load(place, dtype, kinds), follow_all) for name, dtype, kinds in variants()]
        if calibrated is not None:
            rows.insert(3, row("int4, calibrated", load(calibrated, "auto"), follow_all))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=[RECORDED, "jat-mini"])
    parser.add_argument("--calibrated", nargs="+", default=[], metavar="MODEL=FOLDER", help="of `jat-engine quantize`")
    parser.add_argument("--write", action="store_true", help=f"keep the table in {RESULTS}.json and .md")
    options = parser.parse_args()

    calibrated = dict(text.split("=", 1) for text in options.calibrated)
    tables = {}
    for model in options.models:
        tables[model] = measure(model, calibrated.get(model))
        print(model, *tables[model], sep="\n", flush=True)
    if options.write:
        RESULTS.with_suffix(".json").write_text(json.dumps(tables, indent=1) + "\n")
        parts = ["# Errors of the native CPU backend by dtype", __doc__.partition("\n\n    ")[0]]
        for model, rows in tables.items():
            columns = markdown({column: [str(one[column]) for one in rows] for column in rows[0]})
            parts += [f"## {model}", columns]
        RESULTS.with_suffix(".md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
