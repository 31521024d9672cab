"""Backends: what computes a step, one module each behind the `Backend` protocol."""

from .base import Backend, Group, LastStep, Result
from .select import Choice, choose_backend

__all__ = ["Backend", "Choice", "Group", "LastStep", "Result", "choose_backend"]
