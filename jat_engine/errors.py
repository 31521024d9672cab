"""The errors a caller can make, and warnings. Each message names the field, what was expected and what came."""

from __future__ import annotations

from typing import Any


class InputError(ValueError):
    """An observation, reward, action space or option of a call is not what the model takes."""


class SessionError(ValueError):
    """A call does not fit the session's episode so far: another modality, size or action space."""


class CheckpointError(ValueError):
    """A checkpoint's files are missing, damaged, or not those of the model that `config.json` describes."""


class CacheFullError(RuntimeError):
    """There is no room in the KV cache for another session. Those that are open are not affected."""


class BatchError(ValueError):
    """Some sessions of a batch were refused; the others have taken their step.

    Attributes:
        actions: what the call would have returned, with None for the sessions that were refused.
        errors: position in the batch -> its error. Those sessions are as they were before the call.
    """

    def __init__(self, actions: list[Any], errors: dict[int, Exception]) -> None:
        self.actions = actions
        self.errors = errors
        first = min(errors)
        more = f" and {len(errors) - 1} more" if len(errors) > 1 else ""
        super().__init__(f"sessions[{first}]{more} of {len(actions)}: {errors[first]}")


class DataError(ValueError):
    """A dataset's columns or rows are not what they should be; the message names the file, row, column and step."""


class NativeModuleWarning(RuntimeWarning):
    """An engine computes in plain torch on a CPU because the native module is missing. Given once a process."""
