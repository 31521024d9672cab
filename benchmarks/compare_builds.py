"""Compare two builds of the native module: is a change to csrc/cpu worth keeping?

    cmake -S . -B /tmp/before -Dpybind11_DIR=$(python -m pybind11 --cmakedir) && cmake --build /tmp/before
    ... change something, build to /tmp/after ...
    python benchmarks/compare_builds.py /tmp/before/_cpu*.so /tmp/after/_cpu*.so --dtype int8

Times `Model.decode` alone, at the published size with random weights, in processes that take turns.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from jat_engine.dtypes import CPU_DTYPES

HIDDEN, LAYERS, HEADS, POSITIONS, WINDOW = 768, 12, 12, 512, 256


def load(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("_cpu", path)
    assert spec is not None, f"no module at {path}"
    assert spec.loader is not None, f"no module at {path}"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_model(cpu: Any, dtype: str, num_threads: int, instruction_set: str) -> Any:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4 * HIDDEN, 4 * HIDDEN), np.float32) * np.float32(0.02)
    positions = rng.standard_normal((POSITIONS, HIDDEN), np.float32)
    kv_dtype = "float32" if dtype == "float32" else "bfloat16"
    model = cpu.Model(HIDDEN, HEADS, kv_dtype, positions, num_threads, 200, instruction_set)
    ones, zeros = np.ones(HIDDEN, np.float32), np.zeros(HIDDEN, np.float32)
    for layer in range(LAYERS):
        linears = []
        for rows, columns in ((3, 1), (1, 1), (4, 1), (1, 4)):
            linear = cpu.Linear(dtype, rows * HIDDEN, columns * HIDDEN, True)
            linear.pack_rows(0, np.ascontiguousarray(weight[: rows * HIDDEN, : columns * HIDDEN]))
            linears.append(linear)
        window = WINDOW if layer % 2 else POSITIONS
        model.add_layer(ones, zeros, linears[0], linears[1], ones, zeros, linears[2], linears[3], window)
    model.set_final_norm(ones, zeros)
    return model


def measure(arguments: argparse.Namespace) -> None:
    """Print the median time of a step in milliseconds; in a process of its own."""
    cpu = load(arguments.builds[0])
    model = build_model(cpu, arguments.dtype, arguments.num_threads, arguments.instruction_set)
    sessions, pages = arguments.sessions, -(-(arguments.cached + 19) // cpu.PAGE_SIZE)
    pool = np.zeros(sessions * pages * model.page_bytes, np.uint8)
    tables = list(np.arange(sessions * pages, dtype=np.int32).reshape(sessions, pages))
    embeddings = list(np.random.default_rng(1).standard_normal((sessions * arguments.new_tokens, HIDDEN), np.float32))
    head = cpu.Linear("float32", 18, HIDDEN, False)
    plan = ([arguments.new_tokens] * sessions, [arguments.cached] * sessions, [0] * sessions, tables)
    seconds = []
    for _ in range(arguments.steps):
        begin = time.perf_counter()
        model.decode(embeddings, *plan, pool, [head] * sessions)
        seconds.append(time.perf_counter() - begin)
    print(np.median(seconds[len(seconds) // 10 :]) * 1e3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("builds", nargs="+", help="compiled modules")
    parser.add_argument("--dtype", default="bfloat16", choices=CPU_DTYPES)
    parser.add_argument("--sessions", type=int, default=1)
    parser.add_argument("--new_tokens", type=int, default=3, help="of each session, 1 to 4")
    parser.add_argument("--cached", type=int, default=253, help="tokens of each session in the cache")
    parser.add_argument("--num_threads", type=int, default=2)
    parser.add_argument("--instruction_set", default="auto")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        measure(arguments)
        return

    medians: dict[str, list[float]] = {build: [] for build in arguments.builds}
    options = [text for text in sys.argv[1:] if text not in arguments.builds]
    for _ in range(arguments.rounds):
        for build in arguments.builds:
            command = [sys.executable, str(Path(__file__)), build, *options, "--child"]
            medians[build].append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))

    for build, values in medians.items():
        print(f"{build}: {np.median(values):.3f} ms, {min(values):.3f} to {max(values):.3f} in {len(values)} processes")


if __name__ == "__main__":
    main()
