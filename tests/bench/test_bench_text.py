"""The text suites of the bench: every writer computes what `JatModel` does, and the suites' rows say what was timed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jat_engine import JatConfig, JatModel
from jat_engine.bench import costs
from jat_engine.bench.peers import ENGINE, MODEL, NAMES, REFERENCE, Unavailable, open_peer
from jat_engine.bench.results import Results
from jat_engine.bench.suites import beside, generate
from jat_engine.bench.writers import RUNTIMES, load, open_writer
from jat_engine.cli import main
from jat_engine.testing.agreement import TOLERANCES, error

NEW = 6


def opened(name: str, folder: Path, dtype: str) -> Any:
    try:
        return open_writer(name, folder, dtype)
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", [ENGINE, MODEL, "onnxruntime", "openvino"])
def test_like_the_model(name: str, dtype: str, tiny_folder: Path, tiny_model: JatModel) -> None:
    """Past local windows: logits on given continuations, and in float32 the tokens that it chooses."""
    if name == MODEL and dtype.startswith("int"):
        pytest.skip("JatModel has no such dtype")
    writer = opened(name, tiny_folder, dtype)
    config = tiny_model.config
    prompts, forced = (generate.random_tokens(config, 2, length, seed) for length, seed in ((30, 0), (NEW, 1)))
    expected = open_writer(MODEL, tiny_folder, "float32")
    wanted = expected.predict(prompts, forced)
    assert wanted.shape == (2, NEW, config.vocab_size)
    far = error(writer.predict(prompts, forced).reshape(-1, config.vocab_size), wanted.reshape(-1, config.vocab_size))
    assert far < TOLERANCES[dtype]

    steps: list[int] = []
    written = writer.write(prompts, NEW, lambda: steps.append(1))
    assert len(steps) == NEW
    assert written.shape == (2, NEW)
    if dtype == "float32":
        assert np.array_equal(written, expected.write(prompts, NEW, lambda: None))
        assert np.array_equal(written, writer.write(prompts, NEW, lambda: None)), "nothing is left in the cache"
    writer.close()


def test_llama_cpp_writes_as_many_tokens(tiny_folder: Path) -> None:
    writer = opened("llama.cpp", tiny_folder, "float32")
    prompts = generate.random_tokens(JatConfig.from_pretrained(tiny_folder), 2, 9, seed=0)
    both = writer.write(prompts, NEW, lambda: None)
    assert both.shape == (2, NEW)
    assert np.array_equal(both[1:], writer.write(prompts[1:], NEW, lambda: None)), "texts do not see each other"
    writer.close()


@pytest.mark.parametrize(
    ("name", "dtype", "package"),
    [("onnxruntime", "float32", "onnxruntime"), ("openvino", "int8", "nncf"), ("llama.cpp", "int4", "llama_cpp")],
)
def test_a_missing_package_is_told(
    name: str, dtype: str, package: str, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # its import fails
    with pytest.raises(Unavailable, match="pip install"):
        open_writer(name, tiny_folder, dtype)


def test_llama_cpp_has_no_agents(tiny_folder: Path) -> None:
    assert set(RUNTIMES) <= set(NAMES)
    with pytest.raises(Unavailable, match="no agents"):
        open_peer("llama.cpp", tiny_folder, "float32")
    writers = load(tiny_folder, ["float32"], ["published"], "cpu", lambda _: None)
    assert list(writers.found) == [REFERENCE, f"{ENGINE} float32"]
    writers.close()


def test_suite(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "BLOCK_S", 0.05)
    path = tmp_path / "text.json"
    options = ["--models", str(tiny_folder), "--num-iters", "2", "--dtypes", "float32", "--use_cpu"]
    assert main(["bench", "generate", *options, "--peers", MODEL, "published", "--output-json", str(path)]) == 0
    results = Results.read(path)
    rows = results.of_suite("generate")
    assert {row.name for row in rows} == {REFERENCE, f"{ENGINE} float32"}
    assert {(row.case["texts"], row.case["time of"]) for row in rows} == {
        (texts, what) for texts in generate.TEXTS for what in (generate.FIRST, generate.LATER)
    }
    for row in rows:
        assert (row.error is None) == (row.name == REFERENCE)
        assert row.num_calls % len(row.round_medians) == 0
        assert (row.num_calls > len(row.round_medians)) == (row.case["time of"] == generate.LATER)
        assert ("over JatModel" in row.intervals) == (row.agent == ENGINE)
    besides = results.of_suite("beside")
    assert [row.case["beside"] for row in besides] == 2 * [beside.ALONE, beside.IN_CHUNKS, beside.AT_ONCE]
    assert all(("over alone" in row.intervals) == (row.case["beside"] != beside.ALONE) for row in besides)
    assert "generate, published" in results.skipped


def test_costs_of_texts() -> None:
    """A prompt's attention by the definition of a window; a step reads the head besides an agent's blocks."""
    config = JatConfig(num_layers=2, window_size=12)
    num_keys = sum(sum(key > row - window for key in range(row + 1)) for window in (999, 12) for row in range(30))
    products = 30 * costs.matrix_elements(config) + config.vocab_size * config.hidden_size
    assert costs.prompt_operations(config, 30) == 2 * products + 4 * config.hidden_size * num_keys
    assert costs.prompt_operations(config, 30, 3) == 3 * costs.prompt_operations(config, 30)

    with_head = costs.text_step_bytes(config, "float32", 0)
    assert with_head == costs.block_bytes(config, "float32") + 4 * config.vocab_size * config.hidden_size
    assert costs.text_step_bytes(config, "int8", 9, 2) - costs.text_step_bytes(config, "int8", 0, 2) == 2 * (
        costs.cache_bytes(config, 9, "int8")
    )
