"""Subprocesses that cannot take the report down: bounded, and ended with all they have started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .context import ROOT


@dataclass
class Finished:
    """`code`: the exit status, or None if the time ran out. `output`: stdout and stderr together."""

    code: int | None
    output: str
    seconds: float

    @property
    def tail(self) -> str:
        return "\n".join(self.output.strip().splitlines()[-12:])[-2500:]


class Process:
    """A command that runs from the checkout's root, its output in a file."""

    def __init__(self, command: Sequence[str], log: Path, environment: dict[str, str] | None = None) -> None:
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
                env={**variables, **(environment or {})},
                start_new_session=True,
            )

    def wait(self, seconds: float) -> Finished:
        code: int | None
        try:
            code = self._process.wait(max(0.1, seconds))
        except subprocess.TimeoutExpired:
            code = None
        self.end()
        return Finished(code, self._log.read_text(errors="replace"), time.monotonic() - self._began)

    def end(self) -> None:
        """End what is left of the session that was started here."""
        for number, patience in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 3.0)):
            if self._process.poll() is not None and number == signal.SIGTERM:
                return
            try:
                os.killpg(self._process.pid, number)
            except (ProcessLookupError, PermissionError):
                return
            try:
                self._process.wait(patience)
                if number == signal.SIGKILL:
                    return
            except subprocess.TimeoutExpired:
                pass


def run(command: Sequence[str], log: Path, seconds: float, environment: dict[str, str] | None = None) -> Finished:
    return Process(command, log, environment).wait(seconds)


def python_module(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"{__package__}.{module}", *arguments]
