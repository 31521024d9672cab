"""Codes with which a server closes a connection; see https://www.iana.org/assignments/websocket."""

GOING_AWAY = 1001
"""The server ends, or has had no request for too long."""

POLICY_VIOLATION = 1008
"""A viewer has sent no valid key."""

TRY_AGAIN_LATER = 1013
"""There is no room."""
