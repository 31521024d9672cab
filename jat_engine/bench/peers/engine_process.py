"""Run engines in processes of their own: this version's, and that of another checkout, in the same way.

Two versions of a package do not fit into one process. So that both are measured alike, this version's engine runs in a
process of its own, too.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..results import CHECKOUT, commit
from .base import Unavailable
from .process import AskedProcess
from .registry import ENGINE, Peers

if TYPE_CHECKING:
    from ..runner import Context

BEFORE = f"{ENGINE} before"
"""Name of the other version's engine."""


class EngineProcess:
    """An engine in a process of its own; `engine_worker.Worker` has its methods.

    Args:
        checkout: folder whose `jat_engine` is imported, with its native module; by default `CHECKOUT`, this version's.
        folder: of the checkpoint.
        dtype: of the weights.
        options: of the engine.

    Attributes:
        weight_bytes: of the packed weights.
        commit: of the checkout.

    Raises:
        Unavailable: it does not start, or another package was imported, or its native module is missing.
    """

    def __init__(self, folder: Path, dtype: str, checkout: Path = CHECKOUT, **options: Any) -> None:
        self.dtype = dtype
        source = Path(__file__).with_name("engine_worker.py").read_text()  # of this version, for all
        paths = [str(checkout), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        # -P: the working directory is not searched, where a checkout may lie.
        command = [sys.executable, "-P", "-c", source, str(folder.resolve()), dtype, json.dumps(options)]
        label = f"engine of {checkout.name}"
        self._process = AskedProcess(command, label, environment)
        hello = self._process.hello
        self.weight_bytes: int = hello["weights"]
        self.commit = commit(checkout)
        problem = ""
        if hello["package"] != str(checkout.resolve() / "jat_engine"):
            problem = "expected the package in that folder, got another one"
        elif hello["backend"] != "cpu":
            problem = f"expected the native backend, got {hello['backend']}; build its native module"
        if problem:
            self.close()
            raise Unavailable(f"{label}: {problem}")

    def ask(self, method: str, **arguments: Any) -> Any:
        """Return what a method of the worker returns. Raises `RuntimeError` if the process has ended."""
        return self._process.ask([method, arguments])

    def close(self) -> None:
        """End the process."""
        self._process.close()


def open_engines(context: Context, peers: Peers, folder: Path, dtypes: Iterable[str] = (), **options: Any) -> None:
    """Add engines in processes of their own: at every dtype this version's, and the other's where there is one.

    Args:
        context: of the run; it keeps the other version's commit.
        peers: to add to.
        folder: of the checkpoint.
        dtypes: by default those of the run.
        options: of the engines.
    """
    checkouts = {ENGINE: CHECKOUT}
    before = context.options.before
    if before is None:
        peers.skipped[BEFORE] = "--before names no checkout of another version"
    else:
        checkouts[BEFORE] = before
        context.results.machine["before"] = commit(before)
    for agent, checkout in checkouts.items():
        for dtype in dtypes or context.options.dtypes:
            context.note(f"starting {agent} {dtype} ...")
            peers.add(
                f"{agent} {dtype}",
                lambda dtype=dtype, checkout=checkout: EngineProcess(folder, dtype, checkout, **options),  # type: ignore[misc]
            )
