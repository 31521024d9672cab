"""Standard streams of the command line: closed ones, narrow encodings, readers that go away; signals that end it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TextIO

from ..errors import Terminated

ENDING = ("SIGTERM", "SIGHUP")
"""Signals that `terminable` turns into an exit: of `kill`, a scheduler, a container, a closed terminal."""


def prepare() -> None:
    """Make standard output and error safe to print to.

    Closed ones (`>&-`) are opened on the null device, lest a file that is opened later takes their place. Characters
    that their encoding lacks are written as escapes instead of raising an error.
    """
    for name, descriptor in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number: this one
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8", closefd=False))

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where a caller has replaced it
            stream.reconfigure(errors="backslashreplace")


def flush() -> None:
    """Write out what was printed, so that an error comes here and not at the interpreter's exit."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def settle() -> None:
    """Write out what was printed; streams that cannot take it, such as of a full disk, are discarded."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            discard(stream)


def discard(stream: TextIO) -> None:
    """Connect a standard stream that can no longer be written to with the null device."""
    null = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError, ValueError):  # not a real file, such as in a test
        os.dup2(null, stream.fileno())
    os.close(null)
    with contextlib.suppress(OSError, ValueError):  # what its buffer still has
        stream.flush()


def say(text: str) -> None:
    """Print results. A reader that has gone away (`| head -1`) or a full disk does not end what is being played.

    After any other error than a reader's, `refused` says why.
    """
    global refused
    try:
        print(text, flush=True)
    except OSError as error:
        discard(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            refused = str(error)


refused = ""
"""Reason why standard output took no more text from `say`; "" while it does."""


def encodable(text: str, otherwise: str) -> str:
    """Return `text` if standard output can show it, else `otherwise`."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return otherwise
    return text


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the `with` block by `Terminated`, so that what is finished is kept, as after Ctrl-C.

    The exit code is the shell's, 128 and the signal's number. A signal that is ignored, as by nohup, stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _: FrameType | None) -> None:
        print(f"jat-engine: ended by {signal.Signals(number).name}", file=sys.stderr)
        raise Terminated(128 + number)

    numbers = [getattr(signal, name) for name in ENDING if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is signal.SIG_DFL:
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignore Ctrl-C, SIGTERM and SIGHUP while the `with` block runs; for the last, short write of results."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGINT", *ENDING) if hasattr(signal, name)]
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
