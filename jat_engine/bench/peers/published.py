"""Run the published package as a peer, in an interpreter of its own: it does not run on today's transformers."""

from __future__ import annotations

import base64
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from .base import Unavailable


class PublishedPeer:
    """Run a process of `published_worker.py`, asked over pipes, whose time counts as the call's.

    Args:
        interpreter: a Python in which `import jat` works (PYTHONPATH is passed on).

    Raises:
        Unavailable: it does not start there; with the last line of what it says.
    """

    name, dtype = "published package", "float32"

    def __init__(self, interpreter: str, folder: Path) -> None:
        # Its text and not its path: then this folder is not searched, where jat.py and openvino.py are other modules.
        worker = Path(__file__).with_name("published_worker.py").read_text()
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 -- closed with the peer
        try:
            self._process = subprocess.Popen(
                [interpreter, "-c", worker, str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,  # an unread pipe would stop it when it is full
                text=True,
            )
        except OSError as error:
            raise Unavailable(f"--upstream {interpreter}: {error}") from None
        hello = self._process.stdout.readline() if self._process.stdout else ""
        if not hello:
            raise Unavailable(f"--upstream {interpreter}: {self._last_words()}")
        self.versions: dict[str, str] = json.loads(hello)

    def open(self, window: int) -> PublishedAgent:
        """Start a new episode of the only agent there is."""
        self.ask({"reset": True})
        return PublishedAgent(self, window)

    def generate(self, prompt: list[int]) -> list[int]:
        """Return the prompt and 32 more tokens, greedily."""
        tokens: list[int] = self.ask({"generate": prompt})
        return tokens

    def ask(self, message: dict[str, Any]) -> Any:
        """Send a message to the process and return its answer.

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
            raise RuntimeError(f"the published package's process has ended: {self._last_words()}")
        return json.loads(answer)

    def close(self) -> None:
        self._process.communicate()  # it ends with its input
        self._errors.close()

    def _last_words(self) -> str:
        self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return lines[-1] if lines else "it ended without a word"


class PublishedAgent:
    def __init__(self, peer: PublishedPeer, window: int) -> None:
        self._peer, self._window = peer, window

    def get_next_action(self, **arguments: Any) -> Any:
        action_space = arguments.pop("action_space")
        return_prediction = arguments.pop("return_prediction", False)
        space = {"n": action_space.n} if hasattr(action_space, "n") else {"shape": action_space.shape}
        fields = {name: _packed(value) for name, value in arguments.items()}
        answer = self._peer.ask({"fields": fields, "space": space, "window": self._window})
        action = answer["action"]
        return (action, np.array(answer["prediction"], np.float32)) if return_prediction else action

    def force_action(self, action: Any) -> None:
        self._peer.ask({"force": action if isinstance(action, int) else np.asarray(action).tolist()})


def _packed(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    return {"dtype": value.dtype.str, "shape": value.shape, "data": base64.b64encode(value.tobytes()).decode()}
