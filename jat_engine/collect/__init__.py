"""Collect expert episodes as a dataset.

`collect` needs the extra `train`; the experts in `jat_engine.collect.experts` need only their simulator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .collector import collect

__all__ = ["collect"]


def __getattr__(name: str) -> Any:
    if name != "collect":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ..datasets.requirements import require_train_extra

    require_train_extra()
    from .collector import collect

    return collect
