"""Check for the packages of the extra `train`, which collecting and training need."""

from __future__ import annotations

import sys
from importlib import util

_MODULES = ("accelerate", "datasets", "pyarrow")


def require_train_extra() -> None:
    """Check that the packages of the extra `train` are installed, without importing them.

    Raises:
        ImportError: names the missing packages and the command that installs them.
    """
    missing = [name for name in _MODULES if not _is_there(name)]
    if missing:
        raise ImportError(
            f"collecting and training need {', '.join(missing)}, not installed here; pip install 'jat-engine[train]'"
        )


def _is_there(name: str) -> bool:
    return sys.modules[name] is not None if name in sys.modules else util.find_spec(name) is not None
