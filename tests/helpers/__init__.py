"""Shared parts of the tests: engines to try, cases, models, programs that run in processes of their own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout."""


def program(name: str, *arguments: str) -> list[str]:
    """Return the command that runs the module `helpers.<name>` in a process of its own."""
    return [sys.executable, "-m", f"helpers.{name}", *arguments]


def environment() -> dict[str, str]:
    """Return the environment for `program`: this process's, with the tests' folder on the module path."""
    path = [str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
