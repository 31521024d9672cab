"""The benchmarks are honest: what is planted is found, and what does not agree is not compared."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ROOT
from helpers.documents import write_docs

from jat_engine.bench import compare, report, runner
from jat_engine.bench.bandwidth import Bandwidth
from jat_engine.bench.peers import REFERENCE, Peers, Unavailable, load
from jat_engine.bench.peers.jat import EnginePeer, ModelPeer
from jat_engine.bench.peers.published import PublishedPeer
from jat_engine.bench.results import Results, disagreeing, machine, make_row, paired_ratio, ratio
from jat_engine.bench.runner import Context, Options
from jat_engine.bench.suites import latency, throughput
from jat_engine.cli import main
from jat_engine.testing import agreement

CASE = {"model": "tiny", "observation": "babyai", "window": 16}
ENGINE = "JatEngine float32"


class SlowAgent:
    """Computes for 50 ms longer than it would."""

    def __init__(self, agent: Any) -> None:
        self._agent = agent

    def get_next_action(self, **arguments: Any) -> Any:
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass
        return self._agent.get_next_action(**arguments)

    def force_action(self, action: Any) -> None:
        self._agent.force_action(action)


class SlowPeer(EnginePeer):
    def open(self, window: int) -> Any:
        return SlowAgent(super().open(window))


class ForgetfulPeer(EnginePeer):
    """Looks back on one step less than it is asked to."""

    def open(self, window: int) -> Any:
        return super().open(window - 2)


@pytest.fixture(scope="module")
def run(tiny_folder: Path) -> Callable[[type[EnginePeer]], Results]:
    """A latency case of the golden checkpoint, with the engine as it is or as planted; each measured once.

    In this process's time instead of the clock's: what else a machine does is not to decide a test.
    """
    made: dict[type[EnginePeer], Results] = {}
    options = Options(6, 1, (1,), ("tiny",), ("float32",), ("babyai",), (16,), (), None, "cpu")

    def run(planted: type[EnginePeer]) -> Results:
        if planted not in made:
            found = {
                REFERENCE: ModelPeer.load(tiny_folder, "float32", "cpu"),
                ENGINE: planted.load(tiny_folder, "float32", "cpu"),
            }
            results = Results(machine(), {})
            context = Context(options, results, Bandwidth("cpu"), lambda _: None, lambda: None)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(runner, "clock", time.process_time)
                latency.measure_case(context, Peers(found), dict(CASE))
            made[planted] = results
        return made[planted]

    return run


def engine_row(results: Results) -> Any:
    return next(row for row in results.rows if row.name == ENGINE)


def test_planted_slow_down_is_found(run: Callable[[type[EnginePeer]], Results], tmp_path: Path) -> None:
    honest, slow = run(EnginePeer), run(SlowPeer)
    found = compare.compare(honest, slow, threshold=0.05)
    assert {change.row.name: change.verdict for change in found.changes}[ENGINE] == compare.SLOWER
    assert found.is_worse
    back = compare.compare(slow, honest, threshold=0.05)
    assert {change.row.name: change.verdict for change in back.changes}[ENGINE] == compare.FASTER
    assert not [change for change in back.changes if change.row.name == ENGINE and change.verdict == compare.SLOWER]
    # The same by the command line.
    honest.write(tmp_path / "a.json")
    slow.write(tmp_path / "b.json")
    assert main(["bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 1
    assert main(["bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "a.json")]) == 0


def test_slower_than_the_reference_is_not_called_ahead(run: Callable[[type[EnginePeer]], Results]) -> None:
    assert report.standing(run(SlowPeer).rows)["ahead"] == ["no"]


def test_planted_wrong_output_is_found(run: Callable[[type[EnginePeer]], Results], tmp_path: Path) -> None:
    honest, wrong = run(EnginePeer), run(ForgetfulPeer)
    assert engine_row(honest).agrees
    assert engine_row(honest).faster is not None
    row = engine_row(wrong)
    assert not row.agrees
    assert row.faster is None
    (remark,) = disagreeing(wrong.rows)
    assert ENGINE in remark
    assert "outputs differ" in remark
    shown = report.columns(wrong.rows)
    assert shown["p50 ms"][1] == "outputs differ"
    assert "times faster" not in shown
    assert report.standing(wrong.rows) == {}, "an agent that computes something else is ahead of no other"
    for first, second, verdict_, is_worse in (
        (honest, wrong, compare.DIFFERS, True),
        (wrong, wrong, compare.DIFFERS, True),
        (wrong, honest, compare.REPAIRED, False),
    ):
        found = compare.compare(first, second, 0.05)
        (change,) = (change for change in found.changes if change.row.name == ENGINE)
        assert change.verdict == verdict_
        assert change.time is None, "times of wrong outputs are not compared"
        assert found.is_worse == is_worse


def test_the_command_fails_where_outputs_differ(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("jat_engine.bench.peers.jat.EnginePeer", ForgetfulPeer)
    options = ["--models", str(tiny_folder), "--no_peers", "--num-iters", "2", "--dtypes", "float32", "--windows", "8"]
    options += ["--observations", "babyai", "--output-json", str(tmp_path / "results.json")]
    assert main(["bench", "latency", *options]) == 1
    captured = capsys.readouterr()
    assert "outputs differ" in captured.out
    assert "it is not compared" in captured.err


class FailingPeer(EnginePeer):
    def open(self, window: int) -> Any:
        raise OSError("out of order")


def test_a_peer_that_fails_leaves_the_others(tiny_folder: Path) -> None:
    peers = Peers({REFERENCE: ModelPeer.load(tiny_folder, "float32", "cpu")})
    peers.found["Failing float32"] = FailingPeer.load(tiny_folder, "float32", "cpu")
    peers.found[ENGINE] = EnginePeer.load(tiny_folder, "float32", "cpu")
    options = Options(2, 1, (1,), ("tiny",), ("float32",), ("babyai",), (16,), (), None, "cpu")
    context = Context(options, Results(machine(), {}), Bandwidth("cpu"), lambda _: None, lambda: None)
    latency.measure_case(context, peers, dict(CASE))
    assert [row.name for row in context.results.rows] == [REFERENCE, ENGINE]
    assert peers.skipped == {"Failing float32": "OSError: out of order"}


class MixedUpBatch:
    """Gives its last agent the first one's action."""

    def __init__(self, batch: Any) -> None:
        self._batch = batch

    def get_next_actions(self, **arguments: Any) -> Any:
        actions = self._batch.get_next_actions(**arguments)
        actions[-1] = actions[0]
        return actions

    def close(self) -> None:
        self._batch.close()


