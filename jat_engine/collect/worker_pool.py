"""Run workers in processes of their own, each with one job at a time."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

from .worker import Job, Played, Steps, run_worker

_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_END_SECONDS = 5.0


class WorkerPool:
    """Start worker processes when they are needed, give them jobs, and receive their messages; `close` ends them.

    Args:
        count: most processes.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._context = multiprocessing.get_context("spawn")  # simulators and BLAS do not survive a fork
        self._processes: dict[Connection, Any] = {}
        self._jobs: dict[Connection, Job] = {}

    def idle(self) -> int:
        """Return the number of jobs that can be given right now."""
        return self.count - len(self._jobs)

    def give(self, job: Job) -> None:
        """Send a job to an idle worker, starting one if need be.

        Args:
            job: given only while `idle()` is above 0.
        """
        connection = next((c for c in self._processes if c not in self._jobs), None) or self._start()
        self._jobs[connection] = job
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has died, which `receive` reports
            connection.send(job)

    def _start(self) -> Connection:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=run_worker, args=(theirs,), name="jat-engine worker", daemon=True)
        with _worker_environment():
            process.start()
        theirs.close()  # so that the end of the process is the end of the connection
        self._processes[ours] = process
        return ours

    def receive(self) -> list[Played | Steps]:
        """Wait for messages and return them; an empty list if no worker has a job.

        Raises:
            DataError, ExpertError, TaskError, OSError: raised in a worker.
            ChildProcessError: a worker process ended.
            RuntimeError: a job failed in any other way; the message has its traceback.
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
        """Describe the end of a worker process, for an error message."""
        process = self._processes[connection]
        process.join(_END_SECONDS)
        code = process.exitcode
        how = f"was ended by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
        hint = " (out of memory?)" if code == -signal.SIGKILL else "" if not code else "; its last words are above"
        job = self._jobs.get(connection)
        return f"{_words(job) if job else 'a worker without a job'}: the process that played {how}{hint}"

    def close(self) -> None:
        """End all processes at once, even in the middle of a job: chunks are written atomically."""
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
    return f"{job.task.name}, {seeds}"


@contextlib.contextmanager
def _worker_environment() -> Iterator[None]:
    """Limit new processes to one thread each and let them ignore Ctrl-C.

    Both must be set before their interpreter starts.
    """
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    main = threading.current_thread() is threading.main_thread()  # no other thread may set handlers
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
