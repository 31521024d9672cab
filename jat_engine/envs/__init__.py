"""Environments of the 157 published tasks. Importing this package needs no simulator; `make` imports the one it needs.

If Gymnasium is installed, the import also registers ids such as "jat/atari-pong-v0" for `gymnasium.make`.

Example:
    >>> from jat_engine.envs import TASKS, make
    >>> len(TASKS)
    157
    >>> env = make("babyai-go-to-obj", seed=0)
"""

from ..errors import MissingSimulatorError, RenderingError, UnknownTaskError
from .make import make
from .rendering import check_rendering
from .tasks import DOMAINS, TASK_NAME_TO_ENV_ID, TASKS, Score, Task, expand_tasks, get_task_names
from .vector import EpisodeStarts

try:
    from .registration import register as _register
except ImportError:  # Gymnasium is not installed; the table of tasks needs none
    pass
else:
    _register()

__all__ = [
    "DOMAINS",
    "TASKS",
    "TASK_NAME_TO_ENV_ID",
    "EpisodeStarts",
    "MissingSimulatorError",
    "RenderingError",
    "Score",
    "Task",
    "UnknownTaskError",
    "check_rendering",
    "expand_tasks",
    "get_task_names",
    "make",
]
