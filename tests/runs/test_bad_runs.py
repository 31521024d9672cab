"""Environments that go wrong, folders that cannot be used, and a full disk: one line each, and nothing is lost."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import strange_tasks
from helpers.runs import read_only

from jat_engine.atomic_io import locked
from jat_engine.cli import main
from jat_engine.envs import get_task, load_task_module
from jat_engine.runs.database import FILE_NAME, RunDatabase, read_run
from jat_engine.runs.hosts import HostEndedError, WorkerHost
from jat_engine.runs.plan import MAX_DEATHS, Item
from jat_engine.runs.slots import Act, Begin, PlayOptions

EVAL = ["eval", "--model_name_or_path", "jat-mini", "--use_cpu", "--seed", "100"]
STRANGE = [*EVAL, "--task_module", strange_tasks.MODULE, "--tasks"]


def ended(folder: Path) -> dict[tuple[str, int], float]:
    """Return (task, index) -> when the episode ended, of those that did not fail."""
    with contextlib.closing(sqlite3.connect(folder / FILE_NAME)) as connection:
        rows = connection.execute("select task, number, ended from episodes where error = ''").fetchall()
    return {(task, number): when for task, number, when in rows}


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "results.json").read_bytes()).hexdigest()


def error_lines(text: str) -> list[str]:
    prefix = "jat-engine: error: "
    return [line.removeprefix(prefix) for line in text.splitlines() if line.startswith(prefix)]


# ---- environments --------------------------------------------------------------------------------------------------


def test_episodes_that_fail_are_recorded_and_the_others_are_played(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(strange_tasks.CHANGED, "0")
    kinds = {
        "raises": (5, "TaskError: strange-raises: step() of the environment raised RuntimeError: the pole has broken"),
        "leaves": (5, "TaskError: strange-leaves: step() of the environment raised SystemExit: 0"),
        "nan": (5, "ValueError: reward: expected a finite number, got nan; mend the environment"),
        "nan-observation": (6, "InputError: continuous_observation: expected finite float32 values, got nan at 0"),
    }
    tasks = [f"strange-{kind}" for kind in (*kinds, "plain", "endless")]
    flags = [*STRANGE, *tasks, "--num_episodes", "3", "--max_steps", "15", "--num_workers", "0"]
    assert main([*flags, "--output_dir", str(tmp_path)]) == 1

    run = read_run(tmp_path)
    for kind, (steps, reason) in kinds.items():
        (one,) = (one for one in run.tasks[f"strange-{kind}"].episodes if one.failed)
        assert (one.index, one.seed, one.length, one.return_, one.error) == (1, 101, steps, None, reason)
    assert [one.length for one in run.tasks["strange-plain"].finished] == [strange_tasks.LENGTH] * 3
    assert [one.capped for one in run.tasks["strange-endless"].finished] == [True] * 3
    lines = error_lines(capsys.readouterr().err)
    assert sorted(line.partition(": failed in ")[0] for line in lines) == sorted(f"strange-{kind}" for kind in kinds)
    found = json.loads((tmp_path / "results.json").read_text())
    assert set(found["failed"]) == {f"strange-{kind}" for kind in kinds}
    assert found["complete"] is False

    before, first = ended(tmp_path), digest(tmp_path)
    assert len(before) == 14
    assert main([*EVAL, "--resume", "--max_steps", "15", "--output_dir", str(tmp_path)]) == 1
    assert ended(tmp_path) == before, "only those that failed are played again"
    assert digest(tmp_path) == first
    monkeypatch.setattr(strange_tasks.Walk, "_go_wrong", lambda _, reward: reward)
    assert main([*EVAL, "--resume", "--max_steps", "15", "--output_dir", str(tmp_path)]) == 0
    assert before.items() <= ended(tmp_path).items()
    assert len(ended(tmp_path)) == 18


def test_an_episode_that_ends_its_process_again_and_again_fails_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*STRANGE, "strange-crashes-in-reset", "strange-plain", "--num_episodes", "2", "--num_workers", "1"]
    assert main([*flags, "--output_dir", str(tmp_path)]) == 1
    run = read_run(tmp_path)
    (failed,) = (one for one in run.tasks["strange-crashes-in-reset"].episodes if one.failed)
    assert failed.index == 1
    assert failed.error.startswith("the process that played it was ended by signal 11")
    assert failed.error.endswith(f", {MAX_DEATHS} times")
    assert len(ended(tmp_path)) == 3
    (line,) = error_lines(capsys.readouterr().err)
    assert line.startswith("strange-crashes-in-reset: failed in episode")
    with contextlib.closing(RunDatabase(tmp_path)) as database:
        assert database.claims() == {}


def test_a_run_that_its_environment_has_ended_goes_on_in_worker_processes(tmp_path: Path) -> None:
    """A short run has none at first: the crash ends it, and the next one plays the other episodes."""
    flags = [*STRANGE, "strange-exits", "--num_episodes", "2", "--output_dir", str(tmp_path)]
    program = f"from jat_engine.cli import main; raise SystemExit(main({flags!r}))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, check=False, capture_output=True)
    assert done.returncode == 3, done.stderr.decode()
    assert main([*EVAL, "--resume", "--output_dir", str(tmp_path)]) == 1
    (failed,) = (one for one in read_run(tmp_path).tasks["strange-exits"].episodes if one.failed)
    assert (failed.index, failed.length) == (1, 5)
    assert failed.error.startswith("the process that played it ended with exit code 3")
    assert set(ended(tmp_path)) == {("strange-exits", 0)}


def test_a_worker_that_hangs_ends_with_its_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    load_task_module(strange_tasks.MODULE)
    task = get_task("strange-hangs")
    host = WorkerHost(0, {task.name: task}, PlayOptions(hang_seconds=3.0), 1)

    def play() -> None:
        host.send([Begin(0, Item(task.name, 0, 101))])
        while True:
            WorkerHost.wait([host])
            if host.receive():
                host.send([Act(0, 0)])

    try:
        with pytest.raises(HostEndedError, match="ended with exit code 1; its last words are above"):
            play()
    finally:
        host.close()
    assert "_go_wrong" in capfd.readouterr().err


# ---- folders and databases -----------------------------------------------------------------------------------------

REACHER = [*EVAL, "--tasks", "mujoco-reacher", "--num_episodes", "1", "--max_steps", "4", "--num_workers", "0"]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one episode."""
    folder = tmp_path_factory.mktemp("bad") / "run"
    assert main([*REACHER, "--output_dir", str(folder)]) == 0
    return folder


