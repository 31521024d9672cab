"""Clients that leave in every way, killed ones among them, cost a policy server neither pages nor connections."""

from __future__ import annotations

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


@native
def test_clients_come_and_go(tiny_folder: Path, tmp_path: Path) -> None:
    with JatEngine.from_pretrained(tiny_folder, device="cpu", backend="cpu", dtype="float32") as engine:
        expected = expected_actions(engine)
    with serving_process(tiny_folder, "--idle_timeout_s", "2", "--max_sessions", "40") as (process, port):
        url = f"ws://127.0.0.1:{port}"
        before, (_, files) = metrics(port), process_size(process.pid)
        witness, churn = Witness(url, expected), Churn(url, tmp_path, random.Random(0))
        churn.run(50, witness.step)
        witness.close()
        wait_until(lambda: all_gone(port, before))
        wait_until(lambda: process_size(process.pid)[1] <= files)
        churn.close()
        assert process.poll() is None
