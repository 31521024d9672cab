"""Play tasks with experts, and record their demonstrations.

The experts of this package play published tasks and read the simulator's state; `ExpertChoice` takes any other.
Importing this package needs no simulator; `make_expert` imports the one that its task needs.
"""

from .demonstration import Demonstration, Expert, ExpertError, ExpertLostError, check_noise, demonstrate, is_disturbed
from .given import ExpertChoice, open_expert
from .make import EXPERT_TASKS, make_expert

__all__ = [
    "EXPERT_TASKS",
    "Demonstration",
    "Expert",
    "ExpertChoice",
    "ExpertError",
    "ExpertLostError",
    "check_noise",
    "demonstrate",
    "is_disturbed",
    "make_expert",
    "open_expert",
]
