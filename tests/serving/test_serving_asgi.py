"""The policy server behind another server's port, by ASGI; uvicorn is the one that Ray Serve uses."""

from __future__ import annotations

import asyncio
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("websockets", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="the extra `ray` is not installed")

from helpers.engines import EPISODE
from helpers.servers import lone_actions, request_of
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from jat_engine import JatEngine
from jat_engine.client import AccessError, RemoteAgent
from jat_engine.serving import codec
from jat_engine.serving.asgi import AsgiApp, read_request
from jat_engine.serving.description import describe
from jat_engine.serving.server import PolicyServer, ServerOptions
from jat_engine.serving.service import PolicyService, ServiceOptions
from jat_engine.serving.snapshots import SnapshotStore

KEY = "secret"
HEADERS = {"Authorization": f"Api-Key {KEY}"}
MAX_SESSIONS = 6
MODALITIES = ("continuous_cw9", "discrete_only", "babyai_sampled", "atari_sampled_cw8")


class AsgiServer:
    """A policy server behind uvicorn, in a thread.

    Attributes:
        service: of it.
        url: of it.
    """

    def __init__(self, load: Callable[[], JatEngine], state: Path, with_extensions: bool = True) -> None:
        limits = ServiceOptions(max_sessions=MAX_SESSIONS)
        self.service = PolicyService(load, limits, store=SnapshotStore(state, 3600.0, 10**9))
        server = PolicyServer(
            self.service,
            ServerOptions(host="0.0.0.0", keys=(KEY,), drain_timeout_s=5),
            lambda: describe(self.service.batcher.engine, "tiny", MAX_SESSIONS, limits.defaults),
        )
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"ws://127.0.0.1:{listener.getsockname()[1]}"
        app = AsgiApp(server)

        async def without_extensions(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "extensions": {}}, receive, send)

        config = uvicorn.Config(app if with_extensions else without_extensions, lifespan="on", log_level="warning")
        self._uvicorn = uvicorn.Server(config)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._uvicorn.serve([listener])), daemon=True)

    def __enter__(self) -> AsgiServer:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._uvicorn.should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        """Return the status and the body of a page."""
        request = urllib.request.Request(self.url.replace("ws:", "http:") + path, headers=headers)
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()


@pytest.fixture(scope="module")
def load_engine(tiny_folder: Path) -> Callable[[], JatEngine]:
    return lambda: JatEngine.from_pretrained(tiny_folder, device="cpu", max_cached_tokens=2 * MAX_SESSIONS * 512)


@pytest.fixture(scope="module")
def server(load_engine: Callable[[], JatEngine], tmp_path_factory: pytest.TempPathFactory) -> Iterator[AsgiServer]:
    with AsgiServer(load_engine, tmp_path_factory.mktemp("state")) as server:
        with RemoteAgent(server.url, api_key=KEY, patience_s=60):  # waits until it listens
            pass
        yield server


@pytest.mark.parametrize("name", MODALITIES)
def test_an_episode_is_as_in_this_process(name: str, server: AsgiServer, load_engine: Callable[[], JatEngine]) -> None:
    with load_engine() as engine, connect(server.url, additional_headers=HEADERS, compression=None) as websocket:
        assert codec.unpack(websocket.recv())["server"] == "jat-engine"
        for t, expected in enumerate(lone_actions(engine, EPISODE[name])):
            websocket.send(codec.pack(request_of(EPISODE[name], t)))
            assert codec.unpack(websocket.recv())["actions"].tolist() == [expected]


def test_a_message_that_is_not_of_the_dialect(server: AsgiServer) -> None:
    with connect(server.url, additional_headers=HEADERS) as websocket:
        websocket.recv()
        for message in ("text", b"\xc1"):
            websocket.send(message)
            assert "expected" in str(websocket.recv())