@pytest.fixture
def run(played: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return shutil.copytree(played, tmp_path / "run")


def execute(run: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(run / FILE_NAME)) as connection, connection:
        connection.execute(statement)


def edit_settings(run: Path, old: str, new: str) -> None:
    """Replace a text in the settings or in the description of the task."""
    execute(run, f"update run set value = replace(value, '{old}', '{new}') where key = 'settings'")
    execute(run, f"update tasks set description = replace(description, '{old}', '{new}')")


def put_another_database(run: Path) -> None:
    (run / FILE_NAME).unlink()
    execute(run, "create table other (value)")


def cut_off(run: Path) -> None:
    data = (run / FILE_NAME).read_bytes()
    (run / FILE_NAME).write_bytes(data[: len(data) // 2])


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "version": (lambda run: execute(run, "pragma user_version = 7"), "expected a run of version 1, got version 7"),
    "another database": (put_another_database, "expected a run of jat_engine, got another database"),
    "no database": (lambda run: (run / FILE_NAME).write_text("x" * 9000), "file is not a database; it is not a run"),
    "cut off": (cut_off, "is damaged: name another folder"),
    "value": (lambda run: execute(run, "update tasks set description = '{'"), "cannot be read: JSONDecodeError"),
    "no run": (lambda run: (run / FILE_NAME).unlink(), "results.json without run.sqlite, of unknown settings"),
    "weights": (lambda run: edit_settings(run, '"weights_sha256": "', '"weights_sha256": "x'), "(weights_sha256 x"),
    "dtype": (lambda run: edit_settings(run, '"dtype": "', '"dtype": "x'), "other settings (dtype x"),
    "versions": (lambda run: edit_settings(run, '"torch": "', '"torch": "x'), "(versions.torch x"),
    "simulator": (lambda run: edit_settings(run, '"mujoco": "', '"mujoco": "x'), "with versions.mujoco x"),
    "machine": (lambda run: edit_settings(run, '"instruction_set": "', '"instruction_set": "x'), "(instruction_set x"),
}


def refused(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """Return the line of a command that is refused with exit code 2."""
    capsys.readouterr()
    assert main([*REACHER, *flags]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = error_lines(said.err)
    return line


@pytest.mark.parametrize("name", BROKEN)
def test_runs_that_cannot_be_gone_on_with_are_left_as_they_are(
    name: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, said = BROKEN[name]
    damage(run)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    for flags in ([], ["--resume"]) if name != "no run" else ([],):
        assert said in refused(capsys, *flags, "--output_dir", str(run))
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_folders_that_cannot_be_used(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for folder in (file, file / "folder"):
        line = refused(capsys, "--output_dir", str(folder))
        assert line.startswith(f"--output_dir: expected a folder that can be written to, got {folder}")
    none = tmp_path / "none"
    assert "expected the folder of a run" in refused(capsys, "--resume", "--output_dir", str(none))
    assert not none.exists()
    with read_only(run):
        assert "that can be written to" in refused(capsys, "--num_episodes", "2", "--output_dir", str(run))
    assert "expected one of them, got both" in refused(capsys, "--resume", "--overwrite", "--output_dir", str(run))
    with locked(run):
        assert "another evaluation writes its results there" in refused(capsys, "--output_dir", str(run))


@pytest.mark.parametrize(("flag", "least"), [("--num_workers", 0), ("--num_envs", 1)])
def test_numbers_of_processes_and_environments(
    flag: str, least: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in ("-1", "1.5", "many", "", "٣"):
        line = refused(capsys, "--output_dir", str(tmp_path), f"{flag}={value}")
        assert line == f"{flag}: expected auto or an integer of at least {least}, got {value!r}"


def test_a_run_that_was_killed_before_it_had_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RunDatabase(tmp_path, create=True).close()
    assert "got one without tasks; leave out --resume" in refused(capsys, "--resume", "--output_dir", str(tmp_path))
    assert main([*REACHER, "--output_dir", str(tmp_path), "--num_envs", "9" * 20]) == 0, "as many as there are episodes"


# ---- a full disk ---------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        os.getuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=False).returncode
    ):
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_ends_a_run_that_goes_on_with_more_space(
    small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*EVAL, "--tasks", "babyai-go-to-obj", "--max_steps", "9", "--num_episodes", "8", "--num_envs", "1"]
    flags += ["--num_workers", "0", "--output_dir"]
    assert main([*flags, str(tmp_path / "whole")]) == 0
    run, filler = small_disk / "run", small_disk / "filler"
    filler.write_bytes(bytes(900 * 1024))
    capsys.readouterr()
    assert main([*flags, str(run)]) == 1
    full, unwritten = error_lines(capsys.readouterr().err)
    assert "database or disk is full; free space on its disk, then play on with --resume" in full
    assert "the results cannot be written" in unwritten

    filler.unlink()
    before = ended(run)
    assert 0 < len(before) < 8
    assert main([*EVAL, "--resume", "--max_steps", "9", "--output_dir", str(run)]) == 0
    assert before.items() <= ended(run).items()
    assert digest(run) == digest(tmp_path / "whole")
    assert not (run / f"{FILE_NAME}-wal").exists()
