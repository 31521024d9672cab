"""Counts of the CUDA backend that need no GPU: bytes that a step moves, and Python's overhead."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from helpers import ROOT

pytest.importorskip("triton", reason="Triton is not installed")


def output(module: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-m", module]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_committed_count_of_bytes_is_that_of_the_code() -> None:
    """Documents state it, too. A step moves at most 2 % more device memory than the minimum."""
    counted = output("benchmarks.step_traffic")
    assert counted.strip() == (ROOT / "benchmarks/results/step_traffic.md").read_text().strip()
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", counted, re.MULTILINE)
    assert len(rows) == 4
    page = (ROOT / "docs/gpu.md").read_text()
    for agents, context, launches, floor, moved, ratio in rows:
        assert 1 <= float(ratio) <= 1.02
        assert f"{launches} " in page
        if agents == "1":
            assert f"| one agent, {context} tokens, graphs | {floor} MB | {moved} MB |" in page


def test_what_python_costs_can_be_measured() -> None:
    calls = re.findall(r"^\| (one agent|AgentBatch|sessions) \|.*", output("benchmarks.cuda_host_cost"), re.MULTILINE)
    assert calls == ["one agent"] * 4 + ["AgentBatch"] * 2 + ["sessions"]
