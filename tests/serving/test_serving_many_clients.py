"""Golden episodes of all kinds, played by fifty clients at once that join and leave at random moments."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("websockets", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

from helpers.engines import EPISODE, native
from helpers.servers import RunningServer, request_of, running_server
from helpers.serving_clients import expected_actions, wait_until
from websockets.asyncio.client import connect

from jat_engine import JatEngine
from jat_engine.serving import codec

NUM_CLIENTS = 50


@pytest.fixture
def load_engine(tiny_folder: Path) -> Callable[[], JatEngine]:
    options: dict[str, Any] = {"device": "cpu", "backend": "cpu", "dtype": "float32"}
    return lambda: JatEngine.from_pretrained(tiny_folder, max_cached_tokens=2 * NUM_CLIENTS * 512, **options)


def play_at_once(server: RunningServer, expected: dict[str, list[Any]], visits: int, most_steps: int) -> list[int]:
    """Let all clients visit a server several times, for an episode or a part of it.

    Returns:
        The number of sessions in the step of each action.
    """
    batches: list[int] = []

    async def visit(numbers: random.Random) -> None:
        await asyncio.sleep(numbers.uniform(0, 0.2))
        async with connect(server.url, compression=None, max_size=None) as websocket:
            await websocket.recv()
            for _ in range(numbers.randint(1, 2)):
                name = numbers.choice(list(expected))
                stay = numbers.randint(1, min(most_steps, len(expected[name])))
                for t in range(stay):
                    fields = request_of(EPISODE[name], t) | ({"episode_start": True} if t == 0 else {})
                    await websocket.send(codec.pack(fields))
                    answer = codec.unpack(await websocket.recv())
                    assert answer["actions"].tolist() == [expected[name][t]], f"{name}, step {t}"
                    batches.append(answer["server_timing"]["batch"])
                    if numbers.random() < 0.2:
                        await asyncio.sleep(numbers.uniform(0, 0.01))
            if numbers.random() < 0.5:  # leave with a request on its way, without a close
                await websocket.send(codec.pack(request_of(EPISODE[name], 0)))
                websocket.transport.abort()

    async def play(number: int) -> None:
        numbers = random.Random(number)
        for _ in range(visits):
            await visit(numbers)

    async def play_all() -> None:
        await asyncio.gather(*(play(number) for number in range(NUM_CLIENTS)))

    asyncio.run(play_all())
    return batches


def check(load_engine: Callable[[], JatEngine], visits: int, most_steps: int) -> None:
    with load_engine() as engine:
        expected = expected_actions(engine)
    with running_server(load_engine, max_sessions=2 * NUM_CLIENTS) as server:
        before = server.call(server.service.cache_stats)
        batches = play_at_once(server, expected, visits, most_steps)
        wait_until(lambda: not server.call(lambda: len(server.service.sessions)))
        wait_until(lambda: server.call(server.service.cache_stats).reserved == before.reserved)
    assert max(batches) > NUM_CLIENTS // 5, "many share a step"


@native
def test_fifty_clients_each_act_as_alone(load_engine: Callable[[], JatEngine]) -> None:
    check(load_engine, visits=3, most_steps=20)


@pytest.mark.long
@native
def test_fifty_clients_each_act_as_alone_for_long(load_engine: Callable[[], JatEngine]) -> None:
    check(load_engine, visits=int(os.environ.get("VISITS", "100")), most_steps=1000)
