"""Run the published package as a peer, in an interpreter of its own: it does not run on today's transformers."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np

from .process import AskedProcess


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
        self._process = AskedProcess([interpreter, "-c", worker, str(folder)], f"--upstream {interpreter}")
        self.versions: dict[str, str] = self._process.hello

    def open(self, window: int) -> PublishedAgent:
        """Start a new episode of the only agent there is."""
        self.ask({"reset": True})
        return PublishedAgent(self, window)

    def ask(self, message: dict[str, Any]) -> Any:
        """Send a message to the process and return its answer. Raises `RuntimeError` if the process has ended."""
        return self._process.ask(message)

    def close(self) -> None:
        self._process.close()


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
