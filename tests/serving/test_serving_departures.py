"""What is left of clients that leave in the middle of something: nothing."""

from __future__ import annotations

import asyncio
import gc
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("websockets", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

from helpers.engines import EPISODE, NATIVE
from helpers.servers import request_of, running_server
from helpers.serving_clients import frame, handshake, wait_until
from websockets.server import ServerProtocol

from jat_engine import JatEngine
from jat_engine.serving.requests import Act, Reply, parse_act
from jat_engine.serving.service import PolicyService, ServiceOptions
from jat_engine.serving.sessions import ServedSession

OPTIONS = {"backend": "cpu" if NATIVE else "torch", "dtype": "float32"}


@pytest.fixture
def without_collection() -> Iterator[None]:
    """Let nothing be freed but what nobody refers to."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_collection")
@pytest.mark.parametrize("sent", ["half a message", "half a head"])
def test_bytes_of_an_unfinished_message_go_with_the_connection(tiny_folder: Path, sent: str) -> None:
    def parsers() -> int:
        return sum(type(thing) is ServerProtocol for thing in gc.get_objects())

    with running_server(lambda: JatEngine.from_pretrained(tiny_folder, device="cpu", **OPTIONS)) as server:
        before = parsers()
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(handshake(f"127.0.0.1:{server.port}", "/"))
            client.recv(1 << 12)
            wait_until(lambda: bool(server.call(lambda: len(server.server.connections))))
            assert parsers() == before + 1
            client.sendall(frame(bytes(1 << 20))[: 1 << 19 if sent == "half a message" else 3])
        wait_until(lambda: not server.call(lambda: len(server.server.connections)))
        wait_until(lambda: parsers() == before)


class Follower:
    """Observer that keeps, as a recorder does, the sessions that have not ended."""

    def __init__(self) -> None:
        self.open: set[ServedSession] = set()
        self.ends = 0

    def on_start(self, session: ServedSession) -> None:
        self.open.add(session)

    def on_step(self, session: ServedSession, request: Act, reply: Reply) -> None:
        self.open.add(session)

    def on_close(self, session: ServedSession) -> None:
        self.open.discard(session)
        self.ends += 1


@pytest.mark.parametrize("begun", [False, True])
def test_a_session_whose_owner_leaves_in_mid_step_is_not_followed_any_more(tiny_folder: Path, begun: bool) -> None:
    async def leave() -> None:
        service = PolicyService(
            lambda: JatEngine.from_pretrained(tiny_folder, device="cpu", **OPTIONS), ServiceOptions(max_sessions=2)
        )
        await service.start()
        follower = Follower()
        service.observers.append(follower)
        episode = EPISODE["continuous_cw9"]
        request = [parse_act(request_of(episode, t) | {"session_id": "arm"}) for t in range(2)]
        if begun:
            await service.answer("client", request[0])
        step = asyncio.create_task(service.answer("client", request[begun]))
        while not service.sessions.of("client") or not service.sessions.of("client")[0].lock.locked():
            await asyncio.sleep(0)
        while service.batcher.queue_length:  # the engine's thread takes the step; its result waits for this one
            time.sleep(0.001)
        await service.drop("client")
        assert not step.done()
        await step
        assert (follower.ends, follower.open) == (1, set())
        await service.stop()

    asyncio.run(leave())
