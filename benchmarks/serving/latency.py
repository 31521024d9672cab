"""Time one agent's calls, in process and through servers."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from websockets.sync.client import ClientConnection, connect

from jat_engine import JatEngine
from jat_engine.bench.workload import REWARD
from jat_engine.client import RemoteAgent
from jat_engine.serving import codec

from .echo import SECONDS
from .requests import CYCLE, OBSERVATIONS, SPACE, fields_of
from .targets import Target

IN_PROCESS, ECHO = "drop-in call in process", "echo that reads as many bytes"

_CHECKED = 8
"""Number of first actions that are compared with those in process."""

Call = Callable[[int], Any]
"""Takes the number of a step and returns its action."""


def drop_in_call(agent: JatEngine | RemoteAgent, window: int) -> Call:
    """Return a function that takes a step by the drop-in call."""
    agent.reset_rl()

    def call(step: int) -> Any:
        return agent.get_next_action(
            **OBSERVATIONS[step % CYCLE],
            action_space=SPACE,
            reward=REWARD if step else None,
            deterministic=True,
            context_window=window,
        )

    return call


def openpi_call(websocket: ClientConnection, target: Target, window: int) -> Call:
    """Return a function that takes a step as openpi's client does: one message, one answer, packing included."""
    websocket.recv()

    def call(step: int) -> Any:
        websocket.send(codec.pack(fields_of(target, -1, step, window)))
        answer = websocket.recv()
        assert isinstance(answer, bytes), answer
        return codec.unpack(answer)["actions"][0]

    return call


def timed(call: Call, step: int) -> float:
    """Return the seconds of a call."""
    began = time.perf_counter()
    call(step)
    return time.perf_counter() - began


def echo_seconds(websocket: ClientConnection) -> float:
    """Return the seconds of a message to the echo and its answer, without those in which the echo read memory."""
    began = time.perf_counter()
    websocket.send(bytes(300))
    answer = websocket.recv()
    seconds = time.perf_counter() - began
    assert isinstance(answer, bytes), answer
    read: float = SECONDS.unpack_from(answer)[0]
    return seconds - read


def measure_latency(
    engine: JatEngine, servers: list[Target], agents: list[Target], echo_url: str, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Time calls of one agent with a full window. Targets take turns: a block of calls of each makes a round.

    Args:
        engine: to call in process.
        servers: to call as openpi's client does.
        agents: servers to call with `RemoteAgent`.
        echo_url: of the echo.
        arguments: of the command line.

    Returns:
        A row for each target, with the percentiles of `percentiles`, and `equal`: its first actions are those in
        process. `added_ms` is the median over rounds of the difference between the round's medians of the target and
        in process; for the echo, of the round's median itself.
    """
    window = arguments.window
    websockets = [connect(target.url, compression=None, max_size=None, legacy=True) for target in servers]
    remote = [RemoteAgent(target.url) for target in agents]
    echo = connect(echo_url, compression=None, legacy=True)
    calls: dict[str, Call] = {IN_PROCESS: drop_in_call(engine, window)}
    for agent, target in zip(remote, agents, strict=True):
        calls[f"{target.name}, RemoteAgent"] = drop_in_call(agent, window)
    for websocket, target in zip(websockets, servers, strict=True):
        calls[f"{target.name}, openpi's kind of client"] = openpi_call(websocket, target, window)

    actions = {name: [np.float32(call(step)).tolist() for step in range(_CHECKED)] for name, call in calls.items()}
    steps = _CHECKED + window // 2
    for call in calls.values():
        for step in range(_CHECKED, steps):
            call(step)

    rounds: dict[str, list[list[float]]] = {name: [] for name in [*calls, ECHO]}
    for number in range(arguments.rounds):
        names = list(rounds)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            if name == ECHO:
                seconds = [echo_seconds(echo) for _ in range(arguments.calls)]
            else:
                seconds = [timed(calls[name], steps + step) for step in range(arguments.calls)]
            rounds[name].append(seconds)
        steps += arguments.calls
    for one in [*websockets, *remote, echo]:
        one.close()

    medians = {name: np.median(seconds, axis=1) * 1000 for name, seconds in rounds.items()}
    rows = []
    for name, seconds in rounds.items():
        added = medians[name] - (0.0 if name == ECHO else medians[IN_PROCESS])
        row = {"target": name, **percentiles(np.concatenate(seconds)), "added_ms": float(np.median(added))}
        row |= {"added_lowest_ms": float(added.min()), "added_highest_ms": float(added.max())}
        rows.append(row | {"equal": actions[name] == actions[IN_PROCESS] if name in actions else None})
    return rows


def percentiles(seconds: Any) -> dict[str, float]:
    """Return median and 99th percentile in milliseconds, and the number of values."""
    p50, p99 = np.percentile(seconds, [50, 99]) * 1000
    return {"p50_ms": float(p50), "p99_ms": float(p99), "calls": len(seconds)}
