"""Measure how far every path is from float64, on the recorded episodes and on the published size, before timing.

A path is a process of its own: what crashes or hangs is known by name, and later sections leave it out. The reference
is the same step in float64 by plain torch (compiled_peer.DenseStep, eager), itself held against the recorded answers.
Every step goes on with the reference's (or the recorded) action. The published size: 160 steps, windows of 300 tokens,
so that the local window (256) and dropping the oldest both take part.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from jat_engine.bench.parity import Followed, follow, follow_episode, predict
from jat_engine.bench.workload import SPACES, step_arguments
from jat_engine.testing import golden

from .checkpoints import small_checkpoint, tiny_checkpoint
from .paths import PATHS, engine_of, facts, fallen_back, file_name, is_persistent, open_path
from .process import Process, python_module
from .section import SectionRun, describe

STEPS, WINDOW = 160, 300
COMPILED_WINDOW = 256
"""The latency section's: each window is compiled by itself, and this one is in the caches since the build section."""

PATH_SECONDS, PERSISTENT_SECONDS = 55.0, 35.0
"""Of a path: one that takes longer hangs. While a persistent one runs, the others wait."""
LEAST_SECONDS = 6.0
"""A path is not begun with less."""

INTERPRETED = ("continuous_cw2",), 6
"""Episodes and their first steps for the Triton interpreter, which takes most of a second for a step."""


def run(section: SectionRun) -> None:
    folder = section.folder / "parity"
    folder.mkdir(exist_ok=True)
    section.write(folder / "run.json")
    section.guard("reference, float64", lambda: _reference(section, folder))
    names = [name for name in section.chosen(PATHS) if section.has_gpu or not PATHS[name].needs_gpu]
    section.record("not run", {n: "needs a GPU" for n in section.chosen(PATHS) if n not in names})
    if section.quick:
        names = [name for name in names if not name.startswith("compiled")]
    found: dict[str, Any] = {}

    def play(name: str) -> None:
        command = python_module("parity", str(folder / "run.json"), name)
        environment = {} if section.has_gpu else {"TRITON_INTERPRET": "1"}
        most = PERSISTENT_SECONDS if is_persistent(name) and section.has_gpu else PATH_SECONDS
        seconds = min(section.time_left() - 2, most)
        if seconds < LEAST_SECONDS:
            record(name, {"not run": "no time left"})
            return
        done = Process(command, folder / f"{file_name(name)}.log", environment).wait(seconds)
        try:
            row = json.loads((folder / f"{file_name(name)}.json").read_text())
        except (OSError, ValueError):
            row = {}
        if done.code is None and seconds < most:
            row["not run"] = f"the section's time was over after {seconds:.0f} s"
        elif done.code is None:
            row["error"] = f"{done.tail}\ndid not end within {seconds:.0f} s"
        elif done.code != 0 and "error" not in row:
            row["error"] = f"{done.tail}\nexit status {done.code}"
        row["seconds"] = round(done.seconds, 1)
        record(name, row)

    def record(name: str, row: dict[str, Any]) -> None:
        row["limit"] = PATHS[name].limit
        row["within"] = _is_within(row, PATHS[name].limit)
        found[name] = row

        so_far = {name: found[name] for name in names if name in found}
        section.record("paths", so_far)
        # A peer that takes too long to compile here may still find its compiled step in the cache later.
        failed = {name: row["error"] for name, row in so_far.items() if "error" in row}
        section.record("failed", {name: error for name, error in failed.items() if not name.startswith("compiled")})

    # Persistent steps wait for all of their blocks: they share the GPU with no other process. The first of them comes
    # first, since it is what only a GPU can tell.
    alone = [name for name in names if is_persistent(name)]
    together = [name for name in names if not is_persistent(name)]
    for name in alone[:1]:
        play(name)
    with ThreadPoolExecutor(5 if section.has_gpu else 2) as pool:
        list(pool.map(play, together))
    for name in alone[1:]:
        play(name)


