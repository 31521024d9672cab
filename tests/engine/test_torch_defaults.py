"""Engines in a process that has changed torch's default dtype and device, within `torch.autocast`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.engines import NATIVE

TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("backend", ["torch", "cpu", "cuda"])
def test_an_engine_does_not_depend_on_torch_defaults(backend: str, tiny_folder: Path) -> None:
    """With float64 and "meta", which show where a tensor is made without dtype and device, and in mixed precision."""
    if backend == "cpu" and NATIVE is None:
        pytest.skip("no native module")
    if backend == "cuda":
        pytest.importorskip("triton", reason="the CUDA backend's kernels are Triton's")

    program = [sys.executable, "-m", "helpers.torch_defaults", str(tiny_folder), backend]
    done = subprocess.run(program, cwd=TESTS, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
