"""Time one agent's whole `get_next_action`, all paths in one run that takes turns, with full windows.

Two ways: with a pause of 1 ms before each step, as next to an environment, and back to back. Then the device's part of
a step alone. Floor: bytes of the step (`jat_engine.bench.costs`) over the rate of a device-to-device copy measured in
the same process.
"""

from __future__ import annotations

import gc
import signal
import time
from typing import Any

import numpy as np
import torch

from jat_engine.bench import costs, report
from jat_engine.bench.bandwidth import copy_bandwidth
from jat_engine.bench.results import Row, make_row
from jat_engine.bench.runner import Contender, take_turns, with_keywords
from jat_engine.bench.workload import SPACES, THE_WINDOW, step_arguments
from jat_engine.config import JatConfig

from . import machine
from .checkpoints import checkpoint
from .device_time import of_step, profile
from .paths import PATHS, engine_of, fallen_back, open_path
from .report import PLOT
from .section import SectionRun, describe

PEERS = (
    "persistent bfloat16",
    "graphs bfloat16",
    "JatModel bfloat16",
    "compiled torch bfloat16",
    "torch bfloat16",
    "graphs int8",
    "graphs float16",
)
"""In the order of worth: what there is no time for is left out."""

REDUCED_PEERS = ("JatModel bfloat16", "torch float32")
REFERENCE = "JatModel bfloat16"

MODES = {"1 ms pause": 0.001, "back to back": 0.0}
ROUNDS, COMPILE_SECONDS = 64, 40
MEASURING_SECONDS = 35.0
"""Kept for the measurement itself while agents fill their windows."""
COPY_BYTES, REDUCED_COPY_BYTES = 1 << 30, 1 << 26

Key = tuple[str, str]
"""Observation and path."""


def run(section: SectionRun) -> None:
    peers, left_out = open_peers(section)
    window = 16 if section.quick else THE_WINDOW
    agents: dict[Key, Any] = {}
    for name, peer in peers.items():
        for kind in SPACES:
            if section.time_left() < (8 if section.quick else MEASURING_SECONDS):
                left_out[f"{name}, {kind}"] = "no time left"
                continue
            try:
                agents[kind, name] = filled(name, peer, kind, window, section)
            except Exception as error:
                left_out[f"{name}, {kind}"] = describe(error)
    section.record("left out", left_out)

    bandwidths = [bandwidth(section)]
    seconds = time_all(section, agents, bandwidths, left_out)
    section.record("left out", left_out)
    section.record("copy bandwidth GB/s", [round(b / 1e9, 1) for b in bandwidths])
    section.record("clocks after it", machine.clocks())

    given_up = {name: reason for name, peer in peers.items() if (reason := fallen_back(name, peer))}
    section.record("given up while timed, what is timed is the fallback", given_up)
    config = JatConfig.from_pretrained(checkpoint(section))
    measured = rows(seconds, window)
    shown = [shown_row(row, config, float(np.median(bandwidths)), given_up) for row in measured]
    section.record("steps", shown)
    if not measured:
        section.record("not run", "no time left")
        return
    try:
        report.save(report.draw_latency, measured, section.folder / PLOT)
    except ValueError as error:
        section.record("no plot", str(error))

    if not section.has_gpu:
        section.record("device", {"not run": "needs a GPU"})
        return
    section.guard("compiled torch, steps without CUDA graphs", _skips)
    measure_device(section, peers, agents, shown)


