"""Errors of a client that are not a server's answers."""

from __future__ import annotations


class ServerLostError(ConnectionError):
    """Server that is not there, or does not answer in time. The step can be repeated: it acts once."""


class AccessError(PermissionError):
    """Server that refuses the client's key."""


class Lost(Exception):  # noqa: N818  # not an error yet: the client connects again
    """Connection that cannot be opened, was lost, or did not bring the answer in time.

    Attributes:
        is_absent: nothing listens at the address.
    """

    def __init__(self, reason: str, is_absent: bool = False) -> None:
        super().__init__(reason)
        self.is_absent = is_absent


class Busy(Lost):
    """Server without room for now, that says when to come again.

    Attributes:
        seconds: until then; None if it does not say.
    """

    def __init__(self, reason: str, seconds: float | None) -> None:
        super().__init__(reason)
        self.seconds = seconds
