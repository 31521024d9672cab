"""Run subprocesses that cannot take the report down: bounded, and ended with all they have started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .section import ROOT


@dataclass
class Finished:
    """A process that has ended.

    Attributes:
        code: the exit status, or None if the time ran out.
        output: stdout and stderr together.
        seconds: it ran.
    """

    code: int | None
    output: str
    seconds: float

    @property
    def tail(self) -> str:
        """The last lines of the output."""
        return "\n".join(self.output.strip().splitlines()[-12:])[-2500:]


class Process:
    """A command that runs from the checkout's root, its output in a file."""

    def __init__(self, command: Sequence[str], log: Path, environment: dict[str, str] | None = None) -> None:
        # In the environment of whatever it starts, so that all of it can be found and ended.
        self._mark = f"GPU_REPORT_{uuid.uuid4().hex}"
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        variables = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p), "PYTHONUNBUFFERED": "1"}
        self._log = log
        self._began = time.monotonic()
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**variables, **(environment or {}), self._mark: "1"},
                start_new_session=True,
            )

    def wait(self, seconds: float) -> Finished:
        """Wait until it ends, or end it after so many seconds."""
        code: int | None
        try:
            code = self._process.wait(max(0.1, seconds))
        except subprocess.TimeoutExpired:
            code = None
        self.end()
        return Finished(code, self._log.read_text(errors="replace"), time.monotonic() - self._began)

    def end(self) -> None:
        """End it and everything it has started; an interrupt first, so that pytest still writes its counts."""
        for number in (signal.SIGINT, signal.SIGTERM):
            if self._process.poll() is None:
                self._process.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(3)
        for pid in self._descendants():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if self._process.poll() is None:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # one that hangs in the driver cannot be ended
                self._process.wait(3)

    def _descendants(self) -> list[int]:
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"{self._mark}=1".encode() in path.read_bytes():
                    found.append(int(path.parent.name))
            except OSError:  # it has ended, or is not ours
                continue
        return found


def run(command: Sequence[str], log: Path, seconds: float, environment: dict[str, str] | None = None) -> Finished:
    """Run a command for at most so many seconds."""
    return Process(command, log, environment).wait(seconds)


def python_module(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of this folder."""
    return [sys.executable, "-m", f"{__package__}.{module}", *arguments]
