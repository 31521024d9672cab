"""What can be wrong with a request for an environment."""

from __future__ import annotations


class UnknownTaskError(ValueError):
    """No task or domain has that name."""


class MissingSimulatorError(ImportError):
    """The task's simulator is not installed; the message names the extra that brings it."""
