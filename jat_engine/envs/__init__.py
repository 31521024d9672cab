"""Environments of the 157 published tasks. Importing this package needs no simulator; `make` imports the one it needs.

Example:
    >>> from jat_engine.envs import TASKS, make
    >>> len(TASKS)
    157
    >>> env = make("babyai-go-to-obj", seed=0)
"""

from ..errors import MissingSimulatorError, RenderingError, UnknownTaskError
from .make import make
from .rendering import check_rendering
from .tasks import DOMAINS, TASKS, Score, Task, expand_tasks

__all__ = [
    "DOMAINS",
    "TASKS",
    "MissingSimulatorError",
    "RenderingError",
    "Score",
    "Task",
    "UnknownTaskError",
    "check_rendering",
    "expand_tasks",
    "make",
]
