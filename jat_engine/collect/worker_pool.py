"""Run workers in processes of their own, each with one job at a time."""

from __future__ import annotations

import contextlib
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from ..worker_process import describe_end, end_workers, start_worker
from .worker import Job, Played, Steps, run_worker


class WorkerPool:
    """Start worker processes when they are needed, give them jobs, and receive their messages; `close` ends them.

    Args:
        count: most processes.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._processes: dict[Connection, BaseProcess] = {}
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
        connection, process = start_worker(run_worker)
        self._processes[connection] = process
        return connection

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
        job = self._jobs.get(connection)
        who = _words(job) if job else "a worker without a job"
        return f"{who}: the process that played {describe_end(self._processes[connection])}"

    def close(self) -> None:
        """End all processes at once, even in the middle of a job: chunks are written atomically."""
        end_workers(self._processes)
        self._processes, self._jobs = {}, {}


def _words(job: Job) -> str:
    seeds = f"seed {job.seed + job.first}"
    if job.stop - job.first > 1:
        seeds += f" to {job.seed + job.stop - 1}"
    return f"{job.task.name}, {seeds}"
