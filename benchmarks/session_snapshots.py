"""Measure snapshots of served sessions: bytes, times, and how long a client waits when its server is killed.

python benchmarks/session_snapshots.py [--model_name_or_path jat-mini] [--steps 300] [--output FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jat_engine import JatEngine
from jat_engine.atomic_io import write_bytes, write_json
from jat_engine.client import RemoteAgent
from jat_engine.testing.spaces import Discrete

_REPEATS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_name_or_path", default="jat-mini")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    measured = measure(JatEngine.from_pretrained(arguments.model_name_or_path, dtype=arguments.dtype), arguments.steps)
    recovered = measure_recovery(arguments.model_name_or_path, arguments.dtype, arguments.steps)
    found = {"model": arguments.model_name_or_path, **measured, **recovered}
    print(json.dumps(found, indent=1))
    if arguments.output is not None:
        write_json(arguments.output, found, indent=1)


def measure(engine: JatEngine, steps: int) -> dict[str, Any]:
    """Return medians of milliseconds, and bytes, for a session that has taken so many steps with pictures."""
    numbers = np.random.default_rng(0)
    images = numbers.integers(0, 256, (8, 84, 84, 4), np.uint8)
    with engine.open_session(seed=0) as session, tempfile.TemporaryDirectory() as folder:
        for t in range(steps):
            session.get_next_action(image_observation=images[t % 8], action_space=Discrete(18))
        captured, blob, path = session.capture(), session.snapshot(), Path(folder) / "snapshot"

        def restore() -> None:
            engine.restore(blob).close()

        def step() -> None:
            session.get_next_action(image_observation=images[0], action_space=Discrete(18))

        choice = engine.choice
        return {
            "backend": str(choice.backend),
            "dtype": str(choice.dtype),
            "device": str(choice.device),
            "cached_tokens": session.num_cached_tokens,
            "bytes": len(blob),
            "step_ms": median_ms(step),
            "copy_ms (between steps)": median_ms(session.capture),
            "encode_ms (another thread)": median_ms(captured.to_bytes),
            "write_ms (another thread)": median_ms(lambda: write_bytes(path, blob)),
            "restore_ms": median_ms(restore),
        }


def measure_recovery(model: str, dtype: str, steps: int) -> dict[str, Any]:
    """Return the times of a client's steps, and of the step in which one of two servers is killed.

    The other server runs already: the time has no start of a process in it.
    """
    image = np.random.default_rng(0).integers(0, 256, (84, 84, 4), np.uint8)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        servers = []
        flags = ["--model_name_or_path", model, "--dtype", dtype, "--port", "0", "--state_dir", folder]
        command = [sys.executable, "-m", "jat_engine.cli", "serve", *flags, "--max_sessions", "4"]
        for _ in range(2):
            server = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            stack.callback(server.kill)
            assert server.stdout is not None
            servers.append((server, server.stdout.readline().split()[-1]))

        def step(agent: RemoteAgent) -> Any:
            return agent.get_next_action(image_observation=image, action_space=Discrete(18), deterministic=True)

        with RemoteAgent([url for _, url in servers]) as agent:
            for _ in range(steps):
                step(agent)
            found["served_step_ms"] = median_ms(lambda: step(agent), 200)
            servers[0][0].kill()
            step(agent)
            (recovery,) = agent.recoveries
            found["recovery_ms"] = round(1000 * recovery.seconds, 3)
            found["recovery_status"], found["recovery_steps"] = recovery.status, recovery.replayed
    return found


def median_ms(function: Callable[[], Any], repeats: int = _REPEATS) -> float:
    """Return the median time of a call in milliseconds."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return round(1000 * statistics.median(times), 3)


if __name__ == "__main__":
    main()
