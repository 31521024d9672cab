"""Locks that a fork, and the interpreter's exit, wait for.

A forked child has only the thread that forked. If another thread held a lock at that moment, the child would find it
locked for ever and the state behind it half-written. So all locks are taken before a fork and released after it.

At the exit, Python ends each daemon thread that returns from native code, by unwinding its stack. The native code of
torch and pybind11 does not allow that, and aborts the process. So all locks are taken before, and kept: a thread that
holds one finishes first, and then waits for another.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref

_locks: weakref.WeakSet[threading.RLock] = weakref.WeakSet()
_making = threading.RLock()
_taken = threading.local()

_EXIT_SECONDS = 5.0
"""Longest wait of the exit for a lock."""


def make_lock() -> threading.RLock:
    """Return a new lock that no other thread holds while the process forks or exits."""
    lock = threading.RLock()
    with _making:
        _locks.add(lock)
    return lock


def _take_all(timeout: float = -1) -> None:
    # Holders of a lock may make another, so `_making` is taken after those.
    _taken.locks = [lock for lock in list(_locks) if lock.acquire(timeout=timeout)]
    _making.acquire()
    _taken.locks.append(_making)
    new = [lock for lock in list(_locks) if lock not in _taken.locks]
    _taken.locks += [lock for lock in new if lock.acquire(timeout=timeout)]


def _release_all() -> None:
    for lock in _taken.locks:
        lock.release()
    _taken.locks = []


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_take_all, after_in_parent=_release_all, after_in_child=_release_all)
atexit.register(_take_all, _EXIT_SECONDS)
