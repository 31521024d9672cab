"""Triton kernels compile for every architecture the engine supports, without spills and within shared memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from helpers import ROOT
from helpers.kernel_names import KERNELS

pytest.importorskip("triton", reason="Triton is not installed")

from benchmarks.resource_limits import violations

RESULTS = ROOT / "benchmarks" / "results" / "kernel_resources.json"


def compile_table(*options: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.kernel_resources", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)


@pytest.mark.parametrize(
    ("architectures", "weights", "sizes"),
    [(("90",), ("bfloat16", "int8"), ("one agent", "64 agents")), (("80", "120"), ("bfloat16",), ("one agent",))],
    ids=["sm_90", "sm_80 and sm_120"],
)
def test_kernels_compile_within_their_limits(
    architectures: tuple[str, ...], weights: tuple[str, ...], sizes: tuple[str, ...]
) -> None:
    result = compile_table("--architectures", *architectures, "--weights", *weights, "--for", *sizes)
    assert result.returncode == 0, result.stderr
    # Few rows are normalised within the products.
    for kernel in KERNELS if "64 agents" in sizes else KERNELS - {"layer_norm"}:
        assert result.stdout.count(f"| {kernel} |") >= len(architectures)


def test_a_spill_or_too_much_shared_memory_is_reported() -> None:
    row = {"kernel": "k", "weights": "bfloat16", "for": "one agent", "arch": 120, "registers": 255, "spill_bytes": 0}
    row["shared_bytes"] = 99 * 1024
    assert violations([row]) == []
    assert len(violations([{**row, "spill_bytes": 4}])) == 1
    row["shared_bytes"] += 1
    assert len(violations([row, {**row, "arch": 90}])) == 1


def test_the_committed_table_is_complete() -> None:
    """It has all architectures, weight dtypes and kernels of the folder, and all are within their limits."""
    table = json.loads(RESULTS.read_text())["kernels"]
    assert violations(table) == []
    step = [row for row in table if row["language"] == "cuda"]
    assert {(row["arch"], row["weights"], row["for"]) for row in step} == {
        (arch, weights, size)
        for arch in (90, 100, 120)
        for weights in ("float32", "bfloat16", "float16")
        for size in ("hidden 768", "any size")
    }
    triton = [row for row in table if row["language"] == "triton"]
    for architecture in (80, 90, 100, 120):
        rows = [row for row in triton if row["arch"] == architecture]
        assert {row["kernel"] for row in rows} == KERNELS
        assert {row["weights"] for row in rows} == {"float32", "bfloat16", "float16", "int8"}
