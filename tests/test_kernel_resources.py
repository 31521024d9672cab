"""Every Triton kernel compiles for every architecture the engine serves, without spills and within shared memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "kernel_resources.json"


def compile_table(*options: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.kernel_resources", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)


@pytest.mark.parametrize(
    ("architecture", "weights", "rows"),
    [
        ("90", "bfloat16", ("one agent", "64 agents", "512 agents")),
        ("80", "int8", ("one agent",)),
        ("120", "bfloat16", ("one agent",)),
    ],
)
def test_kernels_compile_within_their_limits(architecture: str, weights: str, rows: tuple[str, ...]) -> None:
    result = compile_table("--architectures", architecture, "--weights", weights, "--for", *rows)
    assert result.returncode == 0, result.stderr
    for kernel in (
        "embed",
        "norm_qkv",
        "paged_attention",
        "combine_out_proj",
        "norm_linear",
        "linear_residual",
        "head",
    ):
        assert f"| {kernel} |" in result.stdout


def test_a_spill_or_too_much_shared_memory_is_reported() -> None:
    code = """
from benchmarks.kernel_resources import violations
row = {"kernel": "k", "weights": "bfloat16", "for": "one agent", "arch": 120, "registers": 255, "spill_bytes": 0}
row["shared_bytes"] = 99 * 1024
assert violations([row]) == []
assert len(violations([{**row, "spill_bytes": 4}])) == 1
row["shared_bytes"] += 1
assert len(violations([row, {**row, "arch": 90}])) == 1
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=ROOT, env=environment)


def test_the_committed_table_is_complete() -> None:
    """All architectures, all weight dtypes, and every kernel of the folder."""
    table = json.loads(RESULTS.read_text())["kernels"]
    triton = [row for row in table if row["language"] == "triton"]
    kernels = {
        line.split("def _")[1].split("_kernel(")[0]
        for file in (ROOT / "kernels").glob("*.py")
        for line in file.read_text().splitlines()
        if line.startswith("def _") and "_kernel(" in line
    }
    for architecture in (80, 90, 100, 120):
        rows = [row for row in triton if row["arch"] == architecture]
        assert {row["kernel"] for row in rows} == kernels
        assert {row["weights"] for row in rows} == {"float32", "bfloat16", "float16", "int8"}
