"""Training a `JatModel` as the published one was: episodes -> pieces -> batches of one task -> transformers' Trainer.

Needs the extra `train`; nothing outside this folder imports it.
"""

from __future__ import annotations

import importlib


def require_train_extra() -> None:
    """Raises `ImportError`, saying what to install, unless the packages of the extra `train` are there."""
    missing = []
    for name in ("accelerate", "datasets", "pyarrow"):
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise ImportError(f"training needs {', '.join(missing)}, not installed here; pip install 'jat-engine[train]'")
