"""One agent: the whole `get_next_action`, all paths in one run that takes turns, in the steady state of a full window.

Two ways: with a pause of 1 ms before each step, as beside an environment, and back to back. Then the device's part of a
step alone. Floor: bytes of the step (weights of the blocks and of the observation's encoder, keys and values of the
window) over the rate of a device-to-device copy measured in the same process.
"""

from __future__ import annotations

import gc
import signal
import time
from collections import defaultdict
from typing import Any

import numpy as np

from jat_engine.bench.workload import SPACES, step_arguments

from . import machine
from .context import Context, describe
from .device_time import copy_bandwidth, of_step, profile
from .paths import PATHS, Agents
from .workload import block_bytes, cached_bytes, checkpoint, encoder_bytes

AGENTS = (
    "JatModel bfloat16",
    "compiled torch bfloat16",
    "torch bfloat16",
    "graphs bfloat16",
    "graphs float16",
    "graphs int8",
    "one launch bfloat16",
)
REDUCED_AGENTS = ("JatModel bfloat16", "torch float32")
SLOW = ("JatModel bfloat16", "torch bfloat16", "torch float32")
"""Take a fifth of the steps: milliseconds each."""

MODES = {"1 ms pause": 0.001, "back to back": 0.0}
WINDOW, ROUNDS, TURN, COMPILE_SECONDS = 256, 42, 25, 40


