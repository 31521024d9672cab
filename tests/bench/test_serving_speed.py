"""The benchmark of the policy server runs, and says what it left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("websockets", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

from helpers.engines import native

from benchmarks import serving


@native
def test_a_small_run(tmp_path: Path) -> None:
    out = tmp_path / "serving.json"
    flags = ["--model", "jat-mini", "--dtype", "float32", "--clients", "1", "3", "--rounds", "2", "--calls", "5"]
    assert serving.main([*flags, "--window", "8", "--seconds", "0.2", "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    assert [(row["target"], row["equal"]) for row in content["latency"]] == [
        (serving.IN_PROCESS, True),
        (serving.SERVER, True),
    ]
    assert [row["clients"] for row in content["throughput"]] == [1, 3]
    assert all(row["steps_per_second"] > 0 for row in content["throughput"])
    assert content["skipped"] == {serving.OPENPI: "no checkout of openpi was given (--openpi PATH)"}
    assert "Left out: openpi's server" in out.with_suffix(".md").read_text()


def test_a_folder_without_openpi_is_named(tmp_path: Path) -> None:
    assert "has no src/openpi/serving/websocket_policy_server.py and no " in str(serving.why_not(tmp_path))
