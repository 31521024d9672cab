"""Ask a process over pipes: a JSON message a line in, an answer a line out."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from .base import Unavailable


class AskedProcess:
    """Run a program that first says hello in JSON, and then answers each message.

    Args:
        command: of the program.
        label: names the process in errors.
        environment: of the process; None for this process's own.

    Attributes:
        hello: its first answer.

    Raises:
        Unavailable: it does not start; with the last line of what it says.
    """

    def __init__(self, command: Sequence[str], label: str, environment: Mapping[str, str] | None = None) -> None:
        self._label = label
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 -- closed with the process
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,  # an unread pipe would stop it when it is full
                text=True,
                env=None if environment is None else dict(environment),
            )
        except OSError as error:
            raise Unavailable(f"{label}: {error}") from None
        hello = self._process.stdout.readline() if self._process.stdout else ""
        if not hello:
            raise Unavailable(f"{label}: {self._last_words()}")
        self.hello: Any = json.loads(hello)

    def ask(self, message: Any) -> Any:
        """Send a message and return the answer.

        Raises:
            RuntimeError: the process has ended; with the last line of what it said.
        """
        process = self._process
        assert process.stdin is not None, "the process has pipes"
        assert process.stdout is not None, "the process has pipes"
        try:
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise RuntimeError(f"{self._label}: its process has ended: {self._last_words()}")
        return json.loads(answer)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()  # it ends with its input
        self._errors.close()

    def _last_words(self) -> str:
        self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return lines[-1] if lines else "it ended without a word"
