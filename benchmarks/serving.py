"""Time a policy server: calls in process and over loopback, and steps a second of many clients, beside openpi's server.

`python -m benchmarks.serving --model small --dtype bfloat16 --openpi PATH --out FILE.json` writes that file and
`FILE.md`. All targets run at the same time, each with an engine of its own in a process of its own, and take turns.
Clients are in this process, in one event loop.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from websockets.asyncio.client import connect as connect_async
from websockets.sync.client import connect

from benchmarks.openpi_server import why_not
from jat_engine import JatEngine
from jat_engine.bench.workload import REWARD, SPACES, observation, open_checkpoint
from jat_engine.installation import cpu_features, cpu_name, versions
from jat_engine.machine import available_cores
from jat_engine.serving import codec
from jat_engine.serving.spaces import describe_space

IN_PROCESS, SERVER, OPENPI = "drop-in call in process", "jat-engine serve", "openpi's server"

_KIND = "continuous"
_CYCLE = 16
"""Different observations of a client."""

_CHECKED = 8
"""First actions that are compared with those in process."""

_PAGE_SLACK = 64
"""Tokens of the cache that a session takes beside its window."""


class Target(NamedTuple):
    """A server.

    Attributes:
        name: of it.
        url: to connect to.
        extra: returns the fields that requests of a client have besides.
    """

    name: str
    url: str
    extra: Callable[[int], dict[str, Any]]


def requests(target: Target, client: int, window: int) -> tuple[bytes, list[bytes]]:
    """Return the request that begins an episode, and those that follow."""
    settings = {"action_space": describe_space(SPACES[_KIND]), "context_window": window, "deterministic": True}
    always = settings if target.name == OPENPI else {}  # its policy keeps nothing of an episode but the session
    fields = [observation(_KIND, step) | target.extra(client) for step in range(_CYCLE)]
    first = fields[0] | settings | {"episode_start": True}
    return codec.pack(first), [codec.pack(one | always | {"reward": REWARD}) for one in fields]


# ---- targets -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Run a command as long as the context."""
    process = subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def our_server(folder: Path, arguments: argparse.Namespace) -> Iterator[Target]:
    command = ["jat_engine.cli", "serve", "--model_name_or_path", str(folder), "--use_cpu", "--port", "0"]
    command += ["--max_sessions", str(max(arguments.clients) + 1), "--dtype", arguments.dtype]
    if arguments.num_threads is not None:
        command += ["--num_threads", str(arguments.num_threads)]
    with running(command) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("serving on "), line
        yield Target(SERVER, line.split()[-1], lambda client: {})


@contextlib.contextmanager
def openpi_server(folder: Path, arguments: argparse.Namespace) -> Iterator[Target]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tokens = (max(arguments.clients) + 1) * (arguments.window + _PAGE_SLACK)
    command = ["benchmarks.openpi_server", "--openpi", str(arguments.openpi), "--model", str(folder)]
    command += ["--port", str(port), "--dtype", arguments.dtype, "--max_cached_tokens", str(tokens)]
    if arguments.num_threads is not None:
        command += ["--num_threads", str(arguments.num_threads)]
    with running(command) as process:
        while True:
            assert process.poll() is None, "openpi's server has ended"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        yield Target(OPENPI, f"ws://127.0.0.1:{port}", lambda client: {"client": client})


# ---- latency -------------------------------------------------------------------------------------------------------


class RemoteCaller:
    """Calls a server as openpi's client does: one message, one answer."""

    def __init__(self, target: Target, window: int) -> None:
        self._websocket = connect(target.url, compression=None, max_size=None)
        self._websocket.recv()
        self._target, self._window = target, window
        self._steps = 0

    def __call__(self, step: int) -> Any:
        """Take a step, and return the action. Packing and unpacking count."""
        fields = observation_of(step) | self._target.extra(-1)
        if not self._steps or self._target.name == OPENPI:
            fields |= {
                "action_space": describe_space(SPACES[_KIND]),
                "context_window": self._window,
                "deterministic": True,
            }
        fields |= {"reward": REWARD} if self._steps else {"episode_start": True}
        self._steps += 1
        self._websocket.send(codec.pack(fields))
        answer = self._websocket.recv()
        assert isinstance(answer, bytes), answer
        return codec.unpack(answer)["actions"][0]

    def close(self) -> None:
        """Leave."""
        self._websocket.close()


OBSERVATIONS = [observation(_KIND, step) for step in range(_CYCLE)]


def observation_of(step: int) -> dict[str, Any]:
    """Return one of `_CYCLE` observations, which are made before anything is timed."""
    return OBSERVATIONS[step % _CYCLE]


def drop_in_caller(engine: JatEngine, window: int) -> Callable[[int], Any]:
    """Return a function that takes a step by the drop-in call."""
    engine.reset_rl()

    def call(step: int) -> Any:
        return engine.get_next_action(
            **observation_of(step),
            action_space=SPACES[_KIND],
            reward=REWARD if step else None,
            deterministic=True,
            context_window=window,
        )

    return call


