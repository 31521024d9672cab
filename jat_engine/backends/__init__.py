"""What computes a step: one file each behind the `Backend` protocol."""

from .base import Backend, Embedding, Plan
from .choice import Choice, choose_backend

__all__ = ["Backend", "Choice", "Embedding", "Plan", "choose_backend"]
