"""Processes that play environments: how they start, how they end with their parent, and how their end is described."""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess, parent_process
from typing import Any

_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_END_SECONDS = 5.0


def start_worker(target: Callable[..., None], *args: Any) -> tuple[Connection, BaseProcess]:
    """Start a process with one thread for each library, which ignores Ctrl-C.

    Args:
        target: a function of a module, called with the worker's end of a connection and `args`. It calls
            `prepare_worker` first.
        args: further arguments, pickled.

    Returns:
        The parent's end of the connection, which ends with the process, and the process.
    """
    context = multiprocessing.get_context("spawn")  # simulators and BLAS do not survive a fork
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *args), name="jat-engine worker", daemon=True)
    try:
        with _worker_environment():
            process.start()
    finally:
        theirs.close()  # so that the end of the process is the end of the connection
    return ours, process


def prepare_worker() -> None:
    """Prepare a worker's process: it ignores Ctrl-C, prints to standard error, and ends with its parent.

    A crash of a simulator prints where it was called.
    """
    faulthandler.enable(all_threads=False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent ends this one
    os.dup2(2, 1)  # simulators print remarks, and standard output is for results
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process as soon as its parent ends, whatever a simulator is doing."""
    parent = parent_process()
    assert parent is not None, "a worker runs in a process of its own"
    wait([parent.sentinel])
    os._exit(1)


@contextlib.contextmanager
def watched(seconds: float) -> Iterator[None]:
    """End this process with a traceback if the `with` block takes longer."""
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


class Watchdog:
    """End this process with a traceback if it stops making progress, even within code that holds Python's lock.

    Args:
        seconds: without progress.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._pause = seconds, seconds / 60
        self._armed: float | None = None

    def progress(self) -> None:
        """Note progress. Setting the timer starts a thread, so that is done a few times a minute only."""
        now = time.monotonic()
        if self._armed is None or now - self._armed > self._pause:
            faulthandler.dump_traceback_later(self._seconds + self._pause, exit=True)
            self._armed = now

    def receive(self, connection: Connection) -> Any:
        """Receive a message, however long that takes.

        Raises:
            EOFError, OSError: the other end is closed.
        """
        if self._armed is not None and not connection.poll(self._pause):
            faulthandler.cancel_dump_traceback_later()
            self._armed = None
        return connection.recv()


def describe_end(process: BaseProcess) -> str:
    """Describe how a process ended, such as "was ended by signal 9 (out of memory?)"."""
    process.join(_END_SECONDS)
    code = process.exitcode
    how = f"was ended by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
    hint = " (out of memory?)" if code == -signal.SIGKILL else "" if not code else "; its last words are above"
    return how + hint


def end_workers(workers: dict[Connection, BaseProcess]) -> None:
    """End processes at once, even in the middle of a step."""
    for connection, process in workers.items():
        connection.close()
        process.terminate()
    for process in workers.values():
        process.join(_END_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()


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
