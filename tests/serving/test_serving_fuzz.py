"""Any bytes that a client sends change nothing for other sessions, and leave no session and no page behind.

EXAMPLES sets how many the long test draws.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("websockets", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

from helpers.engines import EPISODE, native
from helpers.servers import RunningServer, request_of, running_server
from helpers.serving_clients import PLAYED, Witness, expected_actions, frame, handshake, message_of, wait_until
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jat_engine import JatEngine
from jat_engine.serving import codec
from jat_engine.serving.dialects import DIALECTS
from jat_engine.serving.requests import FIELDS

ARRAYS = hnp.arrays(
    st.sampled_from([np.dtype(name) for name in ("bool", "uint8", "int64", "float16", "float32", "float64")]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=8),
)
SPACES = st.sampled_from([{"type": "Discrete", "n": 5}, {"type": "Box", "shape": [3]}, {"type": "Box", "shape": [0]}])
LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary() | ARRAYS
VALUES = st.recursive(
    LEAVES | SPACES | st.sampled_from(["infer", "reset", "close", "atari-pong", "a", "b"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)
REQUESTS = st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=4), VALUES, max_size=8)
TYPES = ["hello", "episode_start", "observation", "episode_end", "error", ""]
GOOD = [request_of(EPISODE[name], 0) for name in PLAYED]
CHANGED = st.builds(lambda good, changes: good | changes, st.sampled_from(GOOD), st.just({}) | REQUESTS)


def pack(path: str, request: dict[str, Any]) -> bytes:
    """Return a request as a message of a path's protocol."""
    return message_of("observation", request) if path == "/vla-eval" else codec.pack(request)


@st.composite
def damaged(draw: st.DrawFn, path: str) -> bytes:
    """Draw a good message in which some bytes are others, missing or added."""
    data = bytearray(pack(path, draw(st.sampled_from(GOOD))))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, min(len(data), 600) - 1))
        match draw(st.integers(0, 2)):
            case 0:
                data[place] = draw(st.integers(0, 255))
            case 1:
                del data[place : place + draw(st.integers(1, 9))]
            case 2:
                data[place:place] = draw(st.binary(min_size=1, max_size=9))
    return bytes(data)


class Part(NamedTuple):
    """Bytes that a client sends.

    Attributes:
        data: of a message, or of the connection itself.
        opcode: of the message's frame; None for bytes of the connection.
    """

    data: bytes
    opcode: int | None = 2

    @property
    def wire(self) -> bytes:
        return self.data if self.opcode is None else frame(self.data, self.opcode)


def messages(path: str) -> st.SearchStrategy[bytes]:
    """Draw messages to a path: as they should be, with other fields, damaged, and of anything."""
    own = [CHANGED.map(lambda request: pack(path, request)), damaged(path), st.binary(max_size=300)]
    if path == "/vla-eval":
        fields = {"type": st.sampled_from(TYPES), "payload": REQUESTS | VALUES, "seq": st.integers() | VALUES}
        return st.one_of(*own, st.fixed_dictionaries({}, optional=fields).filter(is_packed).map(codec.pack))
    return st.one_of(*own, REQUESTS.map(codec.pack), VALUES.map(codec.pack))


def is_packed(value: Any) -> bool:
    """Return True if msgpack has room for the integers of a value."""
    return not isinstance(value.get("seq"), int) or -(2**63) <= value["seq"] < 2**64


@st.composite
def conversations(draw: st.DrawFn) -> tuple[str | None, list[Part]]:
    """Draw a path, None for bytes in place of the opening handshake, and what is sent."""
    path = draw(st.sampled_from([*DIALECTS, None]))
    message = messages(path or "/").map(Part)
    control = st.builds(Part, st.binary(max_size=125), st.integers(0, 15))
    raw = st.builds(Part, st.binary(max_size=200), st.none())
    kinds = draw(st.sampled_from([message, message, message | control | raw]))
    return path, draw(st.lists(kinds, min_size=1, max_size=6))


@pytest.fixture(scope="module")
def load_engine(tiny_folder: Path) -> Callable[[], JatEngine]:
    options: dict[str, Any] = {"device": "cpu", "backend": "cpu", "dtype": "float32"}
    return lambda: JatEngine.from_pretrained(tiny_folder, **options)


@pytest.fixture(scope="module")
def server(load_engine: Callable[[], JatEngine]) -> Iterator[RunningServer]:
    with running_server(load_engine, max_sessions=16) as running:
        yield running


@pytest.fixture(scope="module")
def witness(server: RunningServer, load_engine: Callable[[], JatEngine]) -> Iterator[Witness]:
    """Play beside the bytes; at the end no page is left."""
    before = server.call(server.service.cache_stats).reserved
    with load_engine() as engine:
        witness = Witness(server.url, expected_actions(engine))
    witness.step()
    yield witness
    witness.close()
    wait_until(lambda: not server.call(lambda: len(server.service.sessions)))
    wait_until(lambda: server.call(server.service.cache_stats).reserved == before)


LAST = codec.pack({"endpoint": "last one", "type": "last one", "payload": {}, "seq": 0})
"""Message that every protocol refuses, with its words in the answer: all before it have been answered then."""


def send(port: int, path: str | None, parts: list[Part]) -> bytes:
    """Send bytes over a connection of their own, and return what comes back until the last answer or its end."""
    found = b""
    is_whole = path is not None and all(part.opcode == 2 for part in parts)
    with contextlib.suppress(ConnectionError, TimeoutError), socket.create_connection(("127.0.0.1", port)) as client:
        client.settimeout(60 if is_whole else 0.05)  # for what the server takes for the beginning of something
        opening = b"" if path is None else handshake(f"127.0.0.1:{port}", path)
        client.sendall(opening + b"".join(part.wire for part in parts) + frame(LAST))
        while b"last one" not in found and (more := client.recv(1 << 16)):
            found += more
    assert not is_whole or b"last one" in found
    return found


def check(server: RunningServer, witness: Witness, path: str | None, parts: list[Part]) -> None:
    send(server.port, path, parts)
    witness.step()
    wait_until(lambda: server.call(lambda: len(server.service.sessions)) == 1)


@native
@settings(max_examples=150, deadline=None)
@given(conversation=conversations())
@example(conversation=("/", [Part(pack("/", GOOD[0])), Part(b"\xc1"), Part(pack("/", GOOD[1]))]))
@example(conversation=("/", [Part(codec.pack({"endpoint": "reset"})), Part(b"\x82\xff" + b"\xff" * 8, None)]))
@example(conversation=(None, [Part(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 300 + b"\r\n", None)]))
def test_any_bytes_leave_other_sessions_alone(
    server: RunningServer, witness: Witness, conversation: tuple[str | None, list[Part]]
) -> None:
    check(server, witness, *conversation)


@pytest.mark.long
@native
@settings(max_examples=int(os.environ.get("EXAMPLES", "20000")), deadline=None)
@given(conversation=conversations())
def test_any_bytes_leave_other_sessions_alone_for_long(
    server: RunningServer, witness: Witness, conversation: tuple[str | None, list[Part]]
) -> None:
    check(server, witness, *conversation)
