"""A varied part of the kernels' tests, and faults planted in them, executed from the PTX of the Triton installed.

`make test-gpu-code` runs all of it, for two releases of Triton and two architectures.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, environment
from helpers.kernel_cases import HAS_GPU
from helpers.kernel_names import KERNELS

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.skipif(
    HAS_GPU or os.environ.get("TRITON_INTERPRET") != "1", reason="kernels are compiled here"
)


def test_kernels_from_ptx(tmp_path: Path) -> None:
    report = tmp_path / "executed.json"
    files = [str(file) for file in sorted((ROOT / "tests" / "kernels").glob("test_kernels*.py"))]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "helpers.ptx.plugin"]
    command += ["--ptx-arch", "90", "--ptx-sample", "1", "--ptx-json", str(report), *files, str(ROOT / "tests" / "ptx")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment(), check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-6000:]

    executed = json.loads(report.read_text())["executed"]
    assert {row["kernel"] for row in executed} == KERNELS
    assert {row["products"] for row in executed} == {"fma", "mma.sync", "wgmma"}
    assert {"bfloat16", "int8"} <= {dtype for row in executed for dtype in row["dtypes"].split()}
