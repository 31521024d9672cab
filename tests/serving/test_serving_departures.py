"""Clients that leave in the middle of a step: their sessions end, and observers are told so once."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

pytest.importorskip("websockets", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

from helpers.engines import EPISODE, NATIVE
from helpers.servers import request_of

from jat_engine import JatEngine
from jat_engine.serving.requests import Act, Reply, parse_act
from jat_engine.serving.service import PolicyService, ServiceOptions
from jat_engine.serving.sessions import ServedSession

OPTIONS = {"backend": "cpu" if NATIVE else "torch", "dtype": "float32"}


class Follower:
    """Observer that keeps, as a recorder does, the sessions that have not ended."""

    def __init__(self) -> None:
        self.open: set[ServedSession] = set()
        self.ends = 0

    def on_start(self, session: ServedSession) -> None:
        self.open.add(session)

    def on_restore(self, session: ServedSession, snapshot: bytes) -> None:
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
