"""Let clients connect, act and leave 10,000 times, in every way (`make test-long`): the server keeps nothing of them.

Connections, sessions, pages, open files and memory are as before, and so are the files of snapshots of clients that do
not come back. CYCLES sets another number of cycles; with fewer the process has not warmed up, and may grow by more.
"""

from __future__ import annotations

import os
import random
import secrets
from pathlib import Path

import pytest

pytest.importorskip("websockets", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

from helpers.engines import native
from helpers.serving_clients import (
    Churn,
    Witness,
    all_gone,
    drop_with_token,
    expected_actions,
    metrics,
    process_size,
    serving_process,
    wait_until,
)

from jat_engine import JatEngine

pytestmark = pytest.mark.long

NUM_CYCLES = int(os.environ.get("CYCLES", "10000"))

MOST_GROWTH = 200.0
"""Bytes a cycle that the process may grow by when it has warmed up, 0.8 MB in all; a session of the tiny model alone
has more pages than that in 4 cycles."""


@native
def test_clients_come_and_go_ten_thousand_times(tiny_folder: Path, tmp_path: Path) -> None:
    with JatEngine.from_pretrained(tiny_folder, device="cpu", backend="cpu", dtype="float32") as engine:
        expected = expected_actions(engine)
    with serving_process(tiny_folder, "--idle_timeout_s", "3", "--max_sessions", "64") as (process, port):
        url = f"ws://127.0.0.1:{port}"
        before, (_, files) = metrics(port), process_size(process.pid)
        churn, points = Churn(url, tmp_path, random.Random(0)), []
        for _ in range(10):
            witness = Witness(url, expected)
            churn.run(NUM_CYCLES // 10, witness.step)
            witness.close()
            wait_until(lambda: all_gone(port, before))
            wait_until(lambda: process_size(process.pid)[1] <= files)
            points.append((sum(churn.counts.values()), process_size(process.pid)[0]))
            print(f"{points[-1][0]} cycles: {points[-1][1] / 1e6:.2f} MB", flush=True)
        churn.close()
        assert process.poll() is None

    (first, size), (last, end_size) = points[5], points[-1]  # before, the allocator settles, and counters fill up
    growth = (end_size - size) / (last - first)
    print(f"{churn.counts}: {growth:.0f} bytes more a cycle")
    assert growth < MOST_GROWTH


@native
def test_pings_find_clients_that_have_vanished(tiny_folder: Path, tmp_path: Path) -> None:
    with serving_process(tiny_folder, "--max_sessions", "64") as (process, port):
        before, (_, files) = metrics(port), process_size(process.pid)
        churn = Churn(f"ws://127.0.0.1:{port}", tmp_path, random.Random(0))
        try:
            vanished = sum(churn.stop_process() for _ in range(7))
            assert metrics(port)["jat_sessions"] == vanished
            wait_until(lambda: all_gone(port, before))  # idle ones have 300 s; two intervals of pings are 40 s
            wait_until(lambda: process_size(process.pid)[1] <= files)
        finally:
            churn.close()


@native
def test_state_of_clients_that_do_not_come_back_goes(tiny_folder: Path, tmp_path: Path) -> None:
    state, record = tmp_path / "state", tmp_path / "record"
    flags = ["--max_sessions", "64", "--resume_grace_s", "1", "--record", str(record), "--record_max_gb", "0.004"]
    flags += ["--state_dir", str(state), "--snapshot_every", "2", "--snapshot_max_age_s", "5"]
    with serving_process(tiny_folder, *flags) as (process, port):
        before, (_, files) = metrics(port), process_size(process.pid)
        numbers, points, most_files = random.Random(0), [], 0
        for _ in range(10):
            for _ in range(NUM_CYCLES // 50):
                drop_with_token(f"ws://127.0.0.1:{port}", secrets.token_urlsafe(32), numbers)
            most_files = max(most_files, len(list(state.iterdir())))
            wait_until(lambda: all_gone(port, before))
            points.append(process_size(process.pid)[0])
            num_bytes = sum(path.stat().st_size for path in record.iterdir())
            print(f"{points[-1] / 1e6:.2f} MB, {num_bytes / 1e6:.2f} MB of records", flush=True)
            assert num_bytes < 4.1e6
        assert most_files > 1
        wait_until(lambda: not list(state.iterdir()))  # the server looks for old ones once a minute
        wait_until(lambda: process_size(process.pid)[1] <= files)
        assert metrics(port)["jat_snapshot_seconds_count"] >= NUM_CYCLES // 5

    growth = (points[-1] - points[5]) / (NUM_CYCLES // 50 * 4)
    print(f"at most {most_files} snapshots; {growth:.0f} bytes more a cycle")
    assert growth < MOST_GROWTH
