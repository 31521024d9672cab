"""Versions of the packages that can change an episode of a task."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from .domains import get_domain
from .task import Task


def task_versions(task: Task, *modules: str | None) -> dict[str, str]:
    """Return package -> version of numpy, the task's simulator, and of its environment if that is not published.

    Args:
        task: the task.
        *modules: further modules whose packages count, such as that of an expert.
    """
    packages = ["numpy", *get_domain(task.domain).packages]
    if not task.is_published:
        packages += _distributions(task.module, _module_of(task))
    packages += _distributions(*modules)

    versions = {}
    for distribution in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[distribution] = metadata.version(distribution)
    return versions


def _module_of(task: Task) -> str | None:
    """Return the module with the environment of a task that is not published, as far as its row tells."""
    if task.env_id:
        import gymnasium

        with contextlib.suppress(gymnasium.error.Error):
            entry_point = gymnasium.spec(task.env_id).entry_point
            return entry_point.partition(":")[0] if isinstance(entry_point, str) else _module(entry_point)
    return task.maker.partition(":")[0] if isinstance(task.maker, str) else _module(task.maker)


def _module(function: Any) -> str | None:
    return getattr(function, "__module__", None)


def _distributions(*modules: str | None) -> list[str]:
    """Return the distributions that modules belong to; none for modules of a folder."""
    packages = {module.partition(".")[0] for module in modules if module}
    return sorted({name for package in packages for name in _packages_distributions().get(package, [])})


@functools.cache
def _packages_distributions() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()
