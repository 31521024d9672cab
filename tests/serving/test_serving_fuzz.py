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
VLA_EVAL = st.fixed_dictionaries(
    {}, optional={"type": st.sampled_from(TYPES), "payload": REQUESTS | VALUES, "seq": VALUES, "timestamp": VALUES}
)
GOOD = [request_of(EPISODE[name], 0) for name in PLAYED]
PACKED = [*map(codec.pack, GOOD), *(message_of("observation", request) for request in GOOD)]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Draw a good message in which some bytes are others, missing or added."""
    data = bytearray(draw(st.sampled_from(PACKED)))
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


MESSAGES = st.one_of(
    st.binary(max_size=300),
    damaged(),
    st.sampled_from(PACKED),
    REQUESTS.map(codec.pack),
    VLA_EVAL.map(codec.pack),
    VALUES.map(codec.pack),
)
PARTS = st.lists(
    st.one_of(
        MESSAGES.map(Part),
        MESSAGES.map(Part),
        st.builds(Part, st.binary(max_size=125), st.integers(0, 15)),
        st.builds(Part, st.binary(max_size=200), st.none()),
    ),
    min_size=1,
    max_size=6,
)
PATHS = st.sampled_from([*DIALECTS, None])
"""Path to connect to; None to send the bytes instead of the opening handshake."""


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


def send(port: int, path: str | None, parts: list[Part]) -> None:
    """Send bytes over a connection of their own, and read until the server has closed it."""
    with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        if path is not None:
            client.sendall(handshake(f"127.0.0.1:{port}", path))
        client.sendall(b"".join(part.wire for part in parts))
        client.shutdown(socket.SHUT_WR)
        while client.recv(1 << 16):
            pass


def check(server: RunningServer, witness: Witness, path: str | None, parts: list[Part]) -> None:
    send(server.port, path, parts)
    witness.step()
    wait_until(lambda: server.call(lambda: len(server.service.sessions)) == 1)


@native
@settings(max_examples=150, deadline=None)
@given(path=PATHS, parts=PARTS)
@example(path="/", parts=[Part(PACKED[0]), Part(b"\xc1"), Part(PACKED[1])])
@example(path="/", parts=[Part(codec.pack({"endpoint": "reset"})), Part(b"\x82\xff" + b"\xff" * 8, None)])
@example(path=None, parts=[Part(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 300 + b"\r\n", None)])
def test_any_bytes_leave_other_sessions_alone(
    server: RunningServer, witness: Witness, path: str | None, parts: list[Part]
) -> None:
    check(server, witness, path, parts)


@pytest.mark.long
@native
@settings(max_examples=int(os.environ.get("EXAMPLES", "20000")), deadline=None)
@given(path=PATHS, parts=PARTS)
def test_any_bytes_leave_other_sessions_alone_for_long(
    server: RunningServer, witness: Witness, path: str | None, parts: list[Part]
) -> None:
    check(server, witness, path, parts)
