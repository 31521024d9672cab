"""The database of a run: what was added stays, whatever ends the process, and nothing is replaced."""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import environment
from helpers.runs import episode, evaluation, finished, make_run, read_only

from jat_engine.envs import TASKS, Score, get_task
from jat_engine.runs.database import FILE_NAME, LEASE_SECONDS, RunDatabase, RunError, describe_task, read_run, read_task
from jat_engine.runs.plan import plan_items
from jat_engine.runs.records import Evaluation

TASK, OTHER = "mujoco-reacher", "babyai-go-to"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[RunDatabase]:
    """Return the database of a run of two tasks with three episodes each."""
    with contextlib.closing(RunDatabase(tmp_path, create=True)) as made:
        made.add_tasks([TASKS[TASK], TASKS[OTHER]], {TASK: 3, OTHER: 3}, {TASK: {"mujoco": "3"}, OTHER: {}})
        yield made


# ---- episodes ------------------------------------------------------------------------------------------------------


def test_episodes_come_back_as_they_were(database: RunDatabase) -> None:
    pong = replace(episode(OTHER, 2, 0.1 + 0.2, success=True, lives=3, capped=True), seed=2**64 - 1, digest="ab")
    failed = episode(OTHER, 0, None, length=3)
    database.add([finished(pong, chain=b"\0\1", seconds=0.5), finished(failed)])
    read = database.read()
    assert list(read.tasks) == [OTHER, TASK], "in the order of the published tasks"
    assert read.tasks[OTHER].episodes == (failed, pong)
    assert read.tasks[OTHER].finished == [pong]
    assert read.tasks[TASK].episodes == ()
    assert read.tasks[TASK].description["versions"] == {"mujoco": "3"}
    assert database.chain(OTHER, 2) == b"\0\1"
    assert database.chain(TASK, 2) == b""
    assert database.traces() == {(OTHER, 0): "Traceback ..."}
    assert (database.timings()[OTHER].episodes, database.timings()[OTHER].steps) == (2, 13)


def test_a_finished_episode_is_never_replaced_and_a_failed_one_is(database: RunDatabase) -> None:
    items = plan_items({TASK: 3}, 100)
    database.add([finished(episode(TASK, 0, 1.0)), finished(episode(TASK, 1, None))])
    assert database.missing(items) == items[1:]
    database.add([finished(episode(TASK, 0, 2.0)), finished(episode(TASK, 1, 3.0)), finished(episode(TASK, 2, 4.0))])
    database.add([finished(episode(TASK, 1, None))])
    assert database.read().tasks[TASK].returns.tolist() == [1.0, 3.0, 4.0]
    assert database.missing(items) == []
    assert database.traces() == {}
    assert database.mean_lengths() == {TASK: 10.0}


def test_the_larger_number_of_episodes_counts(database: RunDatabase) -> None:
    for planned in (5, 2):
        database.add_tasks([TASKS[TASK]], {TASK: planned}, {TASK: {}})
    assert {name: one["planned"] for name, one in database.task_descriptions().items()} == {TASK: 5, OTHER: 3}


def test_claims_end_with_their_episode_or_their_lease(database: RunDatabase) -> None:
    items = plan_items({TASK: 3}, 100)
    before = time.time()
    database.claim(items[:2], "worker 1")
    claims = database.claims()
    assert set(claims) == {(TASK, 0), (TASK, 1)}
    worker, expires = claims[TASK, 0]
    assert worker == "worker 1"
    assert before + LEASE_SECONDS <= expires <= time.time() + LEASE_SECONDS
    database.add([finished(episode(TASK, 0, 1.0))])
    assert set(database.claims()) == {(TASK, 1)}
    assert database.missing(items) == items[1:], "a claim is no result"
    assert database.clear_claims() == 1
    assert database.claims() == {}


def test_tasks_of_ones_own_come_back_without_their_environment(database: RunDatabase) -> None:
    cart = replace(get_task("gym:CartPole-v1"), random=Score(20.0, 3.0), demonstrator=Score(500.0, None))
    read = read_task(cart.name, json.loads(json.dumps(describe_task(cart))))
    for name in ("observation", "action", "context_window", "domain", "success", "module", "random", "demonstrator"):
        assert getattr(read, name) == getattr(cart, name)
    database.add_tasks([cart], {cart.name: 1}, {cart.name: {}})
    assert list(database.read().tasks)[-1] == cart.name, "after the published ones"


