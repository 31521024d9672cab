"""Threads of an engine: results do not depend on them, steps do not wait for absent ones, cores are respected."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers import cuda_emulator, environment, program
from helpers.engines import native
from helpers.threads_play import KINDS, digest, make_engine, play, workers

from jat_engine import JatEngine
from jat_engine.machine import cpu_quota

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
two_cores = pytest.mark.skipif(len(cores) < 2, reason="needs two cores")

pytestmark = [native, pytest.mark.filterwarnings("ignore:num_threads")]


# ---- results -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "kv_dtype"), [("float32", "auto"), ("bfloat16", "auto"), ("int8", "auto"), ("int8", "int8")]
)
def test_results_do_not_depend_on_threads(dtype: str, kv_dtype: str) -> None:
    """Results are bitwise equal, for each kind alone and for a batch of all."""
    batches: list[tuple[str, ...]] = [*((kind,) for kind in KINDS), KINDS * 4]
    expected = [digest(play(make_engine(dtype, num_threads=1, kv_dtype=kv_dtype), kinds)) for kinds in batches]
    for num_threads in (2, 3, 4):
        engine = make_engine(dtype, num_threads=num_threads, kv_dtype=kv_dtype)
        assert [digest(play(engine, kinds)) for kinds in batches] == expected, num_threads


def test_many_callers() -> None:
    """64 threads play sessions of two engines at once."""
    expected = {kind: digest(play(make_engine(num_threads=1), [kind], 4)) for kind in KINDS}
    engines = [make_engine(num_threads=2), make_engine(num_threads=2, spin_us=0)]
    answers: list[tuple[str, str]] = []

    def run(number: int) -> None:
        kind = KINDS[number % 3]
        answers.append((kind, digest(play(engines[number % 2], [kind], 4))))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert len(answers) == 64
    assert set(answers) == set(expected.items())


# ---- ThreadSanitizer -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Build the programs that play steps under a sanitizer, by CMake target."""
    if missing := cuda_emulator.missing_tools():
        pytest.skip(missing)
    if not cuda_emulator.sanitizer_library():
        pytest.skip("needs gcc with libtsan")
    names = ["cpu_tsan", "cpu_tsan_relaxed_finish", "cpu_tsan_relaxed_range"]
    return dict(zip(names, cuda_emulator.build(tmp_path_factory.mktemp("tsan"), *names), strict=True))


@pytest.mark.parametrize(
    ("name", "code"),
    [("cpu_tsan", 0), ("cpu_tsan_relaxed_finish", 66), ("cpu_tsan_relaxed_range", 66)],
    ids=["as it is", "an early end", "an early begin"],
)
def test_thread_sanitizer(name: str, code: int, sanitized: dict[str, Path]) -> None:
    """There is no race between the threads, and a planted one is found."""
    # The sanitizer wants its address ranges free, which randomised addresses may not leave.
    prefix = ["setarch", "-R"] if shutil.which("setarch") else []
    environment = os.environ | {"TSAN_OPTIONS": "halt_on_error=1 exitcode=66"}
    command = [*prefix, str(sanitized[name])]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert (done.returncode, "data race" in done.stderr) == (code, code != 0), done.stderr[:4000]
    assert (done.stdout.split() == ["played"]) == (code == 0)


# ---- threads that do not come --------------------------------------------------------------------------------------

_SEIZE, _INTERRUPT, _DETACH = 0x4206, 0x4207, 17
_WAIT_FOR_ALL = 0x40000000


def _ptrace(request: int, thread: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.ptrace(request, thread, None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")


@contextmanager
def stopped(threads: list[int]) -> Iterator[None]:
    """Stop single threads of a child process."""
    try:
        for thread in threads:
            _ptrace(_SEIZE, thread)
    except OSError as error:
        pytest.skip(f"needs permission to stop a thread: {error}")
    for thread in threads:
        _ptrace(_INTERRUPT, thread)
        os.waitpid(thread, _WAIT_FOR_ALL)
    try:
        yield
    finally:
        for thread in threads:
            _ptrace(_DETACH, thread)


@linux
@two_cores
def test_a_step_does_not_wait_for_absent_threads() -> None:
    """An engine continues while its workers are stopped, and they join again when they return."""
    expected = digest(play(make_engine(num_threads=1)))
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(program("threads_play"), env=environment(), **pipes) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        deadline = threading.Timer(120, child.kill)
        deadline.start()
        threads = [int(word) for word in child.stdout.readline().split()]
        assert len(threads) == 2

        def play_there() -> str:
            print(file=child.stdin, flush=True)
            assert child.stdout is not None
            return child.stdout.readline().strip()

        assert play_there() == expected
        for absent in (threads, threads[:1]):
            with stopped(absent):
                assert play_there() == expected
            assert play_there() == expected
        child.stdin.close()
        assert child.wait(timeout=60) == 0
        deadline.cancel()


# ---- processes -----------------------------------------------------------------------------------------------------


def _play_and_send(queue: Any, engines: list[JatEngine]) -> None:
    answer = digest(play(engines[0]))
    num_workers = len(workers())
    _end(engines)
    queue.put((answer, num_workers, len(workers())))


@linux
@two_cores
def test_a_forked_child_has_workers_of_its_own() -> None:
    """They start with the child's first step and end with its engine."""
    engines = [make_engine(num_threads=2)]
    expected = digest(play(engines[0]))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_play_and_send, args=(queue, engines))
    process.start()
    assert queue.get(timeout=60) == (expected, 1, 0)
    process.join(timeout=60)
    assert process.exitcode == 0
    assert digest(play(engines[0])) == expected


def test_a_fork_during_a_step() -> None:
    """Another thread steps all the time; the child's engine is not locked."""
    engines = [make_engine(num_threads=2)]
    expected = digest(play(engines[0]))
    is_over = threading.Event()

    def step() -> None:
        while not is_over.is_set():
            play(engines[0], ["atari"] * 4, 1)

    thread = threading.Thread(target=step)
    thread.start()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    try:
        for _ in range(4):
            process = context.Process(target=_play_and_send, args=(queue, engines[:]))
            process.start()
            assert queue.get(timeout=60)[0] == expected
            process.join(timeout=60)
            assert process.exitcode == 0
    finally:
        is_over.set()
        thread.join()


def _end(engines: list[JatEngine]) -> None:
    engines.clear()
    gc.collect()


def test_an_engine_that_is_not_used_ends_in_a_forked_child() -> None:
    engines = [make_engine(num_threads=2)]
    play(engines[0], steps=1)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_end, args=(engines,))
    process.start()
    process.join(timeout=60)
    assert process.exitcode == 0


