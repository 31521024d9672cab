"""A busy neighbour: another process that computes on one core for as long as something is measured."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

_PROGRAM = """
import os, signal, sys
core, parent = int(sys.argv[1]), int(sys.argv[2])
signal.signal(signal.SIGINT, signal.SIG_IGN)
os.sched_setaffinity(0, {core})
print("ready", flush=True)
while os.getppid() == parent:
    for _ in range(100_000):
        pass
"""
# Ctrl-C reaches the whole group: the parent ends this process, which otherwise would print a traceback. A parent that
# was killed ends nothing, so this process asks, every few milliseconds, whether the parent is still there.


def why_no_neighbour() -> str:
    """Return why there cannot be a busy neighbour here; "" where there can."""
    if not hasattr(os, "sched_getaffinity"):
        return "this system cannot pin a process to a core"
    if len(os.sched_getaffinity(0)) < 2:
        return "there is one core, which the neighbour would have for itself"
    return ""


def neighbours_core() -> int:
    """Return the core that the neighbour computes on: the last that this process may use."""
    return max(os.sched_getaffinity(0))


@contextlib.contextmanager
def busy_neighbour() -> Iterator[int]:
    """Keep one core busy meanwhile; gives the process's id.

    The process ends with the block, however the block ends, and by itself when this process is gone.
    """
    command = [sys.executable, "-I", "-S", "-c", _PROGRAM, str(neighbours_core()), str(os.getpid())]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None, "it was asked for"
        if process.stdout.readline().strip() != b"ready":
            raise OSError(f"the busy neighbour ended with code {process.wait()} before it began")
        yield process.pid
    finally:
        process.kill()
        process.communicate()