class MixedUpPeer(EnginePeer):
    def open_batch(self, num_agents: int, window: int, kind: str) -> Any:
        return MixedUpBatch(super().open_batch(num_agents, window, kind))


@pytest.mark.parametrize(("planted", "agrees"), [(EnginePeer, True), (MixedUpPeer, False)])
def test_a_batch_is_checked_beyond_its_first_agent(tiny_folder: Path, planted: type[EnginePeer], agrees: bool) -> None:
    peers = Peers({REFERENCE: ModelPeer.load(tiny_folder, "float32", "cpu")})
    peers.found[ENGINE] = planted.load(tiny_folder, "float32", "cpu")
    options = Options(2, 1, (5,), ("tiny",), ("float32",), ("continuous",), (16,), (), None, "cpu")
    context = Context(options, Results(machine(), {}), Bandwidth("cpu"), lambda _: None, lambda: None)
    throughput.measure_case(context, peers, {"model": "tiny", "agents": 5})
    assert engine_row(context.results).agrees == agrees


def test_outputs_that_are_not_finite_never_agree() -> None:
    assert agreement.error([[1.0, np.nan]], [[1.0, 2.0]]) == float("inf")
    with pytest.raises(ValueError, match="shape"):
        agreement.error([[1.0]], [[1.0, 2.0]])


def test_outputs_agree_with_zeros_only_if_they_are_zeros() -> None:
    assert agreement.errors([[0.0, 0.0]], [[0.0, 0.0]]).tolist() == [0.0]
    assert agreement.errors([[0.0, 0.0], [0.0, 1e-9]], np.zeros((2, 2))).tolist() == [0.0, np.inf]


def test_error_is_of_the_worst_step() -> None:
    expected = np.ones((100, 4))
    got = expected.copy()
    got[57] += 0.5
    assert agreement.error(got, expected) == pytest.approx(0.5)


def test_everyone_takes_as_many_turns() -> None:
    order: list[str] = []
    contenders = {
        name: runner.Contender(lambda number: number, lambda number, name=name: order.append(f"{name}{number}"))
        for name in "abc"
    }
    seconds = runner.take_turns(contenders, 5, num_warmup=2, pause_s=0.0)
    for name in "abc":
        calls = [int(text[1:]) for text in order if text[0] == name]
        assert calls == list(range(len(calls))), "arguments are prepared once a call, in order"
        assert len(seconds[name]) == 5
        timed = sum(map(len, seconds[name]))
        assert len(calls) == 2 + 5 + timed, "two to warm up, one untimed at the start of each turn"
    turns = [text[0] for index, text in enumerate(order[6:]) if index == 0 or order[6:][index - 1][0] != text[0]]
    assert len({tuple(turns[i : i + 3]) for i in range(0, len(turns), 3)}) > 1, "the order changes"


