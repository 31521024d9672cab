"""Command line of the server's benchmark."""

from __future__ import annotations

import argparse
from pathlib import Path


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description="Time a policy server.")
    parser.add_argument("--model", default="small")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--num_threads", type=int)
    parser.add_argument("--window", type=int, default=32)
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 4, 16, 64, 256])
    parser.add_argument("--rounds", type=int, default=10, help="of latencies")
    parser.add_argument("--calls", type=int, default=100, help="of each target in a round of latencies")
    parser.add_argument("--throughput_rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each target in a round of throughputs")
    parser.add_argument("--openpi", type=Path, help="checkout of openpi, github.com/Physical-Intelligence/openpi")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; the tables go into one of the same name")
    return parser.parse_args(argv)
