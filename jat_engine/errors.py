"""The errors a caller can make. Each message names the field, what was expected and what came."""

from __future__ import annotations


class InputError(ValueError):
    """An observation, reward, action space or option of a call is not what the model takes."""


class SessionError(ValueError):
    """A call does not fit the session's episode so far: another modality, size or action space."""


class CheckpointError(ValueError):
    """A checkpoint's files are missing, damaged, or not those of the model that `config.json` describes."""
