"""Locks that a fork waits for.

A forked child has only the thread that forked. If another thread held a lock at that moment, the child would find it
locked for ever and the state behind it half-written. So all locks are taken before a fork and released after it.
"""

from __future__ import annotations

import os
import threading
import weakref

_locks: weakref.WeakSet[threading.RLock] = weakref.WeakSet()
_taken = threading.local()


def make_lock() -> threading.RLock:
    """Return a new lock that no other thread holds while the process forks."""
    lock = threading.RLock()
    _locks.add(lock)
    return lock


def _take_all() -> None:
    _taken.locks = []
    for lock in list(_locks):
        lock.acquire()
        _taken.locks.append(lock)


def _release_all() -> None:
    for lock in _taken.locks:
        lock.release()
    _taken.locks = []


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_take_all, after_in_parent=_release_all, after_in_child=_release_all)
