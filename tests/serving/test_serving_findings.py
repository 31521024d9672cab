"""Regressions of the policy server that were found by fuzzing its wire."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("websockets", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

from helpers.engines import EPISODE, NATIVE
from helpers.servers import RunningServer, request_of, running_server
from helpers.serving_clients import frame, handshake, wait_until
from websockets.sync.client import connect

from jat_engine import JatEngine
from jat_engine.errors import InputError, SessionError
from jat_engine.serving import codec
from jat_engine.serving.auth import is_allowed
from jat_engine.serving.dialects import DIALECTS
from jat_engine.serving.errors import message_of as line_of
from jat_engine.serving.page import add_page
from jat_engine.serving.requests import Resume
from jat_engine.serving.service import PolicyService, ServiceOptions
from jat_engine.serving.snapshots import SnapshotStore, StoredSession

TWO = np.zeros(2, np.float32)
TOKENS = "a" * 40, "b" * 40


@pytest.mark.parametrize(
    ("path", "fields", "message"),
    [
        ("/", {"endpoint": TWO}, "endpoint: expected one of"),
        ("/v1/realtime/robot/openpi", {"endpoint": TWO}, "endpoint: expected one of"),
        ("/", {"image_observation": {"__image__": True, "format": [1], "data": b""}}, "image: expected format png"),
        ("/", {"action_space": {"type": TWO, "shape": [2]}}, "action_space: expected"),
        ("/vla-eval", {"type": TWO, "payload": {}, "seq": 1}, "type: expected one of"),
        # numpy would give each item of such a list as much memory as the longest one needs
        ("/", {"continuous_observation": ["a" * 10**6] + ["b"] * 50_000}, "continuous_observation: expected numbers"),
        ("/", {"reward": [b"a"]}, "reward: expected numbers"),
        ("/", {"force_action": [[1], [1, 2]]}, "lists of different lengths"),
        ("/", {"action_space": {"type": "Box", "shape": [1], "low": [{}]}}, "low: expected numbers"),
        # a server would split all of it into tokens while others wait: three minutes for 16 MB
        ("/", {"text_observation": "a " * 3000}, "text_observation: expected at most 4096 characters"),
        ("/", {"context_window": "a" * 10**6}, "context_window: expected"),
        ("/", {"a" * 10**6: 1}, "a"),
    ],
)
def test_wrong_fields_are_named_in_a_line(path: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        DIALECTS[path]({}).parse(codec.pack(fields))
    assert len(line_of(caught.value)) <= 1000


@pytest.fixture(scope="module")
def load_engine(tiny_folder: Path) -> Callable[[], JatEngine]:
    backend = "cpu" if NATIVE else "torch"
    return lambda: JatEngine.from_pretrained(tiny_folder, device="cpu", backend=backend, dtype="float32")


class SlowStore(SnapshotStore):
    """Snapshots on a slow disk.

    Attributes:
        num_begun: reads that have begun.
        num_reads: that have ended.
    """

    num_begun = num_reads = 0

    async def read(self, token: str) -> StoredSession | None:
        self.num_begun += 1
        await asyncio.sleep(0.2)
        found = await super().read(token)
        self.num_reads += 1
        return found


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SlowStore:
    return SlowStore(tmp_path_factory.mktemp("states"), 3600.0, 10**9)


@pytest.fixture(scope="module")
def server(load_engine: Callable[[], JatEngine], store: SlowStore) -> Iterator[RunningServer]:
    with running_server(load_engine, store=store, resume_grace_s=0.0, keys=("right",)) as running:
        running.call(lambda: add_page(running.server, dict) and None)
        yield running


def test_a_reward_may_be_a_list_of_one_number(server: RunningServer) -> None:
    """The engine took such a reward, and the sum of rewards failed."""
    headers = {"Authorization": "Bearer right"}
    with connect(server.url, compression=None, additional_headers=headers) as websocket:
        websocket.recv()
        for t in range(3):
            websocket.send(codec.pack(request_of(EPISODE["continuous_cw9"], t) | {"reward": [[0.5]]}))
            assert "actions" in codec.unpack(websocket.recv())
        (session,) = server.call(lambda: list(server.service.sessions))
        assert session.return_ == 1.0


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET //[ HTTP/1.1\r\nAuthorization: Bearer right", 404),
        (b"GET /metrics HTTP/1.1\r\nAuthorization: Bearer right\r\nAuthorization: Bearer right", 401),
        (handshake("a", "/", {"Upgrade": "websocket"}).removesuffix(b"\r\n\r\n"), 401),
    ],
)
def test_strange_requests_of_http_are_refused(request_: bytes, status: int, server: RunningServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 60) as client:
        client.sendall(request_ + b"\r\n\r\n")
        assert client.recv(1 << 12).startswith(b"HTTP/1.1 %d " % status)


def test_a_key_that_is_no_text_is_refused() -> None:
    assert not is_allowed("Bearer \ud800", ("right",))


def test_a_lost_connection_leaves_no_session(server: RunningServer, store: SlowStore) -> None:
    """The connection is lost while a request to resume a session reads the disk."""
    begun, ended = store.num_begun, store.num_reads
    opening = handshake("127.0.0.1", "/", {"Authorization": "Bearer right"})
    with socket.create_connection(("127.0.0.1", server.port), 60) as client:
        client.sendall(opening)
        client.recv(1 << 12)
        client.sendall(frame(codec.pack({"endpoint": "resume", "token": TOKENS[0], "session_id": "a"})))
        wait_until(lambda: store.num_begun > begun)  # a reset would discard a message that has not been read
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_until(lambda: store.num_reads > ended)
    wait_until(lambda: not server.call(lambda: len(server.service.sessions)))


def test_two_sessions_do_not_get_one_name(load_engine: Callable[[], JatEngine], store: SlowStore) -> None:
    """Two requests to resume find the name free, and read the disk at the same time."""

    async def run() -> None:
        service = PolicyService(load_engine, ServiceOptions(resume_grace_s=0.0), store=store)
        await service.start()
        try:
            requests = [Resume(token, "a") for token in TOKENS]
            answers = await asyncio.gather(*(service.answer("me", r) for r in requests), return_exceptions=True)
            assert len(service.sessions) == 1
            assert [isinstance(answer, SessionError) for answer in answers] == [False, True]
            await service.drop("me")
            assert len(service.sessions) == 0
        finally:
            await service.stop()

    asyncio.run(run())