def measure_latency(engine: JatEngine, targets: list[Target], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Time calls of one agent, which take turns by blocks, with the window full."""
    remote = {target.name: RemoteCaller(target, arguments.window) for target in targets}
    callers: dict[str, Callable[[int], Any]] = {IN_PROCESS: drop_in_caller(engine, arguments.window), **remote}
    actions = {
        name: [np.float32(caller(step)).tolist() for step in range(_CHECKED)] for name, caller in callers.items()
    }
    steps = _CHECKED
    for caller in callers.values():
        for step in range(steps, steps + arguments.window // 2):
            caller(step)
    steps += arguments.window // 2

    seconds: dict[str, list[float]] = {name: [] for name in callers}
    for number in range(arguments.rounds):
        names = list(callers)[number % len(callers) :] + list(callers)[: number % len(callers)]
        for name in names:
            for step in range(steps, steps + arguments.calls):
                began = time.perf_counter()
                callers[name](step)
                seconds[name].append(time.perf_counter() - began)
        steps += arguments.calls
    for caller in remote.values():
        caller.close()
    return [
        {"target": name, **percentiles(values), "equal": actions[name] == actions[IN_PROCESS]}
        for name, values in seconds.items()
    ]


# ---- throughput ----------------------------------------------------------------------------------------------------


async def many_clients(target: Target, num_clients: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Let clients act as fast as they are answered, with full windows, for some seconds."""
    window, latencies = arguments.window, [0.0][:0]
    ready, go = asyncio.Semaphore(0), asyncio.Event()
    end, batches = [0.0], [0][:0]

    async def act(websocket: Any, request: bytes) -> bytes:
        await websocket.send(request)
        answer = await websocket.recv()
        assert isinstance(answer, bytes), answer
        return answer

    async def play(client: int) -> None:
        first, others = requests(target, client, window)
        async with connect_async(target.url, compression=None, max_size=None, ping_interval=None) as websocket:
            await websocket.recv()
            await act(websocket, first)
            for step in range(window // 2):
                await act(websocket, others[step % _CYCLE])
            ready.release()
            await go.wait()
            step, answer = 0, b""
            while (began := time.perf_counter()) < end[0]:
                answer = await act(websocket, others[step % _CYCLE])
                latencies.append(time.perf_counter() - began)
                step += 1
            if answer:
                batches.append(codec.unpack(answer)["server_timing"].get("batch", 1))

    async def measure() -> float:
        for _ in range(num_clients):
            await ready.acquire()
        began = time.perf_counter()
        end[0] = began + arguments.seconds
        go.set()
        return began

    players = asyncio.gather(*(play(client) for client in range(num_clients)))
    _, began = await asyncio.gather(players, measure())
    seconds = time.perf_counter() - began  # the last answers come after the end
    row = {"target": target.name, "clients": num_clients, "steps_per_second": len(latencies) / seconds}
    return row | {"batch": float(np.mean(batches)), **percentiles(latencies)}


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Return median and 99th percentile in milliseconds, and the number of values."""
    p50, p99 = np.percentile(seconds, [50, 99]) * 1000
    return {"p50_ms": float(p50), "p99_ms": float(p99), "calls": len(seconds)}


# ---- results -------------------------------------------------------------------------------------------------------


def write_markdown(content: dict[str, Any]) -> str:
    """Return the results as tables."""
    load = content["load_average"]
    lines = [
        f"{content['model']} in {content['dtype']}, window {content['window']}, full; {content['cpu']}, "
        f"{content['cores']} cores, which clients and servers share; load average {load[0]:.1f} before, {load[1]:.1f} "
        "after.",
        "",
        "| one agent | median ms | p99 ms | median added | actions equal |",
        "| --- | --- | --- | --- | --- |",
    ]
    alone = content["latency"][0]["p50_ms"]
    for row in content["latency"]:
        added = row["p50_ms"] - alone
        lines.append(
            f"| {row['target']} | {row['p50_ms']:.3f} | {row['p99_ms']:.3f} | {added:+.3f} | "
            f"{'yes' if row['equal'] else 'no'} |"
        )
    lines += [
        "",
        "| clients | server | agent-steps/s | median ms | p99 ms | agents in a step |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in content["throughput"]:
        lines.append(
            f"| {row['clients']} | {row['target']} | {row['steps_per_second']:.0f} | {row['p50_ms']:.2f} | "
            f"{row['p99_ms']:.2f} | {row['batch']:.1f} |"
        )
    lines += ["", *(f"Left out: {name}: {reason}." for name, reason in content["skipped"].items())]
    return "\n".join(lines).rstrip() + "\n"


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--model", default="small")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--num_threads", type=int)
    parser.add_argument("--window", type=int, default=32)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--calls", type=int, default=100, help="of each target in a round")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each throughput")
    parser.add_argument("--openpi", type=Path, help="checkout of openpi")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Measure, and write the results."""
    arguments = parse_arguments(argv)
    skipped, load = {}, os.getloadavg()[0]
    reason = why_not(arguments.openpi)
    with open_checkpoint(arguments.model) as folder, contextlib.ExitStack() as stack:
        targets = [stack.enter_context(our_server(folder, arguments))]
        if reason is None:
            targets.append(stack.enter_context(openpi_server(folder, arguments)))
        else:
            skipped[OPENPI] = reason
        with JatEngine.from_pretrained(
            folder, device="cpu", dtype=arguments.dtype, num_threads=arguments.num_threads
        ) as engine:
            latency = measure_latency(engine, targets, arguments)
        throughput = [
            asyncio.run(many_clients(target, num_clients, arguments))
            for num_clients in arguments.clients
            for target in targets
        ]
    content = {
        "cpu": f"{cpu_name()} ({', '.join(cpu_features())})",
        "cores": available_cores(),
        "load_average": [load, os.getloadavg()[0]],
        "versions": versions(),
        **{name: getattr(arguments, name) for name in ("model", "dtype", "num_threads", "window", "rounds", "seconds")},
        "latency": latency,
        "throughput": throughput,
        "skipped": skipped,
    }
    arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    arguments.out.with_suffix(".md").write_text(write_markdown(content))
    print(write_markdown(content))
    return 0


if __name__ == "__main__":
    sys.exit(main())
