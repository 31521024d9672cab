"""The interface of a dialect: how one kind of client writes requests and reads replies."""

from __future__ import annotations

from typing import Any, Protocol

from ..requests import Answer, Request

Frame = str | bytes
"""Content of a websocket message: text, or binary."""


class Dialect(Protocol):
    """Dialect of one connection; it may keep what its replies need of earlier ones.

    Attributes:
        name: for metrics.
    """

    name: str

    def greeting(self) -> Frame | None:
        """Return the message that a connection begins with; None for none."""

    def parse(self, frame: Frame) -> Request | Frame | None:
        """Return the request that a message is; a message to answer at once with, or None, where it is none.

        Raises:
            InputError: it is not in the format of the dialect, or a field is invalid.
        """

    def reply(self, request: Request, reply: Answer, elapsed_s: float) -> Frame | None:
        """Return the message for what was carried out; None for none.

        Args:
            request: as `parse` has returned it.
            reply: to it; None if it was neither an `Act` nor a `Resume`.
            elapsed_s: seconds since its message was received.
        """

    def error(self, message: str, request: Request | None, kind: str) -> Frame:
        """Return the message for a request that was refused or failed.

        Args:
            message: one line.
            request: None if it could not be parsed.
            kind: of the error, of `errors.KINDS`.
        """


class DialectMaker(Protocol):
    """Makes the dialect of a new connection."""

    def __call__(self, description: dict[str, Any]) -> Dialect:
        """Return it, given what the server says about itself."""
