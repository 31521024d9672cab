"""Hosts of environments: what comes from a worker process is what comes from this one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.dice import DEATHS, DICE, LARGE, MANY_DICE, STEP_FAILS

from jat_engine.envs import TASKS, Task
from jat_engine.evaluation.environment import missing_simulators
from jat_engine.runs.hosts import Host, HostEndedError, LocalHost, WorkerHost
from jat_engine.runs.plan import Item
from jat_engine.runs.shared_block import SLOT_BYTES, SharedBlock
from jat_engine.runs.slots import Act, Begin, Ended, Observed, Order, PlayOptions, Report

ALL_KINDS = ("atari-pong", "babyai-go-to-local", "metaworld-reach")
"""Images; integers with text; numbers."""


@pytest.fixture
def worker() -> Iterator[Any]:
    """Return a function that starts a host in a worker process, which ends with the test."""
    started: list[WorkerHost] = []

    def start(*tasks: Task, num_slots: int = 4) -> WorkerHost:
        started.append(WorkerHost(0, {task.name: task for task in tasks}, PlayOptions(max_steps=6), num_slots))
        return started[-1]

    yield start
    for host in started:
        host.close()


def exchange(host: Host, orders: Sequence[Order]) -> list[Report]:
    host.send(orders)
    reports: list[Report] = []
    while not reports:  # a worker's process first says that it has started
        assert host.wait([host]) == [host]
        reports = host.receive()
    return reports


def play(host: Host, items: Sequence[Item]) -> list[list[Report]]:
    """Play episodes in slots 0, 1, ... to their ends, with actions that depend on the seeds.

    Returns:
        The reports of each exchange.
    """
    reports = [kept(exchange(host, [Begin(slot, item) for slot, item in enumerate(items)]))]
    spaces = {one.slot: one.action_space for one in reports[0] if isinstance(one, Observed)}
    for slot, space in spaces.items():
        space.seed(items[slot].seed)
    while waiting := [one for one in reports[-1] if isinstance(one, Observed)]:
        orders = []
        for one in waiting:
            action = spaces[one.slot].sample()
            orders.append(Act(one.slot, int(action) if np.ndim(action) == 0 else action.tolist()))
        reports.append(kept(exchange(host, orders)))
    return reports


def kept(reports: list[Report]) -> list[Report]:
    """Return reports with copies of the arrays that an environment will use again."""
    for one in reports:
        if isinstance(one, Observed):
            one.observation = {key: np.copy(value) for key, value in one.observation.items()}
    return reports


def plain(report: Report) -> Any:
    """Return a report without wall times, for comparison."""
    if isinstance(report, Ended):
        trace = report.trace.splitlines()
        return report.slot, report.episode, report.chain, report.problems, trace[-1:]
    parts = {
        key: (value.dtype.str, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value
        for key, value in report.observation.items()
    }
    return report.slot, parts, report.reward, repr(report.action_space)


@pytest.mark.parametrize("items", [[Item(name, 0, 3) for name in ALL_KINDS], [Item("dice", 1, STEP_FAILS)] * 2])
def test_a_worker_reports_what_this_process_would(items: list[Item], worker: Any) -> None:
    tasks = [TASKS.get(item.task, DICE) for item in items]
    if missing := missing_simulators(tasks):
        pytest.skip(" ".join(missing.values()))
    local = LocalHost({task.name: task for task in tasks}, PlayOptions(max_steps=6))
    expected = play(local, items)
    local.close()
    host = worker(*tasks)
    for _ in range(2):  # the second time in environments that were used
        found = play(host, items)
        assert [[plain(one) for one in batch] for batch in found] == [
            [plain(one) for one in batch] for batch in expected
        ]
    assert host.seconds > 0


def test_observations_that_are_too_large_for_shared_memory_are_sent(worker: Any) -> None:
    assert LARGE * 8 > SLOT_BYTES
    items = [Item("many-dice", 0, 3), Item("dice", 0, 3)]
    tasks = {"many-dice": MANY_DICE, "dice": DICE}
    expected = play(LocalHost(tasks, PlayOptions()), items)
    found = play(worker(MANY_DICE, DICE), items)
    assert [[plain(one) for one in batch] for batch in found] == [[plain(one) for one in batch] for batch in expected]


def test_a_process_that_is_killed_is_started_again(
    worker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DEATHS, str(tmp_path))
    (tmp_path / "3").write_bytes(b".")
    items = [Item("dice", 0, 3), Item("dice", 1, 4)]
    host = worker(DICE)
    with pytest.raises(HostEndedError, match=r"^the process that played it was ended by signal 9 \(out of memory\?\)$"):
        play(host, items)
    host.restart()
    expected = play(LocalHost({"dice": DICE}, PlayOptions()), items)
    assert [plain(one) for one in play(host, items)[-1]] == [plain(one) for one in expected[-1]]


def test_processes_that_cannot_start_end_the_run(worker: Any, capfd: pytest.CaptureFixture[str]) -> None:
    broken = Task("dice", _Unloadable(), "continuous", "discrete", 8)
    host = worker(broken)
    with pytest.raises(ChildProcessError, match=r"worker 0: 3 processes ended before they could play"):  # noqa: PT012
        for _ in range(4):
            host.send([Begin(0, Item("dice", 0, 0))])
            with pytest.raises(HostEndedError, match="ended with exit code 1"):
                host.receive()
            host.restart()
    assert "cannot be loaded" in capfd.readouterr().err


def _refuse() -> None:
    raise RuntimeError("a maker that cannot be loaded")


class _Unloadable:
    """Maker that is pickled, and whose unpickling fails."""

    def __reduce__(self) -> Any:
        return _refuse, ()

    def __call__(self) -> Any:
        raise AssertionError


def test_nothing_of_the_shared_memory_is_left(worker: Any) -> None:
    host = worker(DICE)
    play(host, [Item("dice", 0, 3)])
    size = 4 * SLOT_BYTES
    mapped = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    ranges = [([int(end, 16) for end in line[0].split("-")], line[5]) for line in mapped if len(line) > 5]
    names = [name for (low, high), name in ranges if high - low == size and name.startswith(("/dev/shm", "/tmp"))]
    assert names
    assert all(name.endswith(" (deleted)") for name in names)


@pytest.mark.parametrize("shape", [(), (0,), (3, 4), (84, 84, 4)])
def test_arrays_of_all_shapes_come_through_shared_memory(shape: tuple[int, ...]) -> None:
    ours, theirs = Pipe()
    with ours, theirs, SharedBlock.create(num_slots=2) as (block, descriptor):
        SharedBlock.send(descriptor, ours)
        other = SharedBlock.receive(theirs)
    numbers = np.random.default_rng(0)
    for dtype in (np.uint8, np.int64, np.float32, ">f8"):
        given: dict[str, Any] = {
            "a": numbers.normal(size=3),
            "b": np.asarray(100 * numbers.random(shape)).astype(dtype),
            "text": "go",
        }
        for slot in (0, 1):
            layout, others = other.write(slot, given)
            found = block.read(layout) | others
            assert found.keys() == given.keys()
            for key, value in given.items():
                if isinstance(value, np.ndarray):
                    assert found[key].dtype == value.dtype
                np.testing.assert_array_equal(found[key], value)
            assert ("b" in others) == (given["b"].nbytes > SLOT_BYTES)