@linux
@pytest.mark.parametrize("spin_us", [0, 1_000_000], ids=["asleep", "awake"])
def test_workers_end_with_their_engine(spin_us: int) -> None:
    before = workers()
    engine = make_engine(num_threads=3, spin_us=spin_us)
    play(engine, steps=1)
    assert len(workers() - before) == (2 if len(cores) > 1 else 0)
    del engine
    gc.collect()
    assert workers() <= before


# ---- cores ---------------------------------------------------------------------------------------------------------


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Pin the calling thread to a core."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


@linux
@two_cores
def test_workers_leave_the_caller_its_core() -> None:
    before = workers()
    engine = make_engine(num_threads=2)
    (worker,) = workers() - before
    for core in (*cores, cores[0]):
        with on_core(core):
            play(engine, steps=1)
            assert os.sched_getaffinity(worker) == set(cores) - {core}
            assert os.sched_getaffinity(0) == {core}  # the caller's own is not touched
    assert os.sched_getaffinity(0) == set(cores)


@linux
@two_cores
def test_idle_workers_sleep() -> None:
    before = workers()
    engine = make_engine(num_threads=2)
    play(engine, steps=1)
    (worker,) = workers() - before
    stat = Path(f"/proc/self/task/{worker}/stat")
    for _ in range(1000):
        state = stat.read_text().rpartition(")")[2].split()[0]
        if state == "S":
            return
        time.sleep(0.01)
    pytest.fail(f"the worker's state is {state}")


@linux
def test_on_one_core_there_are_no_workers() -> None:
    """By default an engine has no more threads than cores."""
    with on_core(cores[0]):
        before = workers()
        default = make_engine()
        with pytest.warns(RuntimeWarning, match="num_threads: expected at most the cores .*, 1, got 2"):
            two = make_engine(num_threads=2)
        assert workers() == before
        assert default.num_threads == 1
        assert digest(play(two)) == digest(play(default))


# ---- the quota -----------------------------------------------------------------------------------------------------


def _write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")


VERSION_2 = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup rw,nsdelegate"
VERSION_1 = "33 25 0:29 {part} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
MEMORY = "34 25 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/a/b", "proc/self/mountinfo": VERSION_2}, None),
        (
            {
                "proc/self/cgroup": "0::/a/b",
                "proc/self/mountinfo": VERSION_2,
                "sys/fs/cgroup/a/b/cpu.max": "max 100000",
                "sys/fs/cgroup/a/cpu.max": "150000 100000",
            },
            1.5,
        ),
        (
            {
                "proc/self/cgroup": "5:memory:/m\n4:cpu,cpuacct:/docker/1\n0::/",
                "proc/self/mountinfo": f"{MEMORY}\n{VERSION_1.format(part='/docker/1')}\n{VERSION_2}",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/a",
                "proc/self/mountinfo": VERSION_1.format(part="/"),
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "300000",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000",
            },
            3.0,
        ),
        (
            {
                "proc/self/cgroup": "0::/docker/12",
                "proc/self/mountinfo": VERSION_2.replace(" / ", " /docker/1 "),
                "sys/fs/cgroup/2/cpu.max": "150000 100000",
            },
            None,
        ),
        (
            {
                "proc/self/cgroup": "?\n0::/",
                "proc/self/mountinfo": "\n99 1 0:5 / /x rw - tmpfs\n1 - cgroup2 x y\n"
                + VERSION_2.replace("/sys/fs/cgroup", "/my\\040groups"),
                "my groups/cpu.max": "50000 100000",
            },
            0.5,
        ),
        *(
            (
                {"proc/self/cgroup": "0::/", "proc/self/mountinfo": VERSION_2, "sys/fs/cgroup/cpu.max": text},
                None,
            )
            for text in ("", "max", "50000", "50000 0")
        ),
    ],
    ids=[
        "no control groups",
        "no limit",
        "version 2, above",
        "version 1, a container",
        "version 1, above",
        "another container",
        "odd lines and names",
        *(f"odd limit {number}" for number in range(4)),
    ],
)
def test_cpu_quota(files: dict[str, str], quota: float | None, tmp_path: Path) -> None:
    _write(tmp_path, files)
    assert cpu_quota(tmp_path) == quota