def _is_within(row: dict[str, Any], limit: float) -> bool:
    errors = [row[part]["relative error"] for part in ("tiny", "small") if part in row]
    return "error" not in row and "not run" not in row and bool(errors) and all(error <= limit for error in errors)


def _arguments(kind: str) -> list[dict[str, Any]]:
    return [step_arguments(kind, step) for step in range(STEPS)]


# ---- the reference -------------------------------------------------------------------------------------------------


def _reference(section: SectionRun, folder: Path) -> dict[str, Any]:
    """Measure the reference itself; its predictions of the published size are left in reference.npz."""
    from .compiled_peer import Float64Peer

    tiny = Float64Peer(tiny_checkpoint(section.folder), section.device)
    recorded = Followed()
    for episode in golden.EPISODES:
        recorded += follow_episode(tiny.open(episode.context_window), episode)
    result: dict[str, Any] = {"relative error to the recorded answers (float32)": recorded.relative_error}

    if not section.quick:
        small = Float64Peer(small_checkpoint(section.folder), section.device)
        arrays = {kind: np.stack(predict(small.open(WINDOW), _arguments(kind))) for kind in SPACES}
        result["spread of predictions"] = {kind: float(array.std()) for kind, array in arrays.items()}
        arrays["compiled"] = np.stack(predict(small.open(COMPILED_WINDOW), _arguments("continuous")))
        np.savez(folder / "reference.npz", **arrays)
    return result


# ---- one path, in its process --------------------------------------------------------------------------------------


def _tiny(section: SectionRun, name: str) -> dict[str, Any]:
    chosen: tuple[str, ...] = ()
    steps = None
    if name.startswith("graphs") and not section.has_gpu:
        chosen, steps = INTERPRETED
    peer = open_path(name, tiny_checkpoint(section.folder), section.device)
    found = Followed()
    for episode in golden.EPISODES:
        if not chosen or episode.name in chosen:
            found += follow_episode(peer.open(episode.context_window), episode, steps)
    _check_path(name, peer)
    return _row(found)


def _check_path(name: str, peer: Any) -> None:
    if reason := fallen_back(name, peer):
        raise RuntimeError(f"the persistent kernel was given up: {reason}")


def _small(section: SectionRun, name: str, folder: Path) -> dict[str, Any]:
    reference = np.load(folder / "reference.npz")
    peer = open_path(name, small_checkpoint(section.folder), section.device)
    if name.startswith("compiled"):
        expected = list(reference["compiled"])
        return _row(follow(peer.open(COMPILED_WINDOW), _arguments("continuous"), expected))

    by_kind = {kind: follow(peer.open(WINDOW), _arguments(kind), list(reference[kind])) for kind in SPACES}
    _check_path(name, peer)
    row = _row(sum(by_kind.values(), Followed()))
    row["by kind"] = {kind: found.relative_error for kind, found in by_kind.items()}
    engine = engine_of(peer)
    row["engine"] = {} if engine is None else facts(engine)
    if is_persistent(name):
        expected = list(reference["continuous"])
        runs = [follow(peer.open(WINDOW), _arguments("continuous"), expected).predictions for _ in range(2)]
        row["two runs are bitwise equal"] = all(np.array_equal(a, b) for a, b in zip(*runs, strict=True))
    return row


def _row(found: Followed) -> dict[str, Any]:
    if not np.isfinite(found.relative_error):
        raise ValueError("a prediction is not finite")
    return {
        "relative error": found.relative_error,
        "greedy actions that agree": found.agreement,
        "of": len(found.agreed),
        "episodes": found.episodes,
        "steps": len(found.predictions),
    }


def main() -> int:
    path, name = sys.argv[1:]
    section = SectionRun.read(Path(path))
    folder = section.folder / "parity"
    section.output = str(folder / f"{file_name(name)}.json")
    try:
        if not name.startswith("compiled"):
            section.record("tiny", _tiny(section, name))
        if not section.quick:
            section.record("small", _small(section, name, folder))
    except Exception as error:
        section.record("error", describe(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
