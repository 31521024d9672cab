"""What datasets need beyond the package's own requirements."""

from __future__ import annotations

from importlib import util

_MODULES = ("datasets", "pyarrow")


def require_train_extra() -> None:
    """Raises `ImportError` that says what to install, unless everything is there. Imports nothing."""
    missing = [name for name in _MODULES if util.find_spec(name) is None]
    if missing:
        raise ImportError(f"datasets need {' and '.join(missing)}; pip install 'jat-engine[train]'")
