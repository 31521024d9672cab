"""Take 100,000 steps of sessions of all kinds that come and go, in 4 bits: `make test-long`. Memory stays flat."""

from __future__ import annotations

from pathlib import Path

import pytest

from jat_engine.bench.results import Results
from jat_engine.cli import main

pytestmark = pytest.mark.long

MOST_GROWTH = 20.0
"""Bytes an agent-step that the process may grow by, 2 MB in all; the times that the suite keeps are 5 of them."""


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_memory_stays_flat(dtype: str, tmp_path: Path) -> None:
    pytest.importorskip("jat_engine._cpu", reason="the native module is not built")
    path = tmp_path / "soak.json"
    options = ["--models", "jat-mini", "--dtypes", dtype, "--agent_steps", "100000", "--use_cpu"]
    assert main(["bench", "soak", *options, "--output-json", str(path)]) == 0, "pages were lost"
    (row,) = Results.read(path).rows
    print(f"{row.name}: {row.facts}")
    assert row.facts["bytes more per agent-step"] < MOST_GROWTH