# ---- processes that end --------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from helpers.runs import episode, finished
from jat_engine.envs import TASKS
from jat_engine.runs.database import RunDatabase

database = RunDatabase(sys.argv[1], create=True)
database.add_tasks([TASKS["mujoco-reacher"]], {"mujoco-reacher": 9}, {"mujoco-reacher": {}})
for index in range(3):
    database.add([finished(episode("mujoco-reacher", index, float(index)))])
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """Return the folder of a run whose process was killed after it had added three episodes."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=environment(), check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / f"{FILE_NAME}-wal").stat().st_size, "the file itself does not have them yet"
    return tmp_path


def test_what_was_added_is_there_after_a_kill(killed: Path) -> None:
    assert read_run(killed).tasks[TASK].returns.tolist() == [0.0, 1.0, 2.0]
    assert [path.name for path in killed.iterdir()] == [FILE_NAME]


def test_a_folder_that_can_only_be_read(killed: Path) -> None:
    with read_only(killed):
        assert read_run(killed).tasks[TASK].returns.tolist() == [0.0, 1.0, 2.0]
    read_run(killed)  # the log is gone
    with read_only(killed):
        assert read_run(killed).tasks[TASK].returns.tolist() == [0.0, 1.0, 2.0]
        with contextlib.closing(RunDatabase(killed)) as database, pytest.raises(RunError, match="cannot be written"):
            database.add([finished(episode(TASK, 3, 1.0))])


def test_a_log_that_cannot_be_read_is_not_left_out(killed: Path) -> None:
    (killed / f"{FILE_NAME}-shm").unlink()  # such as of a copy of the other two files
    with read_only(killed), pytest.raises(RunError, match="copy the folder to where it can be written"):
        read_run(killed)


def test_a_run_is_read_while_it_is_played(database: RunDatabase) -> None:
    with contextlib.closing(RunDatabase(database.folder)) as reader:
        for count in (1, 2):
            database.add([finished(episode(TASK, count, 1.0))])
            assert len(reader.read().tasks[TASK].episodes) == count
    with read_only(database.folder):
        assert len(read_run(database.folder).tasks[TASK].episodes) == 2


def test_a_full_disk_loses_nothing(
    database: RunDatabase, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file may become larger than 100,000 bytes, which the database reaches first."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("elsewhere")))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(RunError, match=f"{FILE_NAME}: cannot be written: ") as refused:  # noqa: PT012
            for index in range(1000):
                last = [finished(episode(TASK, index, float(index)))]
                database.add(last)
        assert len(database.read().tasks[TASK].episodes) == index
        folder = database.rescue(last)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cannot be written" in str(refused.value)
    assert read_run(folder).tasks[TASK].returns.tolist() == list(range(index + 1))
    database.add(last)
    assert read_run(database.folder) == read_run(folder)


# ---- files that are no run -----------------------------------------------------------------------------------------


def test_a_process_that_was_killed_before_the_tables_were_there(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).touch()
    with pytest.raises(RunError, match="expected the folder of a run"):
        RunDatabase(tmp_path)
    with contextlib.closing(RunDatabase(tmp_path, create=True)) as database:
        assert database.settings == {}
    assert read_run(tmp_path) == Evaluation()


def test_folders_and_files_that_are_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"expected the folder of a run, got no run\.sqlite"):
        RunDatabase(tmp_path)
    assert list(tmp_path.iterdir()) == []

    path = tmp_path / FILE_NAME
    path.write_text("{}" * 1000)
    with pytest.raises(RunError, match=r"run\.sqlite: cannot be opened: .*it is not a run of jat_engine"):
        RunDatabase(tmp_path, create=True)
    assert path.read_text() == "{}" * 1000


def test_a_run_of_another_version(tmp_path: Path) -> None:
    make_run(tmp_path, evaluation({TASK: [1.0]}))
    with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection:
        connection.execute("pragma user_version = 7")
    with pytest.raises(RunError, match="expected a run of version 1, got version 7; use the release"):
        RunDatabase(tmp_path, create=True)


def test_a_run_comes_back_as_it_was_made(tmp_path: Path) -> None:
    made = evaluation({TASK: [1.0, None], "atari-pong": [-21.0]}, dtype="int8")
    read = read_run(make_run(tmp_path, made))
    assert read.settings == made.settings
    assert {name: task.episodes for name, task in read.tasks.items()} == {
        name: task.episodes for name, task in made.tasks.items()
    }
    assert not read.complete
