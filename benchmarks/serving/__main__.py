"""Time a policy server, and write its latency and throughput as JSON and as tables.

`python -m benchmarks.serving --model small --dtype bfloat16 --openpi PATH --out FILE.json` writes that file and
`FILE.md`. All targets run at the same time, each with an engine of its own in a process of its own, and take turns.
Clients are in this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys

from jat_engine import JatEngine
from jat_engine.bench.workload import open_checkpoint
from jat_engine.config import read_config
from jat_engine.installation import cpu_features, cpu_name, versions
from jat_engine.machine import available_cores

from .arguments import parse_arguments
from .latency import measure_latency
from .openpi_server import why_not
from .report import write_markdown
from .targets import OPENPI, SERVER, WITH_SNAPSHOTS, max_cached_tokens, openpi_server, our_server, sweeping_echo
from .throughput import measure_throughput

_SHOWN = ("model", "dtype", "num_threads", "window", "rounds", "calls", "throughput_rounds", "seconds")


def main(argv: list[str] | None = None) -> int:
    """Measure, and write the results."""
    arguments = parse_arguments(argv)
    skipped, load = {}, os.getloadavg()[0]
    reason = why_not(arguments.openpi)
    with open_checkpoint(arguments.model) as folder, contextlib.ExitStack() as stack:
        server = stack.enter_context(our_server(SERVER, folder, arguments))
        servers = [server]
        if reason is None:
            servers.append(stack.enter_context(openpi_server(folder, arguments)))
        else:
            skipped[OPENPI] = reason
        options = {"dtype": arguments.dtype, "num_threads": arguments.num_threads}
        own_tokens = read_config(folder, {}, {}).max_context_tokens  # the drop-in session keeps as many
        options["max_cached_tokens"] = max_cached_tokens(arguments) + own_tokens
        engine = stack.enter_context(JatEngine.from_pretrained(folder, device="cpu", **options))
        bytes_read = engine.weight_bytes
        with contextlib.ExitStack() as for_latency:
            with_snapshots = for_latency.enter_context(our_server(WITH_SNAPSHOTS, folder, arguments))
            echo = for_latency.enter_context(sweeping_echo(bytes_read))
            latency = measure_latency(engine, servers, [server, with_snapshots], echo, arguments)
        throughput = [
            row
            for num_clients in arguments.clients
            for row in asyncio.run(measure_throughput(engine, servers, num_clients, arguments))
        ]
    content = {
        "cpu": f"{cpu_name()} ({', '.join(cpu_features())})",
        "cores": available_cores(),
        "load_average": [load, os.getloadavg()[0]],
        "versions": versions(),
        "bytes_read": bytes_read,
        **{name: getattr(arguments, name) for name in _SHOWN},
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
