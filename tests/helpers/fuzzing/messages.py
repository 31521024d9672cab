"""Fuzz one message, read as a dialect and the engine's checks read it."""

from __future__ import annotations

import random

from helpers.fuzzing import FoundError, mutation
from jat_engine.action_options import parse_options
from jat_engine.errors import InputError, SessionError, one_line
from jat_engine.observation import Limits, parse_action, parse_action_space, parse_observation
from jat_engine.serving import codec
from jat_engine.serving.dialects import DIALECTS, Dialect
from jat_engine.serving.errors import MOST_CHARACTERS, kind_of, message_of
from jat_engine.serving.requests import Act, Request
from jat_engine.serving.spaces import Box

LIMITS = Limits(max_continuous_size=24, max_discrete_value=212, vocab_size=64)
"""Limits of a small model."""

_MAKERS = list(DIALECTS.values())


def run(data: bytes) -> None:
    """Read a message.

    Args:
        data: a byte that chooses the dialect, and whether the message is text or binary, and the message.

    Raises:
        FoundError: an error has no line for its client.
        Exception: any but those that clients are told about.
    """
    if not data:
        return
    dialect = _MAKERS[data[0] % len(_MAKERS)]({"version": "0", "server": "jat-engine"})
    frame: str | bytes = data[1:].decode("utf-8", "replace") if data[0] & 0x80 else data[1:]
    try:
        parsed = dialect.parse(frame)
    except InputError as error:
        _check_error(dialect, error, None)
        return
    if parsed is None or isinstance(parsed, str | bytes):
        return
    if isinstance(parsed, Act):
        try:
            check_act(parsed)
        except (InputError, SessionError) as error:
            _check_error(dialect, error, parsed)


def change(data: bytes, numbers: random.Random) -> bytes:
    """Return an input with another message that is msgpack; the same if it is not to begin with."""
    changed = mutation.change(data[1:], numbers)
    return data if changed is None else data[:1] + changed


def check_act(act: Act) -> None:
    """Check a step as an engine and its server do, without computing anything. Raises `InputError`."""
    observations = parse_observation(LIMITS, act.observation, act.reward)
    if not all(value.size for value in observations.values):
        raise FoundError("expected an observation with values, got an empty one")
    if act.reward is not None:
        float(act.reward)  # as returns are summed
    options = parse_options(*act.options)
    space = act.settings.space
    if space is None:
        return
    if isinstance(space, Box):
        codec.unpack(codec.pack([space.low, space.high]))  # as snapshots store it
    checked = parse_action_space(LIMITS, space)
    if options is not None:
        options.bind(checked, space)
    if act.forced is not None:
        parse_action(checked, act.forced)


def _check_error(dialect: Dialect, error: Exception, request: Request | None) -> None:
    message, kind = message_of(error), kind_of(error)
    if kind == "fault":
        raise FoundError(f"expected an error of the client's, got {error!r}")
    if message != one_line(message) or len(message) > MOST_CHARACTERS:
        raise FoundError(
            f"expected a line of at most {MOST_CHARACTERS} characters, got {len(message)}: {message!r:.200}"
        )
    if not dialect.error(message, request, kind):
        raise FoundError("expected a message for the error, got an empty one")
