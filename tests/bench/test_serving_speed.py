"""The benchmark of the policy server runs, and says what it left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("websockets", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

from helpers.engines import native

from benchmarks.serving.__main__ import main
from benchmarks.serving.latency import ECHO, IN_PROCESS
from benchmarks.serving.openpi_server import why_not
from benchmarks.serving.targets import OPENPI, SERVER, WITH_SNAPSHOTS


@native
def test_a_small_run(tmp_path: Path) -> None:
    out = tmp_path / "serving.json"
    flags = ["--model", "jat-mini", "--dtype", "float32", "--clients", "1", "3", "--rounds", "2", "--calls", "5"]
    flags += ["--throughput_rounds", "1", "--window", "8", "--seconds", "0.2", "--out", str(out)]
    assert main(flags) == 0
    content = json.loads(out.read_text())
    assert {row["target"]: row["equal"] for row in content["latency"]} == {
        IN_PROCESS: True,
        f"{SERVER}, RemoteAgent": True,
        f"{WITH_SNAPSHOTS}, RemoteAgent": True,
        f"{SERVER}, openpi's kind of client": True,
        ECHO: None,
    }
    assert [row["clients"] for row in content["throughput"]] == [1, 1, 3, 3]
    assert all(rate > 0 for row in content["throughput"] for rate in row["rates"])
    assert content["skipped"] == {OPENPI: "no checkout of openpi was given (--openpi PATH)"}
    assert "Left out: openpi's server" in out.with_suffix(".md").read_text()


def test_a_folder_without_openpi_is_named(tmp_path: Path) -> None:
    assert "has no src/openpi/serving/websocket_policy_server.py and no " in str(why_not(tmp_path))
