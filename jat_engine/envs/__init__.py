"""The 157 tasks of the published agent. Importing this needs no simulator; `make` imports the one it is asked for."""

from .errors import MissingSimulatorError, UnknownTaskError
from .make import make
from .tasks import DOMAINS, TASKS, Score, Task, expand_tasks

__all__ = [
    "DOMAINS",
    "TASKS",
    "MissingSimulatorError",
    "Score",
    "Task",
    "UnknownTaskError",
    "expand_tasks",
    "make",
]
