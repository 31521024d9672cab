"""Episodes of a served session, one after the other: each has the random numbers and the window that it should have."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("websockets", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

from helpers.engines import EPISODE, NATIVE, play
from helpers.servers import request_of, running_server
from websockets.sync.client import connect

from jat_engine import AgentSession, InputError, JatEngine
from jat_engine.serving import codec
from jat_engine.serving.record import Recorder
from jat_engine.serving.replay import find_log, replay
from jat_engine.serving.requests import Reply, parse_act
from jat_engine.serving.service import PolicyService, ServiceOptions

SAMPLED = EPISODE["babyai_sampled"]
STEPS = 6


@pytest.fixture(scope="module")
def load_engine(tiny_folder: Path) -> Callable[[], JatEngine]:
    backend = "cpu" if NATIVE else "torch"
    return lambda: JatEngine.from_pretrained(tiny_folder, device="cpu", backend=backend, dtype="float32")


@pytest.fixture(scope="module")
def engine(load_engine: Callable[[], JatEngine]) -> Iterator[JatEngine]:
    with load_engine() as engine:
        yield engine


def serve(
    load_engine: Callable[[], JatEngine], run: Callable[[PolicyService], Awaitable[None]], log: Path | None = None
) -> None:
    """Run a function with a service, which records its sessions if there is a folder for that."""

    async def main() -> None:
        service = PolicyService(load_engine, ServiceOptions())
        recorder = None if log is None else Recorder(log, 10**8, dict)
        if recorder is not None:
            service.observers.append(recorder)
        await service.start()
        try:
            await run(service)
        finally:
            await service.stop()
            if recorder is not None:
                recorder.close()

    asyncio.run(main())


async def episode_of(service: PolicyService, **start: Any) -> list[Any]:
    """Play an episode from its start, with the settings of its first request, and return the actions."""
    actions = []
    for t in range(STEPS):
        fields = request_of(SAMPLED, t)
        for name in ("seed", "context_window"):
            fields.pop(name, None)
        if not t:
            fields |= {"episode_start": True, **start}
        reply = await service.answer("me", parse_act(fields))
        assert isinstance(reply, Reply)
        actions.append(reply.action)
    return actions


def lone_episode(session: AgentSession) -> list[Any]:
    session.reset()
    return [play(session, SAMPLED, t)[0] for t in range(STEPS)]


def test_a_refused_start_changes_neither_numbers_nor_window(
    load_engine: Callable[[], JatEngine], engine: JatEngine, tmp_path: Path
) -> None:
    with engine.open_session(8, seed=7) as session:
        expected = [lone_episode(session) for _ in range(3)]

    async def run(service: PolicyService) -> None:
        assert await episode_of(service, seed=7, context_window=8) == expected[0]
        for refused in ({"seed": 99, "context_window": 1, "temperature": -1.0}, {"temperature": -1.0}, {"seed": -1}):
            with pytest.raises(InputError):
                await episode_of(service, **refused)
        assert await episode_of(service) == expected[1]
        with pytest.raises(InputError, match="temperature"):
            await episode_of(service, seed=98, temperature=-1.0)
        assert await episode_of(service, seed=7) == expected[0]
        assert await episode_of(service) == expected[1]
        assert await episode_of(service) == expected[2]

    serve(load_engine, run, tmp_path / "log")
    replayed = list(replay(engine, find_log(tmp_path / "log")))
    assert [one.is_equal for one in replayed] == [True] * 5, list(map(str, replayed))


def test_numbers_go_on_in_a_longer_window(
    load_engine: Callable[[], JatEngine], engine: JatEngine, tmp_path: Path
) -> None:
    with engine.open_session(4, seed=3) as session:
        expected = [lone_episode(session)]
        generator = session.generator
    with engine.open_session(16, seed=generator) as session:
        expected.append(lone_episode(session))
    with engine.open_session(4, seed=session.generator) as session:
        expected.append(lone_episode(session))

    async def run(service: PolicyService) -> None:
        assert await episode_of(service, seed=3, context_window=4) == expected[0]
        assert await episode_of(service, context_window=16) == expected[1]
        assert await episode_of(service, context_window=4) == expected[2]

    serve(load_engine, run, tmp_path / "log")
    replayed = list(replay(engine, find_log(tmp_path / "log")))
    assert [one.is_equal for one in replayed] == [True] * 3, list(map(str, replayed))


def test_a_start_that_waits_behind_the_end_of_its_session(load_engine: Callable[[], JatEngine]) -> None:
    """A client need not wait for the answer to `close` before it begins again under the same name."""
    first = request_of(SAMPLED, 0) | {"session_id": "a", "episode_start": True}
    with running_server(load_engine) as server, connect(server.url, compression=None) as websocket:
        websocket.recv()
        for fields in (
            first,
            {"endpoint": "close", "session_id": "a"},
            first,
            {"endpoint": "close", "session_id": "b"},
        ):
            websocket.send(codec.pack(fields))
        answers = [codec.unpack(websocket.recv()) for _ in range(4)]
    assert answers[0]["actions"] == answers[2]["actions"]
    assert answers[1] == answers[3] == {"status": "closed"}
