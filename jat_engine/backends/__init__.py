"""What computes a step: one file each behind the `Backend` protocol."""

from .base import Backend, BatchPlan, BatchPrediction, Embedding, Plan, Prediction
from .select import Choice, choose_backend

__all__ = ["Backend", "BatchPlan", "BatchPrediction", "Choice", "Embedding", "Plan", "Prediction", "choose_backend"]
