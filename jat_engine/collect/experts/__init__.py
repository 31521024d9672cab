"""Play published tasks with experts that read the simulator's state, and record their demonstrations.

Importing this package needs no simulator; `make_expert` imports the one that its task needs.
"""

from .demonstration import Demonstration, Expert, check_noise, demonstrate
from .make import EXPERT_TASKS, make_expert

__all__ = ["EXPERT_TASKS", "Demonstration", "Expert", "check_noise", "demonstrate", "make_expert"]
