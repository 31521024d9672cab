"""Measure the steps a second of many clients, each of which acts as soon as it is answered."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from typing import Any

import numpy as np
from websockets.asyncio.client import ClientConnection, connect

from jat_engine import JatEngine
from jat_engine.bench.workload import REWARD
from jat_engine.serving import codec

from .latency import percentiles
from .requests import CYCLE, OBSERVATIONS, SPACE, packed_requests
from .targets import Target

IN_PROCESS = "sessions in process"


class Crowd:
    """Clients of a server, all in this event loop, whose windows are full."""

    def __init__(self, target: Target, num_clients: int, window: int) -> None:
        self.target = target
        self._requests = [packed_requests(target, client, window) for client in range(num_clients)]
        self._window = window
        self._websockets: list[ClientConnection] = []
        self._steps = 0

    async def __aenter__(self) -> Crowd:
        """Connect, and fill the windows."""
        options: dict[str, Any] = {"compression": None, "max_size": None, "ping_interval": None, "open_timeout": 60}
        self._websockets = [await connect(self.target.url, **options) for _ in self._requests]

        async def begin(websocket: ClientConnection, first: bytes, others: list[bytes]) -> None:
            await websocket.recv()
            await _act(websocket, first)
            for step in range(self._window // 2):
                await _act(websocket, others[step % CYCLE])

        await asyncio.gather(*(begin(one, *self._requests[n]) for n, one in enumerate(self._websockets)))
        return self

    async def __aexit__(self, *exception: object) -> None:
        for websocket in self._websockets:
            await websocket.close()

    async def act(self, seconds: float) -> dict[str, Any]:
        """Let all act for some seconds.

        Returns:
            "rate" in agent-steps a second, "latencies" in seconds, and "batch", the mean number of agents in a step.
        """
        latencies: list[float] = []
        batches: list[int] = []
        began = time.perf_counter()

        async def play(websocket: ClientConnection, others: list[bytes]) -> None:
            step, answer = 0, b""
            while (sent := time.perf_counter()) < began + seconds:
                answer = await _act(websocket, others[step % CYCLE])
                latencies.append(time.perf_counter() - sent)
                step += 1
            if answer:
                batches.append(codec.unpack(answer)["server_timing"].get("batch", 1))

        await asyncio.gather(*(play(one, self._requests[n][1]) for n, one in enumerate(self._websockets)))
        rate = len(latencies) / (time.perf_counter() - began)  # the last answers come after the end
        return {"rate": rate, "latencies": latencies, "batch": float(np.mean(batches))}


async def _act(websocket: ClientConnection, request: bytes) -> bytes:
    await websocket.send(request)
    answer = await websocket.recv()
    assert isinstance(answer, bytes), answer
    return answer


class SessionsInProcess:
    """As many sessions, stepped together in this process: the rate of a server without overhead."""

    def __init__(self, engine: JatEngine, num_sessions: int, window: int) -> None:
        self._engine = engine
        self._sessions = [engine.open_session(window, seed=0) for _ in range(num_sessions)]
        self._steps = 0
        for _ in range(window // 2 + 1):
            self._step()

    def act(self, seconds: float) -> float:
        """Step all for some seconds, and return the agent-steps a second."""
        began, steps = time.perf_counter(), 0
        while time.perf_counter() < began + seconds:
            self._step()
            steps += len(self._sessions)
        return steps / (time.perf_counter() - began)

    def close(self) -> None:
        """Give the pages back."""
        for session in self._sessions:
            session.close()

    def _step(self) -> None:
        count, step = len(self._sessions), self._steps
        self._engine.get_next_actions(
            self._sessions,
            [OBSERVATIONS[(step + index) % CYCLE] for index in range(count)],
            [REWARD if step else None] * count,
            [SPACE] * count,
            True,
        )
        self._steps += 1


async def measure_throughput(
    engine: JatEngine, targets: list[Target], num_clients: int, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Let clients of all servers, and sessions in process, take turns, and return a row for each."""
    rates: dict[str, list[float]] = {IN_PROCESS: [], **{target.name: [] for target in targets}}
    latencies: dict[str, list[float]] = {target.name: [] for target in targets}
    batches: dict[str, list[float]] = {target.name: [] for target in targets}
    async with contextlib.AsyncExitStack() as stack:
        crowds = [await stack.enter_async_context(Crowd(target, num_clients, arguments.window)) for target in targets]
        sessions = SessionsInProcess(engine, num_clients, arguments.window)
        for _ in range(arguments.throughput_rounds):
            for crowd in crowds:
                found, name = await crowd.act(arguments.seconds), crowd.target.name
                rates[name].append(found["rate"])
                latencies[name] += found["latencies"]
                batches[name].append(found["batch"])
            rates[IN_PROCESS].append(await asyncio.to_thread(sessions.act, arguments.seconds))
        sessions.close()

    rows = []
    for name, found_rates in rates.items():
        row: dict[str, Any] = {"target": name, "clients": num_clients, "rates": found_rates}
        if name in latencies:
            row |= {"batch": float(np.mean(batches[name])), **percentiles(latencies[name])}
        rows.append(row)
    return rows
