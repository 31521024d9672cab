"""Kinds of observations, actions and success of a task."""

from __future__ import annotations

from typing import Literal

Observation = Literal["image", "discrete", "discrete+text", "continuous"]
Action = Literal["continuous", "discrete"]
Success = Literal["info", "positive_return"]