def test_a_contender_that_fails_leaves_the_others_and_time_can_run_out() -> None:
    def call(number: int) -> None:
        if number == 4:
            raise OSError("out of order")

    contenders = {
        "failing": runner.Contender(lambda number: number, call),
        "other": runner.Contender(lambda number: number, lambda number: None),
    }
    failed: dict[str, str] = {}
    seconds = runner.take_turns(
        contenders,
        5,
        num_warmup=1,
        pause_s=0.0,
        on_round=lambda number: number < 3,
        on_failure=lambda name, error: failed.update({name: str(error)}),
    )
    assert failed == {"failing": "out of order"}
    assert {name: len(rounds) for name, rounds in seconds.items()} == {"other": 3}
    with pytest.raises(OSError, match="out of order"):
        runner.take_turns(contenders, 5, num_warmup=1, pause_s=0.0)


def test_ratio_within_rounds_does_not_see_the_machine_slow_down() -> None:
    machine_s = np.linspace(1, 10, 21)
    found = paired_ratio(list(2 * machine_s), list(machine_s))
    assert (found.value, found.low, found.high) == (2.0, 2.0, 2.0)
    apart = ratio(list(2 * machine_s), list(machine_s))
    assert apart.low < 2 < apart.high
    with pytest.raises(ValueError, match="rounds"):
        paired_ratio([1.0], [])


def test_few_rounds_give_their_range() -> None:
    found = paired_ratio([1.0, 4.0, 3.0], [1.0, 1.0, 1.0])
    assert (found.value, found.low, found.high) == (3.0, 1.0, 4.0)
    apart = ratio([2.0, 3.0], [1.0, 2.0])
    assert (apart.low, apart.high) == (1.0, 3.0)


def test_a_slower_machine_is_no_slower_engine() -> None:
    """Both runs differ by the machine alone: times doubled, relations as they were."""

    def results(scale: float) -> Results:
        rng = np.random.default_rng(int(scale))
        reference = (scale * rng.uniform(10, 12, (20, 4))).tolist()
        engine = (scale * rng.uniform(1.0, 1.2, (20, 4))).tolist()
        rows = [
            make_row("latency", dict(CASE), REFERENCE, reference),
            make_row("latency", dict(CASE), ENGINE, engine, reference=reference, error=0.0, tolerance=1e-3),
        ]
        return Results(machine(), {}, rows)

    found = compare.compare(results(1.0), results(2.0), threshold=0.05)
    change = next(change for change in found.changes if change.row.name == ENGINE)
    assert change.time is not None
    assert change.time.low > 1.5
    assert change.verdict == compare.SAME
    assert not found.is_worse


def test_results_come_back_as_written(run: Callable[[type[EnginePeer]], Results], tmp_path: Path) -> None:
    wrong = run(ForgetfulPeer)
    rows = [dataclasses.replace(row, error=float("inf")) if row.name == ENGINE else row for row in wrong.rows]
    results = Results(wrong.machine, {"a": 1}, rows, {"somebody": "not installed"})
    path = tmp_path / "results.json"
    results.write(path)
    assert Results.read(path) == results
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda found: found.pop("rows"), "rows"),
        (lambda found: found.update(format=99), "format 1, got 99"),
        (lambda found: found["rows"][0].update(colour="red"), "colour"),
        (lambda found: found["rows"][0].update(round_medians=[]), "round_medians"),
    ],
)
def test_broken_results_are_told(
    run: Callable[[type[EnginePeer]], Results], tmp_path: Path, change: Callable[[Any], Any], expected: str
) -> None:
    path = tmp_path / "results.json"
    run(EnginePeer).write(path)
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))
    with pytest.raises(ValueError, match=expected):
        Results.read(path)


