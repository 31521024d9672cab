"""The loop suite: paced calls, missed deadlines, floors, and a neighbour that never outlives what it disturbs."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from helpers.documents import write_docs

from jat_engine.bench import compare, pacing, report
from jat_engine.bench.bandwidth import Bandwidth, last_level_cache_bytes
from jat_engine.bench.pacing import (
    Idle,
    Mode,
    busy_neighbour,
    neighbours_core,
    pinned,
    take_block,
    why_no_neighbour,
)
from jat_engine.bench.peers import REFERENCE
from jat_engine.bench.results import Results, Row
from jat_engine.bench.runner import Context, Options
from jat_engine.bench.suites import loop
from jat_engine.bench.suites.loop import NEVER_SLEEPING, ONE_THREAD
from jat_engine.cli import main
from jat_engine.envs import get_task, register_task

ENGINE = "JatEngine float32"
needs_cores = pytest.mark.skipif(bool(why_no_neighbour()), reason=why_no_neighbour())


@pytest.fixture(scope="module")
def results(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """A short run by the command line."""
    path = tmp_path_factory.mktemp("loop") / "results.json"
    options = ["--models", str(tiny_folder), "--no_peers", "--num-iters", "2", "--dtypes", "float32", "--windows", "8"]
    options += ["--hz", "100", "200", "--paces", "sleep", "busy", "evicted", "--minutes", "0.05", "--use_cpu"]
    assert main(["bench", "loop", *options, "--output-json", str(path)]) == 0
    return Results.read(path)


def test_every_agent_at_every_pace(results: Results) -> None:
    rows = results.of_suite("loop")
    neighbours = ["none"] if why_no_neighbour() else ["none", "busy"]
    expected = [("back to back", "none"), *((pace, hz) for pace in ("sleep", "busy") for hz in (100, 200))]
    expected.append(("evicted", "none"))
    names = [REFERENCE, ENGINE]
    if "loop, floors" not in results.skipped:
        names += [f"{ONE_THREAD} float32", f"{NEVER_SLEEPING} float32"]
    found = [(row.case["neighbour"], row.case["pace"], row.case["hz"], row.name) for row in rows]
    assert found == [(n, pace, hz, name) for n in neighbours for pace, hz in expected for name in names]
    for row in rows:
        assert row.agrees
        assert row.num_calls >= 1
        assert row.seconds["50"] <= row.seconds["99"] <= row.seconds["99.9"] <= row.seconds["max"]
        assert ("missed" in row.facts) == (row.case["hz"] != "none")
        assert ("over back to back" in row.facts) == (row.case["pace"] != "back to back")
        assert 0 <= row.facts.get("missed %", 0) <= 100
        assert ("p50 over floor" in row.facts) == (row.name == ENGINE and len(names) == 4)
    shown = report.columns(rows)
    assert {"p99 ms", "p99.9 ms", "max ms", "missed %", "over back to back"} <= shown.keys()


def test_a_floor_is_no_other_agent(results: Results) -> None:
    assert set(report.standing(results.of_suite("loop"))["fastest other"]) == {"JatModel"}


def test_comparison_tells_missed_deadlines(results: Results) -> None:
    same = compare.compare(results, results, threshold=0.05)
    assert len(same.changes) == len(results.rows)
    assert not same.is_worse
    assert not [remark for remark in same.remarks if "missed" in remark]
    row = next(row for row in results.rows if row.name == ENGINE and row.case["pace"] == "sleep")
    before = dataclasses.replace(row, facts={**row.facts, "missed %": 1.0})
    after = dataclasses.replace(row, facts={**row.facts, "missed %": 40.0})
    (remark,) = (
        remark
        for remark in compare.compare(replaced(results, row, before), replaced(results, row, after), 0.05).remarks
        if "missed" in remark
    )
    assert "hz 100" in remark
    assert remark.endswith("JatEngine float32: 1 %, then 40 %")


def replaced(results: Results, row: Row, other: Row) -> Results:
    return dataclasses.replace(results, rows=[other if found is row else found for found in results.rows])


def test_plot(results: Results, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the bench extra")
    (path,) = report.write_plots(results, tmp_path / "results.json")
    assert path.name == "results_loop.png"
    assert path.stat().st_size > 10_000


def test_documents_show_paced_calls_above_those_back_to_back(results: Results) -> None:
    """As soon as the committed run has them; nothing changes before."""
    docs = write_docs()
    committed = docs.read()[docs.HEADLINE_RUN]
    paced = [dataclasses.replace(row, case={**row.case, "model": "small"}) for row in results.rows]
    without = [row for row in committed.rows if row.suite != "loop"]
    alone = docs.headline(dataclasses.replace(committed, rows=without))
    both = docs.headline(dataclasses.replace(committed, rows=[*without, *paced]))
    assert "robot" not in alone
    assert both.endswith("Back to back: " + alone)
    header, _, *lines = [line for line in both.splitlines() if line.startswith("|")]
    busy = "" if why_no_neighbour() else "100 Hz, busy neighbour | "
    assert header == f"| ms a call, p50 (p99) | back to back | 100 Hz | 200 Hz | {busy}missed there |"
    engine = next(line for line in lines if line.startswith(f"| **{ENGINE}**"))
    row = next(row for row in paced if row.name == ENGINE and row.case["pace"] == "sleep")
    assert f"| {report.number(row.p50 * 1e3)} ({report.number(row.seconds['99'] * 1e3)}) |" in engine
    page = docs.page({"cpu": dataclasses.replace(committed, rows=[*without, *paced])})
    assert "### loop, small" in page
    assert "cpu_loop.png" in page


# ---- pacing ------------------------------------------------------------------------------------------------------


class Slow(Idle):
    """Takes four periods of 200 Hz."""

    def step(self, action: Any) -> None:
        time.sleep(0.02)


def test_the_environments_time_counts_towards_the_deadline() -> None:
    block = take_block(lambda arguments: None, Slow(), hz=200, block_s=0.0)
    assert len(block.seconds) == pacing.FEWEST
    assert block.missed == pacing.FEWEST
    block = take_block(lambda arguments: None, Slow(), hz=0, block_s=0.0)
    assert block.missed == 0, "without a rate there is no deadline"
    assert len(take_block(lambda arguments: None, Slow(), hz=1000, block_s=0.2).seconds) >= 2


def test_a_block_of_calls_that_take_long_has_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "LONGEST_S", 0.01)
    block = take_block(lambda arguments: None, Slow(), hz=0, block_s=0.0)
    assert len(block.seconds) == 1


def test_more_memory_is_walked_over_than_the_last_cache_holds() -> None:
    environment = Mode("evicted").make_environment()
    assert isinstance(environment, pacing.Evicting)
    assert environment._memory.nbytes >= 2 * last_level_cache_bytes() >= 1 << 21


def test_ant_is_stepped_by_clipped_actions() -> None:
    pytest.importorskip("mujoco", reason="needs the mujoco extra")
    ant = Mode("mujoco-ant", 50).make_environment()
    first = ant.observe()
    assert first["continuous_observation"].shape == (27,)
    for _ in range(300):  # over the end of an episode
        ant.step([1e6] * 8)
    assert not (ant.observe()["continuous_observation"] == first["continuous_observation"]).all()


# ---- tasks of one's own ------------------------------------------------------------------------------------------


def test_the_loop_of_a_task(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.json"
    options = ["--models", str(tiny_folder), "--no_peers", "--num-iters", "2", "--dtypes", "float32", "--use_cpu"]
    options += ["--task", "gym:CartPole-v1", "--hz", "100", "--neighbour", "none", "--minutes", "0.02"]
    assert main(["bench", "loop", *options, "--output-json", str(path)]) == 0
    assert "gym:CartPole-v1: Box -> continuous_observation of 4 numbers" in capsys.readouterr().err

    results = Results.read(path)
    assert {(row.case["pace"], row.case["hz"]) for row in results.rows} == {
        ("back to back", "none"),
        ("gym:CartPole-v1", 100),
    }
    for row in results.rows:
        assert row.agrees
        assert row.case["task"] == "gym:CartPole-v1"
        assert row.task is not None
        assert row.task["name"] == "gym:CartPole-v1"
        assert row.task["adapter"] == {"observation": "continuous", "size": 4, "action": "discrete", "num_actions": 2}
        assert row.task["module"] is None
    assert results.settings["task"] == results.rows[0].task
    assert {"missed", "over back to back"} <= results.rows[-1].facts.keys()

    other = dataclasses.replace(results.rows[0], task={**(results.rows[0].task or {}), "adapter": {"size": 5}})
    assert other.key != results.rows[0].key, "times of another rule are not compared"


class Echo(gym.Env[Any, Any]):
    """Observes the last action; episodes of three steps."""

    observation_space, action_space = gym.spaces.Box(-9, 9, (2,)), gym.spaces.Box(-2, 2, (2,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.num_steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.num_steps += 1
        assert self.num_steps <= 3, "it has not been reset"
        return action, 0.5, self.num_steps == 3, False, {}


def test_any_environment_between_calls() -> None:
    register_task("test-echo", Echo)
    environment = pacing.TaskEnvironment(get_task("test-echo"))
    found = []
    for action in ([1, 0.5], [1e6, -1e6], [1, 1], [1, 1]):
        found.append(environment.observe())
        environment.step(action)
    observed = [arguments["continuous_observation"].tolist() for arguments in found]
    assert observed == [[0, 0], [1, 0.5], [2, -2], [0, 0]], "clipped, and on over the end of the episode"
    assert [arguments["reward"] for arguments in found] == [0, 0.5, 0.5, 0]
    assert (environment.wander(1)["continuous_observation"] != environment.wander(2)["continuous_observation"]).all()
    environment.close()

    environment = pacing.TaskEnvironment(get_task("gym:FrozenLake-v1"))
    for step in range(50):
        assert environment.wander(step)["discrete_observation"].shape == (1,)
    environment.step(0)
    environment.close()


def test_models_that_a_task_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    register_task("test-many-numbers", ManyNumbers)
    flags = ["--task", "test-many-numbers", "--use_cpu", "--output-json", str(tmp_path / "results.json")]
    assert main(["bench", "loop", "--models", "jat-mini", *flags]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "--task: the sizes of this checkpoint do not fit test-many-numbers" in error
    assert "expected 1 to 39 finite numbers, got shape (100,)" in error

    options = Options(1, 1, (), ("jat-mini", "small"), (), (), (), (), None, "cpu")
    context = Context(options, Results({}, {}), Bandwidth("cpu"), print, lambda: None)
    assert loop.fitting_models(context, get_task("test-many-numbers")) == ["small"]
    assert list(context.results.skipped) == ["loop, jat-mini"]


class ManyNumbers(gym.Env[Any, Any]):
    observation_space, action_space = gym.spaces.Box(-1, 1, (100,)), gym.spaces.Discrete(2)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin a thread")
def test_a_pinned_thread_is_free_afterwards() -> None:
    before = os.sched_getaffinity(0)

    def interrupted() -> None:
        with pinned():
            assert os.sched_getaffinity(0) == {min(before)}
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.sched_getaffinity(0) == before


# ---- the neighbour -----------------------------------------------------------------------------------------------


def is_gone(pid: int) -> bool:
    """Wait a while for a process that is no child of this one any more, or that is reaped."""
    for _ in range(200):
        try:
            status = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return True
        if status.rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


@needs_cores
@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_the_neighbour_goes_with_the_block(error: type[BaseException] | None) -> None:
    pids = []
    try:
        with busy_neighbour() as pid:
            pids.append(pid)
            assert os.sched_getaffinity(pid) == {neighbours_core()}
            os.kill(pid, signal.SIGINT)  # Ctrl-C in a terminal reaches it as well
            os.kill(pid, 0)
            if error is not None:
                raise error
    except (ValueError, KeyboardInterrupt) as caught:
        assert type(caught) is error
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


@needs_cores
def test_the_neighbour_goes_with_a_process_that_is_killed() -> None:
    program = (
        "import time\nfrom jat_engine.bench.pacing import busy_neighbour\n"
        "with busy_neighbour() as pid:\n    print(pid, flush=True)\n    time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        os.kill(pid, 0)
        process.kill()
    assert is_gone(pid)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--hz", "0"], "--hz: expected at least 1"),
        (["--minutes", "0"], "--minutes: expected a positive number"),
        (["--minutes", "nan"], "--minutes: expected a positive number"),
        (["--task", "gym:Nope-v1"], "gym:Nope-v1: Environment `Nope` doesn't exist"),
        (["--task", "atari"], "--task: expected the name of one task, got 'atari'"),
        (["--task", "gym:CartPole-v1", "--paces", "busy"], "--paces and --task: expected one of them"),
        (["--models", "huge"], "--models: expected a folder or one of small, medium, large, jat-mini, got huge"),
    ],
)
def test_bad_arguments_are_told(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "loop", *arguments]) == 2
    assert expected in capsys.readouterr().err


def test_a_task_is_of_the_loop(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "growth", "--task", "gym:CartPole-v1"]) == 2
    assert "--task: expected the suite loop, which steps its environment, got growth" in capsys.readouterr().err


def test_no_floor_where_threads_are_not_the_engines() -> None:
    assert "the engine's backend is cuda" in loop.why_no_floors({"cuda"})
