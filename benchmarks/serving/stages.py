"""Time the stages of a request's way through the policy server and back, for one agent.

`python -m benchmarks.serving.stages --model small --dtype bfloat16 --out FILE.json` writes that file and `FILE.md`. The
client is openpi's kind, in this process; the server is in one of its own, and both use the same clock.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from websockets.sync.client import connect

from jat_engine.bench.workload import open_checkpoint
from jat_engine.installation import cpu_name, versions
from jat_engine.machine import available_cores
from jat_engine.serving import codec

from .requests import fields_of
from .targets import SERVER, Target, running
from .traced_server import Times

STAGES = (
    "the client packs the request",
    "the client begins to send: the server has the message",
    "it is parsed and checked",
    "it waits in the queue, until the engine's thread has it",
    "to the queue, and from the step's end back to the connection's task",
    "the reply is packed",
    "the server begins to send: the client has the message",
    "the client unpacks the reply",
)
"""Stages in their order, without the step."""


def main(argv: list[str] | None = None) -> int:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.stages", description="Time a request's stages.")
    parser.add_argument("--model", default="small")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--window", type=int, default=32)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--out", type=Path, required=True, help="JSON file; the table goes into one of the same name")
    arguments = parser.parse_args(argv)
    load = os.getloadavg()[0]
    with open_checkpoint(arguments.model) as folder:
        client, server = _measure(folder, arguments)
    seconds = _stages(client, server)
    steps = [times.step_s for times in server]
    content = {
        "cpu": cpu_name(),
        "cores": available_cores(),
        "load_average": [load, os.getloadavg()[0]],
        "versions": versions(),
        **{name: getattr(arguments, name) for name in ("model", "dtype", "window", "calls")},
        "step_us": _percentiles(np.array(steps)),
        "stages_us": {name: _percentiles(column) for name, column in zip(STAGES, seconds.T, strict=True)},
        "sum_us": _percentiles(seconds.sum(axis=1)),
    }
    arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    arguments.out.with_suffix(".md").write_text(write_markdown(content))
    print(write_markdown(content))
    return 0


def write_markdown(content: dict[str, Any]) -> str:
    """Return the results as a table."""
    load = content["load_average"]
    lines = [
        "# Stages of a request through the policy server",
        "",
        f"{content['model']} in {content['dtype']}, window {content['window']}, full; one agent, {content['calls']} "
        f"calls back to back; {content['cpu']}, {content['cores']} cores, which client and server share; load average "
        f"{load[0]:.1f} before, {load[1]:.1f} after.",
        "",
        "| | median us | p99 us |",
        "| --- | --- | --- |",
    ]
    rows = {**content["stages_us"], "all of these": content["sum_us"], "the step": content["step_us"]}
    lines += [f"| {name} | {median:.0f} | {p99:.0f} |" for name, (median, p99) in rows.items()]
    return "\n".join(lines) + "\n"


def _measure(folder: Path, arguments: argparse.Namespace) -> tuple[list[tuple[float, ...]], list[Times]]:
    """Return, for each call after the window is full, the moments at the client and the times at the server."""
    flags = ["--model_name_or_path", str(folder), "--use_cpu", "--port", "0", "--dtype", arguments.dtype]
    with running("benchmarks.serving.traced_server", *flags, "--max_sessions", "2") as process:
        assert process.stdout is not None
        target = Target(SERVER, process.stdout.readline().strip())
        moments = []
        with connect(target.url, compression=None, max_size=None) as websocket:
            websocket.recv()
            for step in range(arguments.window + arguments.calls):
                began = time.perf_counter()
                request = codec.pack(fields_of(target, -1, step, arguments.window))
                packed = time.perf_counter()
                websocket.send(request)
                answer = websocket.recv()
                received = time.perf_counter()
                assert isinstance(answer, bytes), answer
                codec.unpack(answer)
                moments.append((began, packed, received, time.perf_counter()))
            websocket.send(codec.pack({"endpoint": "close"}))
            server = [Times(*times) for times in json.loads(process.stdout.readline())]
    assert len(server) == len(moments)
    return moments[arguments.window :], server[arguments.window :]


def _stages(client: list[tuple[float, ...]], server: list[Times]) -> np.ndarray:
    """Return the seconds of the stages, [calls, stages]."""
    began, packed, received, ended = np.array(client).T
    at = Times(*np.array(server).T)  # type: ignore[arg-type]  # arrays in place of numbers
    stages = [packed - began, at.received - packed, at.parsed - at.received, at.queue_s]
    stages += [at.replied - at.parsed - at.queue_s - at.step_s, at.packed - at.replied]
    stages += [received - at.packed, ended - received]
    return np.array(stages).T


def _percentiles(seconds: np.ndarray) -> tuple[float, float]:
    """Return the median and the 99th percentile in microseconds."""
    median, p99 = np.percentile(seconds, [50, 99]) * 1e6
    return float(median), float(p99)


if __name__ == "__main__":
    sys.exit(main())
