"""Runs of `jat-engine eval` that are killed at random moments and gone on with, and what must be true afterwards."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from helpers import environment
from jat_engine.runs.database import FILE_NAME

TASKS = ("atari-pong", "babyai-go-to-obj", "metaworld-drawer-open", "mujoco-reacher")
"""One of each domain."""

FLAGS = ("--model_name_or_path", "jat-mini", "--use_cpu", "--max_steps", "60", "--seed", "7000")
"""Of all commands, apart from the folder and the number of episodes."""

LAST_EPISODE = "The environments could take"
"""Part of the message that is printed when the last episode has ended, before the files are written."""

_MOST_SECONDS, _END_SECONDS, _PAUSE = 1800.0, 30.0, 0.02


@dataclass(frozen=True)
class Kill:
    """Kill of a process.

    Attributes:
        victim: "driver", or "worker" for one of its workers.
        moment: "start": of the process; "episode": one has ended; "files": the last one has ended.
        seconds: after that.
    """

    victim: str
    moment: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.victim}, {self.seconds:.2f} s after {self.moment}"


@dataclass
class Command:
    """A process of `jat-engine eval` in a session of its own, whose processes can be counted and killed.

    Args:
        folder: of the run.
        flags: further flags.
    """

    folder: Path
    flags: Sequence[str]
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jat_engine.cli", "eval", *FLAGS, "--output_dir", str(self.folder), *self.flags],
            env=environment() | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._before = count_episodes(self.folder)

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.said.extend(iter(self.process.stderr.readline, ""))

    def has_come(self, moment: str) -> bool:
        """Return True if a moment has come; see `Kill`."""
        if moment == "files":
            return any(LAST_EPISODE in line for line in self.said)
        return moment == "start" or count_episodes(self.folder) > self._before

    def await_moment(self, moment: str, seconds: float = 0.0) -> bool:
        """Wait for a moment, see `Kill`, and return whether the process is still there."""
        while not self.has_come(moment) and self.process.poll() is None:
            time.sleep(0.01)
        end = (self.began if moment == "start" else time.monotonic()) + seconds
        while time.monotonic() < end and self.process.poll() is None:
            time.sleep(0.005)
        return self.process.poll() is None

    def kill(self, kill: Kill, numbers: random.Random) -> bool:
        """Kill a process, and return whether there was one to kill."""
        if not self.await_moment(kill.moment, kill.seconds):
            return False
        victim = self.process.pid
        if kill.victim == "worker":
            workers = [pid for pid in processes_of(self.process.pid) if "spawn_main" in command_of(pid)]
            if not workers:
                return False
            victim = numbers.choice(workers)
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
            return True
        return False

    def wait(self) -> int:
        """Wait until the process has ended, and all others of its session, and return its exit code."""
        self._await(lambda: self.process.poll() is not None, _MOST_SECONDS)
        self._await(lambda: not processes_of(self.process.pid), _END_SECONDS)
        self._reader.join()
        return self.process.wait()

    def _await(self, is_true: Callable[[], bool], seconds: float) -> None:
        """Wait until something is true; at most so long, of time in which this process is not stopped."""
        for _ in range(int(seconds / _PAUSE)):
            if is_true():
                return
            time.sleep(_PAUSE)
        left = [command_of(pid) for pid in processes_of(self.process.pid)]
        raise AssertionError(f"these processes are left: {left}; {self.said}")


def processes_of(session: int) -> list[int]:
    """Return the processes of a session that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, its_session = path.read_text().rpartition(")")[2].split()[:4]
            if int(its_session) == session and state != "Z":
                found.append(int(path.parent.name))
    return found


def command_of(pid: int) -> str:
    """Return the command line of a process."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def shared_memory() -> set[str]:
    """Return the names of this package's files in shared memory."""
    folder = Path("/dev/shm")
    return {path.name for path in folder.glob("jat-engine-*")} if folder.is_dir() else set()


def count_episodes(folder: Path) -> int:
    """Return the number of episodes of a run, which may be played at this time."""
    if not (folder / FILE_NAME).exists():
        return 0
    with contextlib.suppress(sqlite3.Error):  # before the tables are there
        address = f"{(folder / FILE_NAME).absolute().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(address, uri=True)) as connection:
            return int(connection.execute("select count(*) from episodes").fetchone()[0])
    return 0


def finished_episodes(folder: Path) -> dict[tuple[str, int], float]:
    """Return (task, index) -> when it ended, of the episodes that a run has."""
    if not (folder / FILE_NAME).exists():
        return {}
    with contextlib.closing(sqlite3.connect(folder / FILE_NAME)) as connection:
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
        if not connection.execute("select count(*) from sqlite_master where name = 'episodes'").fetchone()[0]:
            return {}
        rows = connection.execute("select task, number, ended from episodes where error = ''").fetchall()
        failed = connection.execute("select task, number, error from episodes where error <> ''").fetchall()
    assert failed == []
    return {(task, number): when for task, number, when in rows}


def has_tasks(folder: Path) -> bool:
    """Return True if a run was begun, so that `--resume` knows its tasks."""
    if not (folder / FILE_NAME).exists():
        return False
    with contextlib.closing(sqlite3.connect(folder / FILE_NAME)) as connection, contextlib.suppress(sqlite3.Error):
        return bool(connection.execute("select count(*) from tasks").fetchone()[0])
    return False


def flags_of(folder: Path, num_episodes: int, *more: str) -> list[str]:
    """Return the flags with which a run is begun, or gone on with if it was begun before."""
    begun = ["--tasks", *TASKS, "--num_episodes", str(num_episodes)]
    return [*(["--resume"] if has_tasks(folder) else begun), *more]


def results_digest(folder: Path) -> str:
    """Return the SHA-256 of `results.json`."""
    return hashlib.sha256((folder / "results.json").read_bytes()).hexdigest()


def check_finished(folder: Path, num_episodes: int, digest: str) -> None:
    """Check that a run is whole and that nothing else is left of it."""
    assert results_digest(folder) == digest
    assert len(finished_episodes(folder)) == num_episodes * len(TASKS)
    with contextlib.closing(sqlite3.connect(folder / FILE_NAME)) as connection:
        assert connection.execute("select count(*) from claims").fetchone() == (0,)
    names = {path.name for path in folder.iterdir()}
    assert names == {FILE_NAME, "results.json", "evaluations.json", "timing.json"}
