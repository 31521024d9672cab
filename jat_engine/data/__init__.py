"""Datasets of expert episodes: their layout on disk, as published, and how they are collected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .columns import check_columns, check_episode, task_columns, task_features

if TYPE_CHECKING:
    from .collector import collect

__all__ = ["check_columns", "check_episode", "collect", "task_columns", "task_features"]


def __getattr__(name: str) -> Any:
    if name != "collect":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .requirements import require_train_extra

    require_train_extra()
    from .collector import collect

    return collect
