"""The players: one process each, one job each at a time."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

from .worker import Job, Played, Steps, play

_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_END_SECONDS = 5.0


class Players:
    """Processes that play jobs, started as they are needed and ended by `close`.

    Args:
        count: of processes, at most.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._context = multiprocessing.get_context("spawn")  # simulators and BLAS do not survive a fork
        self._processes: dict[Connection, Any] = {}
        self._jobs: dict[Connection, Job] = {}

    def idle(self) -> int:
        """How many more jobs could be given."""
        return self.count - len(self._jobs)

    def give(self, job: Job) -> None:
        """Send a job to a player that has none."""
        connection = next((c for c in self._processes if c not in self._jobs), None) or self._start()
        self._jobs[connection] = job
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has died: `receive` says so
            connection.send(job)

    def _start(self) -> Connection:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=play, args=(theirs,), name="jat-engine player", daemon=True)
        with _environment_of_players():
            process.start()
        theirs.close()  # so that the end of the process is the end of the connection
        self._processes[ours] = process
        return ours

    def receive(self) -> list[Played | Steps]:
        """Wait for messages; none come if nobody plays.

        Raises:
            DataError, OSError: a player met one.
            ChildProcessError: a player's process ended.
            RuntimeError: a player failed otherwise; the message has its traceback.
        """
        messages: list[Played | Steps] = []
        if not self._jobs:
            return messages
        for connection in wait(list(self._processes)):
            assert isinstance(connection, Connection), "only those are waited for"
            try:
                message = connection.recv()
            except (EOFError, ConnectionResetError):
                raise ChildProcessError(self._ended(connection)) from None
            if isinstance(message, Steps):
                messages.append(message)
                continue
            del self._jobs[connection]
            if isinstance(message, Played):
                messages.append(message)
            elif message.error is not None:
                raise message.error
            else:
                raise RuntimeError(f"{_words(message.job)} failed:\n{message.trace}")
        return messages

    def _ended(self, connection: Connection) -> str:
        process = self._processes[connection]
        process.join(_END_SECONDS)
        code = process.exitcode
        how = f"was ended by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
        hint = " (out of memory?)" if code == -signal.SIGKILL else "" if not code else "; its last words are above"
        job = self._jobs.get(connection)
        return f"{_words(job) if job else 'a player without a job'}: the process that played {how}{hint}"

    def close(self) -> None:
        """End all processes, whatever they do; chunks are written as a whole or not at all."""
        for connection, process in self._processes.items():
            connection.close()
            process.terminate()
        for process in self._processes.values():
            process.join(_END_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()
        self._processes, self._jobs = {}, {}


def _words(job: Job) -> str:
    seeds = f"seed {job.seed + job.first}"
    if job.stop - job.first > 1:
        seeds += f" to {job.seed + job.stop - 1}"
    return f"{job.task}, {seeds}"


@contextlib.contextmanager
def _environment_of_players() -> Iterator[None]:
    """One thread each, and no Ctrl-C from the beginning: both must stand when the interpreter starts."""
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    main = threading.current_thread() is threading.main_thread()  # only it may set handlers
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
    os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        if main:
            signal.signal(signal.SIGINT, handler if handler is not None else signal.SIG_DFL)