def open_peers(section: SectionRun) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the peers by path, and why others are left out."""
    names = section.chosen(REDUCED_PEERS if section.quick else PEERS)
    left_out = {name: section.failed_paths[name] for name in names if name in section.failed_paths}
    peers: dict[str, Any] = {}
    for name in names:
        if name not in left_out:
            if section.time_left() < (8 if section.quick else MEASURING_SECONDS):
                left_out[name] = "no time left"
                continue
            try:
                peers[name] = open_path(name, checkpoint(section), section.device)
            except Exception as error:
                left_out[name] = describe(error)
    return peers, left_out


def filled(name: str, peer: Any, kind: str, window: int, section: SectionRun) -> Any:
    """Return an agent whose window is full."""
    agent = peer.open(window)
    with _Alarm(COMPILE_SECONDS if name.startswith("compiled") else 60):
        for step in range(window // 2 + 8):
            agent.get_next_action(**step_arguments(kind, step))
            if section.time_left() < 10:
                raise TimeoutError("no time left")
    return agent


def bandwidth(section: SectionRun) -> float:
    """Measure the rate of a copy."""
    num_bytes = COPY_BYTES if section.has_gpu else REDUCED_COPY_BYTES
    return copy_bandwidth(torch.device(section.device), num_bytes, 30 if section.has_gpu else 3)


def time_all(
    section: SectionRun, agents: dict[Key, Any], bandwidths: list[float], left_out: dict[str, str]
) -> dict[tuple[str, str, str], list[list[float]]]:
    """Let all agents take turns, in both modes.

    Args:
        bandwidths, left_out: are added to.

    Returns:
        Observation, path and mode -> seconds of each call, by round.
    """
    contenders = {}
    keys = {}
    for (kind, name), agent in agents.items():
        for mode, pause_s in MODES.items():
            keys[f"{name}, {kind}, {mode}"] = kind, name, mode
            contenders[f"{name}, {kind}, {mode}"] = Contender(
                prepare(kind, pause_s), with_keywords(agent.get_next_action)
            )

    def on_round(number: int) -> bool:
        if number % 10 == 9:
            bandwidths.append(bandwidth(section))
        return section.time_left() > (5 if section.quick else 22)

    def on_failure(name: str, error: Exception) -> None:
        left_out[f"{name}, while timed"] = describe(error)

    gc.collect()
    began = time.time()
    found = take_turns(
        contenders,
        2 if section.quick else ROUNDS,
        num_warmup=1,
        pause_s=0.0,
        on_round=on_round,
        on_failure=on_failure,
    )
    rounds = max(map(len, found.values()), default=0)
    section.record("rounds", {"number": rounds, "seconds": round(time.time() - began, 1)})
    return {keys[name]: seconds for name, seconds in found.items() if seconds}


def prepare(kind: str, pause_s: float) -> Any:
    """Return what makes a call's arguments beforehand, and then waits."""
    arguments = [step_arguments(kind, step) for step in range(16)]

    def prepared(number: int) -> dict[str, Any]:
        if pause_s:
            time.sleep(pause_s)
        return arguments[number % len(arguments)]

    return prepared


def rows(seconds: dict[tuple[str, str, str], list[list[float]]], window: int) -> list[Row]:
    """Return a row for each agent and mode, in relation to `REFERENCE` where it was measured."""
    found = []
    for (kind, name, mode), values in seconds.items():
        reference = seconds.get((kind, REFERENCE, mode)) if name != REFERENCE else None
        paired = reference if reference is not None and len(reference) == len(values) else None
        case: dict[str, str | int] = {"model": "", "observation": kind, "window": window, "mode": mode}
        found.append(make_row("latency", case, name, values, reference=paired))
    return found


def shown_row(row: Row, config: JatConfig, bandwidth: float, given_up: dict[str, str]) -> dict[str, Any]:
    """Return a row as the report shows it, with the floor."""
    kind, window = str(row.case["observation"]), int(row.case["window"])
    num_bytes = costs.step_bytes(config, kind, PATHS[row.name].dtype, window)
    shown: dict[str, Any] = {
        "observation": kind,
        "agent": row.name + (" (given up: fallback)" if row.name in given_up else ""),
        "mode": row.case["mode"],
        **{f"p{percentile} us": row.seconds[percentile] * 1e6 for percentile in ("50", "90", "99")},
        "n": row.num_calls,
        "times faster than JatModel": report.times_faster(row),
        "MB a step": num_bytes / 1e6,
        "floor us": num_bytes / bandwidth * 1e6,
    }
    shown["floor / p50"] = shown["floor us"] / shown["p50 us"]
    return shown


def measure_device(section: SectionRun, peers: dict[str, Any], agents: dict[Key, Any], shown: list[Any]) -> None:
    """Record the device's part of the steps of engines with kernels of their own, and by kernel."""
    device: dict[str, Any] = {}

    def again(kind: str, name: str) -> Any:
        return lambda: agents[kind, name].get_next_action(**step_arguments(kind, 1))

    for kind, name in agents:
        engine = engine_of(peers[name])
        if engine is not None and engine.choice.backend == "cuda" and section.time_left() > 6:
            try:
                device[f"{name}, {kind}"] = of_step(again(kind, name))
            except Exception as error:
                device[f"{name}, {kind}"] = {"error": describe(error)}
            section.record("device", device)

    for row in shown:
        found = device.get(f"{row['agent']}, {row['observation']}", {})
        parts = [found[part]["alone p50 us"] for part in ("graphs", "launch") if "alone p50 us" in found.get(part, {})]
        if parts and row["mode"] == "1 ms pause":
            row["device us"] = sum(parts)
            row["host us"] = row["p50 us"] - row["device us"]
            row["floor / device time"] = row["floor us"] / row["device us"]
    section.record("steps", shown)

    for name in ("graphs bfloat16", "persistent bfloat16"):
        if ("continuous", name) in agents and section.time_left() > 6:
            section.guard(
                f"kernels of a step, {name}, continuous", lambda name=name: profile(again("continuous", name))
            )


class _Alarm:
    """Raise TimeoutError in this thread when the time is over."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        def ring(*_: object) -> None:
            raise TimeoutError(f"not done within {self._seconds:.0f} s")

        self._before = signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._before)


def _skips() -> int:
    from .compiled_peer import cudagraph_skips

    return cudagraph_skips()
