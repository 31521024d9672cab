"""Errors and warnings that callers meet. Each message names the field, the expected value and the given one."""

from __future__ import annotations

from typing import Any


class InputError(ValueError):
    """Invalid observation, reward, action space or option of a call."""


class SessionError(ValueError):
    """Call that does not fit the session's current episode: another modality, size or action space."""


class CheckpointError(ValueError):
    """Missing or damaged checkpoint file, or one that does not match the model that `config.json` describes."""


class CacheFullError(RuntimeError):
    """KV cache without room for another session. Open sessions are not affected."""


class BatchError(ValueError):
    """Invalid input to some sessions of a batch. The other sessions have taken their step.

    Attributes:
        actions: the actions in the order of the batch; None for each session whose input was refused.
        errors: position in the batch -> error of that session. These sessions are unchanged.
    """

    def __init__(self, actions: list[Any], errors: dict[int, Exception]) -> None:
        self.actions = actions
        self.errors = errors
        first = min(errors)
        more = f" and {len(errors) - 1} more" if len(errors) > 1 else ""
        super().__init__(f"sessions[{first}]{more} of {len(actions)}: {errors[first]}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle with the constructor's arguments: an exception's own way would call it with the message."""
        return type(self), (self.actions, self.errors), self.__dict__


class DataError(ValueError):
    """Invalid columns or rows of a dataset; the message names the file, row, column and step."""


class UnknownTaskError(ValueError):
    """Unknown name of a task or domain."""


class TaskError(ValueError):
    """Task that cannot be registered or made: its name, its module or its environment."""


class SpaceError(TaskError):
    """Environment whose observations or actions an agent does not have; the message names the wrapper that helps."""


class MissingSimulatorError(ImportError):
    """Simulator that is not installed; the message names the extra to install."""


class RenderingError(ValueError):
    """Frames or windows that cannot be rendered here; the message names `MUJOCO_GL` or `DISPLAY` and the remedy."""


class Terminated(SystemExit):
    """Signal such as SIGTERM, which ends the process; unlike the exit that an environment's code asks for."""


class NativeModuleWarning(RuntimeWarning):
    """Warning that an engine on a CPU computes in plain torch, since the native module is missing; once per process."""


def one_line(message: object) -> str:
    """Return a message, such as an error, in one line: each stretch of white space is one space."""
    return " ".join(str(message).split())


def describe_error(error: BaseException) -> str:
    """Return an error in one line, with its class.

    Example:
        >>> describe_error(ValueError("expected   1")), describe_error(KeyboardInterrupt())
        ('ValueError: expected 1', 'KeyboardInterrupt')
    """
    return one_line(f"{type(error).__name__}: {error}").rstrip(": ")
