"""Experts that play published tasks by looking inside the simulator, and the demonstrations they give.

Importing this needs no simulator; `make_expert` imports what the task's expert asks for.
"""

from .demonstration import Demonstration, Expert, check_noise, demonstrate
from .make import EXPERT_TASKS, make_expert

__all__ = ["EXPERT_TASKS", "Demonstration", "Expert", "check_noise", "demonstrate", "make_expert"]
