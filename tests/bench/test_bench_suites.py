"""The suites that hold no times against each other, and the counts of a step's bytes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from jat_engine import JatConfig
from jat_engine.backends.base import STEP_TOKENS
from jat_engine.bench import costs, report
from jat_engine.bench.peers.jat import EnginePeer
from jat_engine.bench.results import Results
from jat_engine.bench.suites import soak
from jat_engine.checkpoint.weights import parameter_shapes
from jat_engine.cli import main

# ---- parity, growth, soak ----------------------------------------------------------------------------------------


class ForgetfulOfManyPeer(EnginePeer):
    """Looks back on one step less than it is asked to, where it is asked for a window."""

    def open(self, window: int | None) -> Any:
        return super().open(window and max(2, window - 2))


@pytest.mark.parametrize(("planted", "code"), [(EnginePeer, 0), (ForgetfulOfManyPeer, 1)])
def test_parity_finds_what_rounding_does_not_explain(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: type[EnginePeer], code: int
) -> None:
    monkeypatch.setattr("jat_engine.bench.suites.parity.EnginePeer", planted)
    path = tmp_path / "parity.json"
    options = ["--models", str(tiny_folder), "--dtypes", "float32", "bfloat16", "--use_cpu"]
    assert main(["bench", "parity", *options, "--output-json", str(path)]) == code
    rows = Results.read(path).of_suite("parity")
    assert {row.case["model"] for row in rows} == {"recorded episodes", str(tiny_folder)}
    errors = {(row.case["model"], row.name): row.error for row in rows}
    assert (errors["recorded episodes", "JatEngine torch float32"] < 1e-4) == (planted is EnginePeer)
    assert 1e-3 < errors["recorded episodes", "JatModel bfloat16"] < 0.06
    assert "p50" not in " ".join(report.columns(rows)), "no times: agents did not take turns"


def test_growth_has_the_whole_window(tiny_folder: Path, tmp_path: Path) -> None:
    options = ["--models", str(tiny_folder), "--num-iters", "2", "--dtypes", "float32", "--use_cpu"]
    path = tmp_path / "growth.json"
    assert main(["bench", "growth", *options, "--output-json", str(path)]) == 0
    rows = Results.read(path).of_suite("growth")
    assert [row.case["cached tokens"] for row in rows] == [0, 44]
    assert [row.num_calls for row in rows] == [6, 10], "of each round, two steps before it and two after it"
    assert rows[0].facts["MB read"] < rows[1].facts["MB read"]


@pytest.mark.parametrize("is_lost", [False, True])
def test_soak_finds_lost_pages(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_lost: bool
) -> None:
    kept: list[Any] = []
    newcomers = soak.newcomers

    def losing(engine: Any, *arguments: Any) -> Any:
        kept.append(engine.open_session(7))
        return newcomers(engine, *arguments)

    if is_lost:
        monkeypatch.setattr(soak, "newcomers", losing)
    path = tmp_path / "soak.json"
    options = ["--models", str(tiny_folder), "--dtypes", "float32", "--agent_steps", "400", "--use_cpu"]
    assert main(["bench", "soak", *options, "--output-json", str(path)]) == is_lost
    (row,) = Results.read(path).rows
    assert (row.error == 0) == (not is_lost)
    assert row.facts["pages peak"] > 0


# ---- costs -------------------------------------------------------------------------------------------------------


def test_bytes_of_the_blocks_are_those_of_their_parameters() -> None:
    config = JatConfig()
    sizes = [math.prod(s) for name, s in parameter_shapes(config).items() if name.startswith("transformer.h.")]
    assert costs.block_bytes(config, "float32") == 4 * sum(sizes)
    halved = costs.block_bytes(config, "float32") - costs.block_bytes(config, "bfloat16")
    assert halved == 2 * costs.matrix_elements(config)
    scales = costs.block_bytes(config, "int8") - costs.block_bytes(config, "bfloat16") + costs.matrix_elements(config)
    assert scales == 8 * config.num_layers * 9 * config.hidden_size, "a scale and a sum for each of 9 H rows"


@pytest.mark.parametrize("cached", [0, 10, 11, 12, 44])
def test_cached_tokens_that_a_step_sees(cached: int) -> None:
    """By the definition of a window: row i sees the keys from i - window + 1 on."""
    config = JatConfig(num_layers=2, window_size=12)
    rows = range(cached, cached + STEP_TOKENS)
    seen = {
        layer: {key for row in rows for key in range(cached) if key > row - window}
        for layer, window in ((0, 999), (1, 12))
    }
    assert costs.seen_tokens(config, cached) == sum(map(len, seen.values()))
    assert costs.cache_bytes(config, cached, "int8") == costs.seen_tokens(config, cached) * 2 * 768 * 2
