"""The script that writes documents from results."""

from __future__ import annotations

import importlib.util
from types import ModuleType

from helpers import ROOT


def write_docs() -> ModuleType:
    """Import `benchmarks/write_docs.py`."""
    spec = importlib.util.spec_from_file_location("write_docs", ROOT / "benchmarks/write_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