def test_suites_by_the_command_line(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.json"
    options = ["--models", str(tiny_folder), "--no_peers", "--num-iters", "2", "--num-iters-warmup", "1"]
    options += ["--observations", "continuous", "--windows", "8", "--batch-size", "1", "3", "--dtypes", "float32"]
    for suite in ("latency", "throughput", "generate", "train"):
        assert main(["bench", suite, *options, "--output-json", str(path)]) == 0, suite
        results = Results.read(path)
        assert suite in results.suites
        assert results.machine["cpu"]["cores"] >= 1
        assert results.machine["bandwidth GB/s"]["median"] > 0
        assert all(row.agrees for row in results.rows)
        assert "p50" in capsys.readouterr().out
    throughput = [row for row in load_results(tiny_folder, tmp_path, "throughput", options) if row.agent == "JatEngine"]
    assert [row.case["agents"] for row in throughput] == [1, 3]


def test_plain_torch_is_not_passed_off_as_the_engine(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the native module, standard error, the tables, the file and a comparison all say what was measured."""
    monkeypatch.setitem(sys.modules, "jat_engine._cpu", None)
    options = ["--models", str(tiny_folder), "--no_peers", "--num-iters", "2", "--num-iters-warmup", "1", "--use_cpu"]
    options += ["--observations", "continuous", "--windows", "8", "--dtypes", "float32"]
    results = load_results(tiny_folder, tmp_path, "latency", options)
    assert [row.name for row in results] == [REFERENCE, ENGINE]
    captured = capsys.readouterr()
    assert captured.err.startswith("WARNING: JatEngine is measured in PLAIN TORCH, not with its native kernels: ")
    assert "install a C++17 compiler" in captured.err
    assert "latency: JatEngine in PLAIN TORCH" in captured.out
    found = Results.read(tmp_path / "latency.json")
    assert "does not load" in found.settings["plain_torch"]
    native = dataclasses.replace(found, settings={**found.settings, "plain_torch": ""})
    assert "the engines differ: native kernels, then plain torch" in compare.compare(native, found, 0.05).remarks
    assert report.title("latency", native.settings) == "latency"


def load_results(folder: Path, tmp_path: Path, suite: str, options: list[str]) -> Any:
    path = tmp_path / f"{suite}.json"
    assert main(["bench", suite, *options, "--output-json", str(path)]) == 0
    return Results.read(path).of_suite(suite)


def test_cold_start(tiny_folder: Path, tmp_path: Path) -> None:
    options = ["--models", str(tiny_folder), "--no_peers", "--num-iters", "1", "--dtypes", "float32"]
    rows = load_results(tiny_folder, tmp_path, "load", options)
    assert [(row.name, row.case["checkpoint in"]) for row in rows] == [
        (name, state) for state in ("disk", "memory") for name in (REFERENCE, ENGINE)
    ]
    for row in rows:
        assert 0 < row.facts["load s"] < row.p50
        assert row.facts["imports s"] < row.p50


def test_peers_that_are_missing_say_why(tiny_folder: Path) -> None:
    with pytest.raises(Unavailable, match="No module named 'jat'"):
        PublishedPeer(sys.executable, tiny_folder)
    with pytest.raises(Unavailable, match="nowhere"):
        PublishedPeer("/nowhere/python", tiny_folder)
    peers = load(tiny_folder, ["float32"], ["published"], "cpu", None, lambda _: None)
    assert "--upstream" in peers.skipped["published package float32"]
    assert list(peers.found) == [REFERENCE, ENGINE]
    peers.close()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["latencies"], "expected one of latency"),
        (["latency", "--num-iters", "0"], "--num_iters: expected at least 1"),
        (["latency", "--windows", "7"], "--windows: expected even"),
        (["latency", "--models", "huge"], "--models: expected a folder"),
        (["latency", "--output-json", "/nowhere/at/all.json"], "--output_json: there is no folder"),
        (["compare", "a.json"], "expected two files"),
        (["compare", "/nowhere/a.json", "/nowhere/b.json"], "expected the results of a benchmark"),
        (["compare", "a.json", "b.json", "--threshold", "2"], "--threshold"),
    ],
)
def test_bad_arguments_are_told(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 2
    assert expected in capsys.readouterr().err


def test_documents_say_what_was_measured() -> None:
    """docs/benchmarks.md and the README's table are what the committed results give."""
    docs = write_docs()
    runs = docs.read()
    assert docs.PAGE.read_text() == docs.page(runs), "run benchmarks/write_docs.py"
    readme = docs.README.read_text()
    shown_first = docs.readme_table(runs[docs.LOOP_RUN])
    assert docs.with_headline(readme, shown_first) == readme, "run benchmarks/write_docs.py"

    for run, suite in ((docs.HEADLINE_RUN, "latency"), (docs.LOOP_RUN, "loop")):
        results = runs[run]
        shown = next(row for row in results.of_suite(suite) if row.name == "JatEngine int8")
        changed = dataclasses.replace(shown, seconds={**shown.seconds, "50": 123.456})
        other = dataclasses.replace(results, rows=[changed if row is shown else row for row in results.rows])
        assert docs.page({**runs, run: other}) != docs.page(runs)
    assert docs.readme_table(other) != shown_first


def test_pytest_benchmarks_run(tiny_folder: Path) -> None:
    command = [sys.executable, "-m", "pytest", "benchmarks/test_step.py", "-q", "-k", "babyai or 16", "-p", "no:xdist"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "JAT_BENCHMARK_CHECKPOINT": str(tiny_folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-500:]
    assert "10 passed" in done.stdout
