"""Play episodes with a task's expert in a worker process, and define the messages it receives and sends."""

from __future__ import annotations

import contextlib
import faulthandler
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..atomic_io import naming
from ..datasets.parquet import episode_row, schema
from ..datasets.schema import check_episode, task_columns
from ..envs import Task
from ..errors import DataError, MissingSimulatorError, TaskError
from ..evaluation.environment import evaluation_env
from ..evaluation.random_policy import play_randomly
from ..worker_process import prepare_worker
from .chunks import RESUME, Attempt, Chunk, write_chunk
from .experts import ExpertChoice, ExpertError, demonstrate, open_expert

_REPORT_SECONDS = 0.5

_EXPLAINED = (DataError, ExpertError, TaskError, MissingSimulatorError, OSError)
"""Errors whose message needs no traceback."""

_HANG_SECONDS = 600
"""Longest time without a step or an episode's end, before the process prints its traceback and ends."""


@dataclass(frozen=True)
class Job:
    """Order to play attempts `first` to `stop - 1` of a task and to write them as a chunk in `folder`.

    Attributes:
        seed: seed of attempt 0; attempt i has seed + i.
        noise, keep_failures: as in `collect`.
        expert: a given expert; None for that of this package.
        is_measurement: the random policy plays, and only returns and lengths are stored.
    """

    task: Task
    first: int
    stop: int
    folder: Path
    seed: int
    noise: float
    keep_failures: bool
    expert: ExpertChoice | None = None
    is_measurement: bool = False


@dataclass(frozen=True)
class Steps:
    """Message during a job: `count` steps were played since the last such message.

    Attributes:
        task: name of the task.
        count: steps.
    """

    task: str
    count: int


@dataclass(frozen=True)
class Played:
    """Message that a job is done, with its chunk."""

    job: Job
    chunk: Chunk


@dataclass(frozen=True)
class Failed:
    """Message that a job failed.

    Attributes:
        error: an error whose message says everything, to raise as it is; None for any other exception.
        trace: the traceback.
    """

    job: Job
    error: Exception | None
    trace: str


def run_worker(connection: Connection) -> None:
    """Receive jobs and send messages until the connection or the parent process ends.

    Args:
        connection: receives `Job`; sends `Steps`, and one `Played` or `Failed` per job.
    """
    prepare_worker()
    worker = Worker(connection)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError), contextlib.closing(worker):
        while True:
            worker.run(connection.recv())


class Worker:
    """Play jobs one at a time, keeping the environment of the last task, and its expert.

    Args:
        connection: receives the messages.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._task: Task | None = None
        self._env: Any = None
        self._expert: Any = None
        self._choice: ExpertChoice | None = None
        self._reported, self._steps = time.monotonic(), 0

    def run(self, job: Job) -> None:
        """Play a job and send `Played` or `Failed`."""
        message: Played | Failed
        try:
            self._open(job.task)
            message = Played(job, self._measure(job) if job.is_measurement else self._play(job))
        except Exception as error:  # a simulator may raise anything; the parent reports it
            known = type(error)(str(error)) if isinstance(error, _EXPLAINED) else None
            message = Failed(job, known, traceback.format_exc())

        faulthandler.cancel_dump_traceback_later()
        self._connection.send(message)

    def _open(self, task: Task) -> None:
        if self._task != task:
            self.close()
            self._env = evaluation_env(task)
            self._task = task

    def _open_expert(self, job: Job) -> None:
        if self._expert is None or self._choice != job.expert:
            self._expert = open_expert(job.task, self._env, job.expert)
            self._choice = job.expert

    def _measure(self, job: Job) -> Chunk:
        """Play all attempts of a job with the random policy, and write a chunk without rows."""
        attempts: list[Attempt] = []
        for index in range(job.first, job.stop):
            faulthandler.dump_traceback_later(_HANG_SECONDS, exit=True)
            total, steps = play_randomly(job.task, self._env, job.seed + index, lambda: self._count(job.task.name))
            attempts.append(Attempt(index, total, steps, None, kept=False))
        with naming(job.folder, RESUME):
            return write_chunk(job.folder, schema(task_columns(job.task)), attempts, [], "")

    def _play(self, job: Job) -> Chunk:
        """Play all attempts of a job and write its chunk."""
        task = job.task
        self._open_expert(job)
        attempts: list[Attempt] = []
        rows: list[pa.Table] = []
        for index in range(job.first, job.stop):
            faulthandler.dump_traceback_later(_HANG_SECONDS, exit=True)
            played = demonstrate(
                self._env,
                self._expert,
                task=task,
                seed=job.seed + index,
                noise=job.noise,
                on_step=lambda *_: self._count(task.name),
            )

            # An episode without steps, of an expert that was lost at once, cannot be stored.
            kept = played.length > 0 and (job.keep_failures or played.success is not False)
            if kept:
                source = f"{task.name}: episode with seed {job.seed + index}"
                rows.append(episode_row(check_episode(played.columns, source=source, task=task)))
            attempts.append(Attempt(index, float(played.return_), played.length, played.success, kept))
        with naming(job.folder, RESUME):
            return write_chunk(job.folder, schema(task_columns(task)), attempts, rows, expert_name(self._expert))

    def _count(self, task: str) -> None:
        """Count a step; now and then send the count and restart the watchdog."""
        self._steps += 1
        now = time.monotonic()
        if now - self._reported > _REPORT_SECONDS:
            self._connection.send(Steps(task, self._steps))
            self._reported, self._steps = now, 0
            faulthandler.dump_traceback_later(_HANG_SECONDS, exit=True)

    def close(self) -> None:
        """Close the environment. A later job opens its own."""
        if self._env is not None:
            self._env.close()
        self._task = self._env = self._expert = None


def expert_name(expert: Any) -> str:
    """Return an expert's description, or the first line of the docstring of its class, or the class's name."""
    if described := getattr(expert, "description", ""):
        return str(described)
    documented = (type(expert).__doc__ or "").strip()
    return documented.splitlines()[0] if documented else type(expert).__name__
