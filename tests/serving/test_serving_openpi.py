"""The dialect `/` of the policy server, driven by openpi's own client over real connections."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("websockets", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")
client_policy = pytest.importorskip("openpi_client.websocket_client_policy", reason="openpi-client is not installed")

from helpers.engines import EPISODE, NATIVE
from helpers.servers import RunningServer, lone_actions, request_of, running_server
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from jat_engine import JatEngine
from jat_engine.serving import codec
from jat_engine.testing import golden

OPTIONS = {"backend": "cpu" if NATIVE else "torch", "dtype": "float32"}
MODALITIES = ("continuous_cw9", "discrete_only", "babyai_sampled", "atari_sampled_cw8")


@pytest.fixture(scope="module")
def load_engine(tiny_folder: Path) -> Callable[[], JatEngine]:
    return lambda: JatEngine.from_pretrained(tiny_folder, device="cpu", **OPTIONS)


@pytest.fixture(scope="module")
def engine(load_engine: Callable[[], JatEngine]) -> Iterator[JatEngine]:
    with load_engine() as engine:
        yield engine


@pytest.fixture(scope="module")
def server(load_engine: Callable[[], JatEngine]) -> Iterator[RunningServer]:
    with running_server(load_engine, max_sessions=32) as running:
        yield running


def connect_client(server: RunningServer, **fields: Any) -> Any:
    return client_policy.WebsocketClientPolicy(host=server.url, **fields)


def close_client(client: Any) -> None:
    client._ws.close()  # openpi's client has no other way


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def check_action(reply: dict[str, Any], episode: golden.Episode, expected: Any) -> None:
    actions = reply["actions"]
    if isinstance(expected, int):
        assert (actions.dtype, actions.tolist()) == (np.int64, [expected])
    else:
        assert (actions.dtype, actions.shape) == (np.float32, (1, episode.action_space[1]))
        assert actions[0].tolist() == expected


@pytest.mark.parametrize("name", MODALITIES)
def test_an_episode_is_that_of_a_lone_agent(name: str, server: RunningServer, engine: JatEngine) -> None:
    episode = EPISODE[name]
    client = connect_client(server)
    assert client.get_server_metadata()["server"] == "jat-engine"
    for t, expected in enumerate(lone_actions(engine, episode)):
        reply = client.infer(request_of(episode, t))
        check_action(reply, episode, expected)
        assert set(reply["server_timing"]) == {"infer_ms", "queue_ms", "batch"} | ({"prev_total_ms"} if t else set())
        assert all(float(value) >= 0 for value in reply["server_timing"].values())
        assert reply["policy_timing"]["infer_ms"] > 0
    close_client(client)


def test_the_client_as_vllm_omni_uses_it(server: RunningServer, engine: JatEngine) -> None:
    """vllm-omni's evaluators connect openpi's client to its path, and take the answer for an array."""
    episode = EPISODE["continuous_cw9"]
    client = client_policy.WebsocketClientPolicy(host=f"{server.url}/v1/realtime/robot/openpi")
    for name in ("first", "second"):
        for t, expected in enumerate(lone_actions(engine, episode, 4)):
            actions = np.asarray(client.infer(request_of(episode, t) | {"session_id": name}), dtype=np.float32)
            assert actions.tolist() == [expected]
    assert client.infer({"prompt": "go"})["type"] == "error"
    close_client(client)


def test_clients_at_once_each_act_as_alone(server: RunningServer, engine: JatEngine) -> None:
    """Episodes of all kinds, that begin and end at different times."""
    episodes = [EPISODE[name] for name in (*MODALITIES, *MODALITIES)]
    expected = [lone_actions(engine, episode) for episode in episodes]
    errors: list[BaseException] = []

    def play(number: int) -> None:
        try:
            time.sleep(0.02 * number)
            for _ in range(2):
                client = connect_client(server)
                for t, action in enumerate(expected[number]):
                    check_action(client.infer(request_of(episodes[number], t)), episodes[number], action)
                close_client(client)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=play, args=(number,)) for number in range(len(episodes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    text = server.call(server.service.metrics.to_text).decode()
    shared = [line for line in text.splitlines() if line.startswith('jat_batch_size_bucket{le="1.0"}')]
    steps = [line for line in text.splitlines() if line.startswith("jat_batch_size_count")]
    assert float(shared[0].split()[1]) < float(steps[0].split()[1]), "some steps had several sessions"


def test_no_request_is_lost_between_steps(server: RunningServer) -> None:
    """Many requests come while a step ends; each is in one of the next two steps."""
    episode = EPISODE["continuous_cw9"]
    requests = [codec.pack(request_of(episode, t)) for t in range(10)]

    async def play() -> None:
        async with connect_async(server.url, compression=None, max_size=None) as websocket:
            await websocket.recv()
            for t in range(150):
                await websocket.send(requests[t % 10])
                assert isinstance(await asyncio.wait_for(websocket.recv(), 30), bytes)

    async def play_all() -> None:
        await asyncio.gather(*(play() for _ in range(24)))

    asyncio.run(play_all())


def test_the_action_chunk_broker_takes_the_replies(server: RunningServer, engine: JatEngine) -> None:
    broker = pytest.importorskip("openpi_client.action_chunk_broker")
    episode = EPISODE["continuous_cw9"]
    client = connect_client(server)
    policy = broker.ActionChunkBroker(client, action_horizon=1)
    for t, expected in enumerate(lone_actions(engine, episode, 5)):
        assert policy.infer(request_of(episode, t))["actions"].tolist() == expected
    close_client(client)


def test_a_task_stands_for_its_action_space_and_window(server: RunningServer, engine: JatEngine) -> None:
    episode = EPISODE["babyai_sampled"]
    client = connect_client(server)
    actions = []
    for t in range(6):
        settings = {"task": "babyai-open", "seed": 3} if t == 0 else {}
        actions.append(client.infer({**episode.observation(t), **settings})["actions"].tolist()[0])
    with engine.open_session(256, 3) as session:
        steps = [session.get_next_action(**episode.observation(t), action_space=episode.space) for t in range(6)]
    assert actions == steps
    close_client(client)


def test_episodes_start_where_the_client_says(server: RunningServer, engine: JatEngine) -> None:
    """The sequence of random numbers goes on, as with `AgentSession.reset`, unless a start has a seed."""
    episode = EPISODE["discrete_only"]
    client = connect_client(server)
    starts: list[dict[str, Any]] = [{}, {"episode_start": True}, {"episode_start": True, "seed": 11}]
    with engine.open_session(episode.context_window, episode.seed) as session, engine.open_session(10, 11) as other:
        for number, start in enumerate(starts):
            agent = other if "seed" in start else session
            agent.reset()
            for t in range(5):
                fields = request_of(episode, t) | (start if t == 0 else {})
                if number:
                    fields.pop("seed") if "seed" not in start else None
                    fields |= {"seed": 11} if "seed" in start else {}
                expected = agent.get_next_action(
                    **episode.observation(t), action_space=episode.space, reward=episode.reward(t)
                )
                check_action(client.infer(fields), episode, expected)
    close_client(client)


def test_sessions_with_names_share_a_connection(server: RunningServer, engine: JatEngine) -> None:
    episodes = [EPISODE[name] for name in MODALITIES]
    expected = [lone_actions(engine, episode, 6) for episode in episodes]
    with connect(server.url, compression=None, max_size=None) as websocket:
        codec.unpack(websocket.recv())
        for t in range(6):
            for number, episode in enumerate(episodes):
                websocket.send(codec.pack(request_of(episode, t) | {"session_id": f"agent {number}"}))
            for number, episode in enumerate(episodes):
                reply = codec.unpack(websocket.recv())
                assert reply["session_id"] == f"agent {number}"
                check_action(reply, episode, expected[number][t])
        websocket.send(codec.pack({"endpoint": "close", "session_id": "agent 0"}))
        assert codec.unpack(websocket.recv()) == {"status": "closed"}
        assert len(server.call(lambda: list(server.service.sessions))) == 3


def test_a_reset_is_answered_as_roboarena_expects(server: RunningServer, engine: JatEngine) -> None:
    episode = EPISODE["continuous_cw9"]
    expected = lone_actions(engine, episode, 3)
    with connect(server.url, compression=None, max_size=None) as websocket:
        websocket.recv()
        for _ in range(2):
            websocket.send(codec.pack({"endpoint": "reset"}))
            assert websocket.recv() == "reset successful"
            for t in range(3):
                websocket.send(codec.pack({**request_of(episode, t), "endpoint": "infer"}))
                check_action(codec.unpack(websocket.recv()), episode, expected[t])


BAD = {
    "unknown field": {"observation": [1.0]},
    "two kinds": {"continuous_observation": [1.0], "image_observation": np.zeros((84, 84, 4), np.uint8)},
    "not numbers": {"continuous_observation": "abc"},
    "not finite": {"continuous_observation": [float("nan")] * 4},
    "other size": {"continuous_observation": np.zeros(2, np.float32)},
    "space": {"action_space": {"type": "Dict"}},
    "task": {"task": "atari-pnog"},
    "seed": {"seed": -1},
    "other seed": {"seed": 12345},
    "window": {"context_window": 0},
    "longer window": {"context_window": 400},
    "mask": {"action_mask": [True, False]},
    "deterministic": {"deterministic": "yes"},
    "session": {"session_id": ""},
    "endpoint": {"endpoint": "eval"},
    "reward": {"reward": "high"},
}


def test_bad_input_gets_a_line_and_changes_nothing(server: RunningServer, engine: JatEngine) -> None:
    episode = EPISODE["continuous_cw9"]
    expected = lone_actions(engine, episode, len(BAD) + 1)
    client = connect_client(server)
    check_action(client.infer(request_of(episode, 0)), episode, expected[0])
    for t, (name, fields) in enumerate(BAD.items(), 1):
        with pytest.raises(RuntimeError, match="expected") as caught:
            client.infer(request_of(episode, t) | fields)
        (_, line) = str(caught.value).splitlines()  # openpi's client puts a line of its own before
        assert "Traceback" not in line, name
        check_action(client.infer(request_of(episode, t)), episode, expected[t])
    close_client(client)


def test_settings_of_a_refused_request_do_not_hold(server: RunningServer, engine: JatEngine) -> None:
    episode = EPISODE["continuous_cw9"]
    expected = lone_actions(engine, episode, 4)
    other_space = {"action_space": {"type": "Box", "shape": [3]}}
    too_large = {"action_space": {"type": "Box", "shape": [9999]}, "context_window": 2, "seed": 1}
    client = connect_client(server)
    check_action(client.infer(request_of(episode, 0)), episode, expected[0])
    for t in (1, 2):
        with pytest.raises(RuntimeError, match="action_space: expected"):
            client.infer({**request_of(episode, t), **other_space})
        check_action(client.infer(request_of(episode, t)), episode, expected[t])

    with pytest.raises(RuntimeError, match="action_space: expected"):
        client.infer({**request_of(episode, 0), **too_large, "episode_start": True})
    reply = client.infer(episode.observation(0))  # of the episode that has begun, with the settings of the one before
    check_action(reply, episode, expected[0])
    close_client(client)


def test_bytes_that_are_no_message_leave_the_connection(server: RunningServer, engine: JatEngine) -> None:
    episode = EPISODE["continuous_cw9"]
    expected = lone_actions(engine, episode, 8)
    bad = [b"", b"\xc1", b"\x93\x01", b"\xff" * 100, codec.pack([1, 2]), codec.pack(5), b"\x91" * 600, "text"]
    with connect(server.url, compression=None, max_size=None) as websocket:
        websocket.recv()
        for t, frame in enumerate(bad):
            websocket.send(frame)
            answer = websocket.recv()
            assert isinstance(answer, str)
            assert answer.startswith("message: expected")
            assert len(answer.splitlines()) == 1
            websocket.send(codec.pack(request_of(episode, t)))
            check_action(codec.unpack(websocket.recv()), episode, expected[t])
        websocket.send(bytes(codec.MOST_BYTES + 1))
        assert "expected at most 16777216 bytes" in websocket.recv()
        websocket.send(codec.pack({"endpoint": "reset"}))
        assert websocket.recv() == "reset successful"


def test_a_repeated_request_acts_once(server: RunningServer, engine: JatEngine) -> None:
    episode = EPISODE["discrete_only"]
    expected = lone_actions(engine, episode)
    client = connect_client(server)
    for t, action in enumerate(expected):
        for _ in range(1 + t % 3):
            reply = client.infer(request_of(episode, t) | {"seq": 10 + t})
            assert reply["seq"] == 10 + t
            check_action(reply, episode, action)
    with pytest.raises(RuntimeError, match="seq: expected more than 29"):
        client.infer(request_of(episode, 0) | {"seq": 5})
    close_client(client)


def test_dropped_connections_leave_no_pages(server: RunningServer) -> None:
    def reserved() -> int:
        stats = server.call(server.service.cache_stats)
        return int(stats.reserved)

    wait_until(lambda: not server.call(lambda: len(server.service.sessions)))
    before = reserved()
    for number in range(30):
        websocket = connect(server.url, compression=None, max_size=None, legacy=True)
        websocket.recv()
        websocket.send(codec.pack(request_of(EPISODE[MODALITIES[number % 4]], 0)))
        if number % 3:
            websocket.recv()
        websocket.socket.close() if number % 2 else websocket.close()
    wait_until(lambda: not server.call(lambda: len(server.service.sessions)))
    assert reserved() == before


def test_no_more_sessions_than_there_is_room_for(load_engine: Callable[[], JatEngine]) -> None:
    fields = request_of(EPISODE["continuous_cw9"], 0)
    with running_server(load_engine, max_sessions=2) as server:
        early = connect(server.url, compression=None, max_size=None, legacy=True)
        clients = [connect_client(server) for _ in range(2)]
        for client in clients:
            client.infer(fields)
        with pytest.raises(InvalidStatus) as refused:
            connect_client(server)
        assert refused.value.response.status_code == 503

        early.recv()
        early.send(codec.pack(fields))
        assert "expected at most 2 sessions" in early.recv()
        with pytest.raises(ConnectionClosed) as closed:
            early.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1013

        close_client(clients[0])
        wait_until(lambda: bool(server.call(lambda: server.service.is_ready)))
        third = connect_client(server)
        third.infer(fields)
        close_client(third)


def test_idle_sessions_and_connections_are_closed(load_engine: Callable[[], JatEngine]) -> None:
    fields = request_of(EPISODE["continuous_cw9"], 0)
    with running_server(load_engine, idle_timeout_s=0.6) as server:
        with connect(server.url, compression=None, max_size=None) as websocket:
            websocket.recv()
            websocket.send(codec.pack(fields | {"session_id": "a"}))
            codec.unpack(websocket.recv())
            for _ in range(10):
                time.sleep(0.12)
                websocket.send(codec.pack(fields | {"session_id": "b"}))
                codec.unpack(websocket.recv())
            assert [s.name for s in server.call(lambda: list(server.service.sessions))] == ["b"]
            websocket.send(codec.pack(fields | {"session_id": "a"}))
            assert "closed since it was idle" in websocket.recv()
            websocket.send(codec.pack(fields | {"session_id": "a", "episode_start": True}))
            assert codec.unpack(websocket.recv())["session_id"] == "a"
            with pytest.raises(ConnectionClosed):
                websocket.recv(timeout=20)
        wait_until(lambda: not server.call(lambda: len(server.service.sessions)))


def test_keys(load_engine: Callable[[], JatEngine]) -> None:
    with running_server(load_engine, keys=("first", "second")) as server:
        for key in ("first", "second"):
            close_client(connect_client(server, api_key=key))
        connect(server.url, additional_headers={"Authorization": "Bearer second"}, legacy=True).close()
        for headers in ({}, {"Authorization": "Api-Key third"}, {"Authorization": "Basic first"}):
            with pytest.raises(InvalidStatus) as refused:
                connect(server.url, additional_headers=headers, legacy=True)
            assert refused.value.response.status_code == 401
