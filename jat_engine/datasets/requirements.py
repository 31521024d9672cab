"""Check for the packages of the extra `train`, which reading datasets, collecting and training need."""

from __future__ import annotations

import sys
from importlib import util

_READING = ("datasets", "pyarrow")
_MODULES = ("accelerate", *_READING)


def require_train_extra() -> None:
    """Check that the packages of the extra `train` are installed, without importing them.

    Raises:
        ImportError: names the missing packages and the command that installs them.
    """
    _require(_MODULES, "collecting and training need")


def require_datasets() -> None:
    """Check that the packages that read datasets are installed, without importing them.

    Raises:
        ImportError: names the missing packages and the command that installs them.
    """
    _require(_READING, "reading a dataset needs")


def _require(modules: tuple[str, ...], need: str) -> None:
    missing = [name for name in modules if not _is_there(name)]
    if missing:
        raise ImportError(f"{need} {', '.join(missing)}, not installed here; pip install 'jat-engine[train]'")


def _is_there(name: str) -> bool:
    return sys.modules[name] is not None if name in sys.modules else util.find_spec(name) is not None