def test_pages(server: AsgiServer) -> None:
    assert server.get("/healthz") == (200, b"OK\n")
    assert server.get("/ready") == (200, b"ready\n")
    assert server.get("/metrics")[0] == 401
    status, text = server.get("/metrics", **HEADERS)
    assert status == 200
    assert b"jat_sessions " in text
    assert server.get("/nothing")[0] == 404
    request = urllib.request.Request(f"{server.url.replace('ws:', 'http:')}/healthz", data=b"x")
    with pytest.raises(urllib.error.HTTPError, match="405"):
        urllib.request.urlopen(request)


def test_a_connection_that_is_refused(server: AsgiServer) -> None:
    with pytest.raises(AccessError, match="expected one of the server's keys; it says: expected a key of the server"):
        RemoteAgent(server.url, api_key="wrong")
    with pytest.raises(InvalidStatus, match="404"):
        connect(f"{server.url}/nothing", additional_headers=HEADERS, legacy=True)


def test_a_full_server(server: AsgiServer) -> None:
    episode = EPISODE["discrete_only"]
    with connect(server.url, additional_headers=HEADERS) as websocket:
        websocket.recv()
        for number in range(MAX_SESSIONS):
            websocket.send(codec.pack(request_of(episode, 0) | {"session_id": str(number)}))
            assert "actions" in codec.unpack(websocket.recv())
        with pytest.raises(InvalidStatus) as refused:
            connect(server.url, additional_headers=HEADERS, legacy=True)
        assert refused.value.response.status_code == 503
        assert refused.value.response.headers["Retry-After"] == "1"
        assert server.get("/ready")[0] == 503
    with RemoteAgent(server.url, api_key=KEY):  # has room again
        pass


def test_a_server_that_cannot_answer_the_request_for_a_websocket(
    load_engine: Callable[[], JatEngine], tmp_path: Path
) -> None:
    """ASGI's answer to it is an extension: without it a full server lets a client in, and says why it closes."""
    with AsgiServer(load_engine, tmp_path, with_extensions=False) as server:
        with RemoteAgent(server.url, api_key=KEY, patience_s=60):
            pass
        with pytest.raises(AccessError):
            RemoteAgent(server.url, api_key="wrong")
        server.service.drain()
        with pytest.raises(ConnectionClosed) as closed, connect(server.url, additional_headers=HEADERS) as websocket:
            websocket.recv()
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1013, "the server ends")


def test_its_end_stores_the_sessions(load_engine: Callable[[], JatEngine], tmp_path: Path) -> None:
    episode = EPISODE["continuous_cw9"]
    with load_engine() as engine:
        expected = lone_actions(engine, episode)

    def act(t: int) -> Any:
        return agent.get_next_action(
            **episode.observation(t),
            action_space=episode.space,
            reward=episode.reward(t),
            deterministic=episode.deterministic,
            context_window=episode.context_window,
        )

    with AsgiServer(load_engine, tmp_path) as second:
        with AsgiServer(load_engine, tmp_path) as first:
            agent = RemoteAgent([first.url, second.url], seed=episode.seed, api_key=KEY, patience_s=60)
            taken = [act(t) for t in range(episode.steps // 2)]
        with agent:
            taken += [act(t) for t in range(episode.steps // 2, episode.steps)]
        assert taken == expected
        (recovery,) = agent.recoveries
        assert (recovery.status, recovery.replayed) == ("restored", 0)


@pytest.mark.parametrize(
    ("root", "path", "found"),
    [("", "/a", "/a"), ("/app", "/app", "/"), ("/app", "/app/a", "/a"), ("/app", "/apple", "/apple"), ("", "", "")],
)
def test_paths_are_those_below_the_root(root: str, path: str, found: str) -> None:
    scope = {"type": "http", "root_path": root, "path": path, "query_string": b"x=1", "headers": [(b"a", b"b")]}
    request = read_request(scope)
    assert request.path == f"{found}?x=1"
    assert request.headers["A"] == "b"
