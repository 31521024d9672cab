"""The suites of the limits: two versions in processes of their own, bytes as packed, shares and ratios by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ROOT

from jat_engine import JatConfig
from jat_engine.bench import costs
from jat_engine.bench.bandwidth import Bandwidth
from jat_engine.bench.pacing import Block
from jat_engine.bench.peers import DTYPES, REFERENCE, Unavailable
from jat_engine.bench.peers.engine_process import BEFORE, EngineProcess
from jat_engine.bench.results import Results, make_row, percentile
from jat_engine.bench.runner import Context, Options
from jat_engine.bench.suites import batches, call
from jat_engine.cli import main

_cpu = pytest.importorskip("jat_engine._cpu", reason="the native module is not built")

MS = 1e-3


@pytest.fixture(scope="module")
def results(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """A short run by the command line, with this checkout as the other version, too."""
    path = tmp_path_factory.mktemp("limits") / "results.json"
    options = ["--models", str(tiny_folder), "--no_peers", "--num-iters", "2", "--dtypes", "int8", "int4", "--use_cpu"]
    options += ["--windows", "24", "--batch-size", "3", "--before", str(ROOT), "--output-json", str(path)]
    assert main(["bench", "limits", *options]) == 0
    assert str(ROOT) not in path.read_text().replace(str(tiny_folder), ""), "no paths of this machine"
    return Results.read(path)


def test_one_call_of_both_versions_at_both_paces(results: Results) -> None:
    rows = results.of_suite("call")
    names = [REFERENCE, "JatEngine int8", "JatEngine int4", f"{BEFORE} int8", f"{BEFORE} int4"]
    assert [(row.case["pace"], row.name) for row in rows] == [
        (pace, name) for pace in ("back to back", "sleep") for name in names
    ]
    for row in rows:
        assert row.agrees
        assert row.num_calls >= 2
        assert ("over before" in row.intervals) == (row.agent == "JatEngine")
        assert ("over int8" in row.intervals) == (row.name == "JatEngine int4")
        p99 = row.intervals["p99 ms [95 %]"]
        assert p99.low <= p99.value <= p99.high
    by_name = {row.name: row for row in rows}
    assert by_name["JatEngine int4"].error == by_name[f"{BEFORE} int4"].error
    assert 0.01 < by_name["JatEngine int4"].error < 0.9
    assert by_name["JatEngine int8"].error < by_name["JatEngine int4"].error / 3


def test_batches_of_both_versions(results: Results) -> None:
    rows = results.of_suite("batches")
    assert [row.name for row in rows] == ["JatEngine int8", "JatEngine int4", f"{BEFORE} int8", f"{BEFORE} int4"]
    for row in rows:
        assert row.agrees
        assert row.case["agents"] == 3
        assert row.facts["agent-steps/s"] == pytest.approx(3 / row.p50)
        assert ("times faster than before" in row.intervals) == (row.agent == "JatEngine")
        assert ("share of peak" in row.intervals) == hasattr(_cpu, "dot_peak")


def test_own_cost_greedy_and_sampled(results: Results, tiny_folder: Path) -> None:
    rows = results.of_suite("host")
    kinds = [("continuous", "greedy"), *((kind, how) for kind in ("babyai", "atari") for how in ("greedy", "sampled"))]
    expected = [(model, *kind) for model in (str(tiny_folder), "jat-mini") for kind in kinds]
    found = [tuple(row.case[name] for name in ("model", "observation", "actions")) for row in rows]
    assert found[::2] == found[1::2] == expected
    for row in rows:
        assert 0 < row.p50 * 1e6 < row.facts["whole call us"]


def test_a_folder_of_another_package_is_refused(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "jat_engine").mkdir()
    (tmp_path / "jat_engine/__init__.py").write_text("raise ImportError('nothing here')\n")
    with pytest.raises(Unavailable, match=r"engine of .*: ImportError: nothing here"):
        EngineProcess(tiny_folder, "int8", tmp_path)
    with pytest.raises(Unavailable, match="got another one"):
        EngineProcess(tiny_folder, "int8", tmp_path / "empty")
    assert main(["bench", "limits", "--before", str(tmp_path / "empty")]) == 2
    assert "--before: expected a folder with the package" in capsys.readouterr().err


def test_a_process_that_fails_names_its_error(tiny_folder: Path) -> None:
    engine = EngineProcess(tiny_folder, "int8")
    with pytest.raises(RuntimeError, match="context_window"):
        engine.ask("follow", window=-2, actions=[])
    engine.close()


def test_ratios_and_shares_of_calls() -> None:
    """Int4 at 1 ms, int8 at 2, the int4 of before at 4; memory gives 100 GB/s in one round, and then 50."""
    times = {REFERENCE: 40, "JatEngine int8": 2, "JatEngine int4": 1, f"{BEFORE} int4": 4}
    measured = {
        name: call.Measured([Block([ms * MS] * 3), Block([ms * MS] * 3)], [100e9, 50e9]) for name, ms in times.items()
    }
    config = JatConfig()
    options = Options(2, 1, (1,), ("x",), DTYPES, ("continuous",), (256,), (), None, "cpu")
    context = Context(options, Results({}, {}), Bandwidth("cpu"), lambda _: None, lambda: None)
    case = {"model": "x", "window": 256, "pace": "back to back", "hz": "none"}
    rows = {row.name: row for row in call.make_rows(context, config, case, measured, dict.fromkeys(times, 0.01))}
    int4 = rows["JatEngine int4"]
    assert int4.intervals["over int8"].value == pytest.approx(0.5)
    assert int4.intervals["over before"].value == pytest.approx(0.25)
    assert int4.faster is not None
    assert int4.faster.value == pytest.approx(40)
    num_bytes = costs.step_bytes(config, "continuous", "int4", 256)
    share = int4.intervals["share of bandwidth"]
    assert (share.low, share.high) == (pytest.approx(num_bytes / 100e9 / MS), pytest.approx(num_bytes / 50e9 / MS))


def test_shares_of_batches() -> None:
    """Short windows take 10 ms and full ones 15: attention is 5 ms."""
    config, case = JatConfig(), {"model": "x", "agents": 64, "window": 256}
    seconds = [[[10 * MS]] * 3, [[15 * MS]] * 3]
    row = make_row("batches", case, "JatEngine int8", seconds[-1])
    batches.add_shares(config, row, seconds, [16, 256], [40e9] * 3, [1e12] * 3)
    products = costs.step_operations(config, 16, 64) / 2
    assert row.intervals["share of peak, window 16"].value == pytest.approx(products / 1e12 / (10 * MS))
    num_bytes = 64 * (costs.cache_bytes(config, 256, "int8") - costs.cache_bytes(config, 16, "int8"))
    assert row.intervals["attention's share of bandwidth"].value == pytest.approx(num_bytes / 40e9 / (5 * MS))


def test_percentile_lies_in_its_interval() -> None:
    rng = np.random.default_rng(0)
    found = percentile([rng.exponential(size=40) for _ in range(10)], 99)
    assert found.low < found.value < found.high
    assert percentile([[1.0, 1.0]] * 4, 50) == percentile([[1.0]] * 9, 99)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bytes_are_those_that_are_packed(dtype: str) -> None:
    """Of the blocks' matrices, at the published size."""
    config = JatConfig(num_layers=2)
    hidden = config.hidden_size
    shapes: list[tuple[int, int, Any]] = [(3, 1, False), (1, 1, True), (4, 1, True), (1, 4, True)]
    packed = sum(_cpu.Linear(dtype, rows * hidden, columns * hidden, bias).num_bytes for rows, columns, bias in shapes)
    norms = 4 * 4 * hidden
    assert costs.block_bytes(config, dtype) == 2 * (packed + norms)
    bits = {"float32": 32, "bfloat16": 16, "int8": 8, "int4": 4.5}[dtype]
    assert bits < costs.bits_a_weight(config, dtype) < bits + 0.1


def test_settings_tell_of_another_version(results: Results) -> None:
    assert results.settings["before"] is True
    assert "before" in results.machine