def run(context: Context) -> None:
    names = REDUCED_AGENTS if context.quick else AGENTS
    window = 16 if context.quick else WINDOW
    rounds, turn = (2, 3) if context.quick else (ROUNDS, TURN)
    agents: dict[str, Agents] = {}
    left_out = {name: context.failed_paths[name] for name in names if name in context.failed_paths}
    for name in names:
        if name in left_out:
            continue
        try:
            agents[name] = Agents(name, checkpoint(context), context.device)
        except Exception as error:
            left_out[name] = describe(error)
    calls: dict[tuple[str, str], _Call] = {}
    for name, made in agents.items():
        for kind in SPACES:
            try:
                calls[kind, name] = _warm(made, kind, window, context)
            except Exception as error:
                left_out[f"{name}, {kind}"] = describe(error)
    context.record("left out", left_out)
    bandwidths = [copy_bandwidth()]
    latencies: dict[Any, list[float]] = defaultdict(list)
    rng = np.random.default_rng(0)
    keys = list(calls)
    began, number = time.time(), 0
    reserve = 5 if context.quick else 22
    gc.collect()
    for number in range(rounds):
        if context.time_left() < reserve:
            break
        for index in rng.permutation(len(keys)):
            key = keys[index]
            if key not in calls:
                continue
            steps = max(2, turn // 5) if key[1] in SLOW else turn
            for mode, pause in MODES.items():
                try:
                    calls[key](0)
                    for step in range(steps):
                        if pause:
                            time.sleep(pause)
                        latencies[*key, mode].append(calls[key](1 + step))
                except Exception as error:
                    left_out[f"{key[1]}, {key[0]}, while timed"] = describe(error)
                    del calls[key]
                    break
        if number % 10 == 9:
            bandwidths.append(copy_bandwidth())
            context.record("steps", _rows(latencies, agents, float(np.median(bandwidths)), window))
    bandwidth = float(np.median(bandwidths))
    context.record("left out", left_out)
    context.record("copy bandwidth GB/s", [round(b / 1e9, 1) for b in bandwidths])
    context.record("rounds", {"number": number + 1, "seconds": round(time.time() - began, 1)})
    context.record("clocks after it", machine.clocks())
    rows = _rows(latencies, agents, bandwidth, window)
    fallen_back = {name: reason for name, made in agents.items() if (reason := made.fallen_back)}
    context.record("given up while timed, what is timed is the fallback", fallen_back)
    for row in rows:
        if row["agent"] in fallen_back:
            row["agent"] += " (given up: fallback)"
    context.record("steps", rows)
    if not context.has_gpu:
        context.record("device", {"not run": "needs a GPU"})
        return
    context.record("compiled torch, steps without CUDA graphs", _skips())
    device = {}
    for (kind, name), call in calls.items():
        if agents[name].engine is not None and PATHS[name].options != {"backend": "torch"} and context.time_left() > 6:
            try:
                device[f"{name}, {kind}"] = of_step(agents[name].engine, lambda call=call: call(1))
            except Exception as error:
                device[f"{name}, {kind}"] = {"error": describe(error)}
            context.record("device", device)
    for row in rows:
        found = device.get(f"{row['agent']}, {row['observation']}", {})
        parts = [found[part]["alone p50 us"] for part in ("graphs", "launch") if "alone p50 us" in found.get(part, {})]
        if parts and row["mode"] == "1 ms pause":
            row["device us"] = sum(parts)
            row["host us"] = row["p50 us"] - row["device us"]
            row["floor / device time"] = row["floor us"] / row["device us"]
    context.record("steps", rows)
    for name in ("graphs bfloat16", "one launch bfloat16"):
        if ("continuous", name) in calls and context.time_left() > 6:
            context.guard(f"kernels of a step, {name}, continuous", lambda n=name: profile(_again(calls, n)))


def _again(calls: Any, name: str) -> Any:
    return lambda: calls["continuous", name](1)


class _Call:
    """Seconds of one call; the arguments are made beforehand."""

    def __init__(self, agent: Any, kind: str) -> None:
        self._agent = agent
        self._arguments = [step_arguments(kind, step) for step in range(16)]

    def __call__(self, step: int) -> float:
        arguments = self._arguments[step % 16]
        begin = time.perf_counter()
        self._agent.get_next_action(**arguments)
        return time.perf_counter() - begin


def _warm(agents: Agents, kind: str, window: int, context: Context) -> _Call:
    """An agent whose window is full."""
    call = _Call(agents.open(window), kind)
    with _Alarm(COMPILE_SECONDS if agents.name.startswith("compiled") else 60):
        for step in range(window // 2 + 8):
            call(step)
            if context.time_left() < 10:
                raise TimeoutError("no time left")
    return call


class _Alarm:
    """Raises TimeoutError in this thread when the time is over."""

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


def _rows(latencies: Any, agents: dict[str, Agents], bandwidth: float, window: int) -> list[dict[str, Any]]:
    from jat_engine import JatConfig

    config: Any = next((a.engine.config for a in agents.values() if a.engine is not None), None) or JatConfig()
    rows = []
    order = [(kind, name, mode) for kind in SPACES for name in agents for mode in MODES]
    for kind, name, mode in order:
        seconds = latencies.get((kind, name, mode))
        if not seconds:
            continue
        p50, p90, p99 = np.percentile(seconds, [50, 90, 99]) * 1e6
        row = {"observation": kind, "agent": name, "mode": mode, "p50 us": p50, "p90 us": p90, "p99 us": p99}
        row["n"] = len(seconds)
        reference = latencies.get((kind, "JatModel bfloat16", mode))
        if reference:
            row["times faster than JatModel"] = float(np.median(reference)) * 1e6 / p50
        dtype = PATHS[name].dtype
        num_bytes = (
            block_bytes(config, dtype) + encoder_bytes(config, kind, dtype) + cached_bytes(config, window, dtype)
        )
        row["MB a step"] = num_bytes / 1e6
        row["floor us"] = num_bytes / bandwidth * 1e6
        row["floor / p50"] = row["floor us"] / p50
        rows.append({k: float(v) if isinstance(v, np.floating) else v for k, v in row.items()})
    return rows


def _skips() -> Any:
    try:
        from .compiled_peer import cudagraph_skips

        return cudagraph_skips()
    except Exception as error:
        return describe(error)
