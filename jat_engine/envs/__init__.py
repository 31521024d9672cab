"""Tasks and their environments: the 157 published ones, registered ones, and any environment of Gymnasium.

Importing this package needs no simulator; `make` imports the one it needs. If Gymnasium is installed, the import also
registers ids such as "jat/atari-pong-v0" for `gymnasium.make`.

Example:
    >>> from jat_engine.envs import TASKS, make
    >>> len(TASKS)
    157
    >>> env = make("babyai-go-to-obj", seed=0)
"""

from ..errors import MissingSimulatorError, RenderingError, SpaceError, TaskError, UnknownTaskError
from .domains import DOMAINS, get_domain
from .make import make
from .registry import (
    domain_names,
    expand_tasks,
    find_tasks,
    get_task,
    load_task_module,
    register_task,
    registered_names,
)
from .rendering import check_rendering
from .task import Score, Task
from .tasks import TASK_NAME_TO_ENV_ID, TASKS, get_task_names
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
    "SpaceError",
    "Task",
    "TaskError",
    "UnknownTaskError",
    "check_rendering",
    "domain_names",
    "expand_tasks",
    "find_tasks",
    "get_domain",
    "get_task",
    "get_task_names",
    "load_task_module",
    "make",
    "register_task",
    "registered_names",
]
