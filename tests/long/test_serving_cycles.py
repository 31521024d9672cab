"""Let clients connect, act and leave 10,000 times, in every way: `make test-long`. Pages and memory are as before.

CYCLES sets another number.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

pytest.importorskip("websockets", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

from helpers.engines import native
from helpers.serving_clients import (
    Churn,
    Witness,
    all_gone,
    expected_actions,
    metrics,
    process_size,
    serving_process,
    wait_until,
)

from jat_engine import JatEngine

pytestmark = pytest.mark.long

NUM_CYCLES = int(os.environ.get("CYCLES", "10000"))

MOST_GROWTH = 400.0
"""Bytes a cycle that the process may grow by, 4 MB in all; a session of the tiny model alone has more pages than that
in 20 cycles."""


@native
def test_clients_come_and_go_ten_thousand_times(tiny_folder: Path, tmp_path: Path) -> None:
    with JatEngine.from_pretrained(tiny_folder, device="cpu", backend="cpu", dtype="float32") as engine:
        expected = expected_actions(engine)
    with serving_process(tiny_folder, "--idle_timeout_s", "3", "--max_sessions", "64") as (process, port):
        url = f"ws://127.0.0.1:{port}"
        before, (_, files) = metrics(port), process_size(process.pid)
        churn, sizes = Churn(url, tmp_path, random.Random(0)), []
        for part in (NUM_CYCLES // 5, NUM_CYCLES - NUM_CYCLES // 5):  # the first warms up
            witness = Witness(url, expected)
            churn.run(part, witness.step)
            witness.close()
            wait_until(lambda: all_gone(port, before))
            wait_until(lambda: process_size(process.pid)[1] <= files)
            sizes.append(process_size(process.pid)[0])
        churn.close()
        assert process.poll() is None

    growth = (sizes[1] - sizes[0]) / (NUM_CYCLES - NUM_CYCLES // 5)
    print(f"{churn.counts}: {sizes[0] / 1e6:.1f} MB, {growth:.0f} bytes more a cycle")
    assert growth < MOST_GROWTH
