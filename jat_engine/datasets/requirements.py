"""What datasets and training need beyond the package's own requirements."""

from __future__ import annotations

import sys
from importlib import util

_MODULES = ("accelerate", "datasets", "pyarrow")


def require_train_extra() -> None:
    """Raises `ImportError` that says what to install, unless everything is there. Imports nothing."""
    missing = [name for name in _MODULES if not _is_there(name)]
    if missing:
        raise ImportError(
            f"collecting and training need {', '.join(missing)}, not installed here; pip install 'jat-engine[train]'"
        )


def _is_there(name: str) -> bool:
    return sys.modules[name] is not None if name in sys.modules else util.find_spec(name) is not None
