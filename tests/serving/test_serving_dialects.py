"""The dialects of vla-eval, driven by its own client, and of vllm-omni, by frames as it sends them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import msgpack
import numpy as np
import pytest

pytest.importorskip("websockets", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

from helpers.engines import EPISODE, NATIVE
from helpers.servers import RunningServer, lone_actions, request_of, running_server
from websockets.sync.client import connect

from jat_engine import JatEngine
from jat_engine.serving import codec
from jat_engine.serving.spaces import describe_space

OPTIONS = {"backend": "cpu" if NATIVE else "torch", "dtype": "float32"}


@pytest.fixture(scope="module")
def load_engine(tiny_folder: Path) -> Callable[[], JatEngine]:
    return lambda: JatEngine.from_pretrained(tiny_folder, device="cpu", **OPTIONS)


@pytest.fixture(scope="module")
def engine(load_engine: Callable[[], JatEngine]) -> Iterator[JatEngine]:
    with load_engine() as engine:
        yield engine


@pytest.fixture(scope="module")
def server(load_engine: Callable[[], JatEngine]) -> Iterator[RunningServer]:
    with running_server(load_engine) as running:
        yield running


@pytest.mark.parametrize("name", ["atari_sampled_cw8", "continuous_cw9", "babyai_sampled"])
@pytest.mark.parametrize("image_format", ["png", "raw"])
def test_whole_episodes_of_vla_eval(name: str, image_format: str, server: RunningServer, engine: JatEngine) -> None:
    connection = pytest.importorskip("vla_eval.connection", reason="vla-eval is not installed")
    numpy_codec = pytest.importorskip("vla_eval.protocol.numpy_codec")
    episode = EPISODE[name]
    expected = lone_actions(engine, episode)
    task = {"name": name, "action_space": describe_space(episode.space), "context_window": episode.context_window}
    task |= {"seed": episode.seed, "deterministic": episode.deterministic, "suite": "golden"}

    async def play() -> None:
        async with connection.Connection(f"{server.url}/vla-eval") as client:
            assert client.server_info["model_server"] == "jat-engine"
            for _ in range(2):
                await client.start_episode({"task": task})
                for t, action in enumerate(expected):
                    payload = {**episode.observation(t), "reward": episode.reward(t), "return_prediction": True}
                    answer = await client.act(payload)
                    assert np.asarray(answer["actions"]).tolist() == action
                    prediction = np.asarray(answer["predictions"])
                    is_box = isinstance(action, list)
                    assert prediction.tolist() == action if is_box else prediction.shape == (episode.space.n,)
                await client.end_episode({"success": True})
            with pytest.raises(RuntimeError, match="image_observation: expected"):
                await client.act({"image_observation": np.zeros((3, 3, 3), np.uint8)})

    numpy_codec.set_image_format(image_format)
    try:
        asyncio.run(play())
    finally:
        numpy_codec.set_image_format("png")


def test_wrong_messages_of_vla_eval(server: RunningServer) -> None:
    wrong = [
        {"type": "observation", "payload": {"continuous_observation": [1.0]}, "seq": 5, "timestamp": 0.0},
        {"type": "jump", "payload": {}, "seq": 6, "timestamp": 0.0},
        {"type": "observation", "payload": [1], "seq": 7, "timestamp": 0.0},
        {"type": "episode_start", "payload": {"task": {"name": "atari-pnog"}}, "seq": 8, "timestamp": 0.0},
    ]
    with connect(f"{server.url}/vla-eval", compression=None) as websocket:
        for message in wrong:
            websocket.send(msgpack.packb(message))
            answer = codec.unpack(websocket.recv())
            assert (answer["type"], answer["seq"]) == ("error", message["seq"])
            assert "expected" in answer["payload"]["error"]
        websocket.send(b"\xc1")
        assert codec.unpack(websocket.recv())["type"] == "error"


def test_frames_of_vllm_omni(server: RunningServer, engine: JatEngine) -> None:
    episode = EPISODE["discrete_only"]
    expected = lone_actions(engine, episode, 4)
    with connect(f"{server.url}/v1/realtime/robot/openpi", compression=None) as websocket:
        assert codec.unpack(websocket.recv())["server"] == "jat-engine"
        for name in ("left", "right"):
            for t in range(4):
                fields = {key.encode(): value for key, value in request_of(episode, t).items()}
                websocket.send(codec.pack(fields | {b"session_id": name}))
                assert codec.unpack(websocket.recv()).tolist() == [expected[t]]
        websocket.send(codec.pack({"endpoint": "reset", "session_id": "left", "seed": episode.seed}))
        assert codec.unpack(websocket.recv()) == {"status": "reset successful"}
        websocket.send(codec.pack(request_of(episode, 0) | {"session_id": "left"}))
        assert codec.unpack(websocket.recv()).tolist() == [expected[0]]
        websocket.send(codec.pack(request_of(episode, 1)))  # of the session of the one before
        assert codec.unpack(websocket.recv()).tolist() == [expected[1]]
        for wrong in ({"session_id": "left", "reward": "x"}, {"endpoint": "resume"}, {"session_id": 1.5}):
            websocket.send(codec.pack(wrong))
            answer = codec.unpack(websocket.recv())
            assert (answer["type"], "expected" in answer["message"]) == ("error", True)
        websocket.send(codec.pack({"endpoint": "close", "session_id": "right"}))
        assert codec.unpack(websocket.recv()) == {"status": "closed"}
        assert [session.name for session in server.call(lambda: list(server.service.sessions))] == ["left"]


def test_names_of_episodes_leave_no_sessions(server: RunningServer, engine: JatEngine) -> None:
    """An evaluator of vllm-omni's has a new name for each episode, and resets without one."""
    episode = EPISODE["discrete_only"]
    expected = lone_actions(engine, episode, 2)
    with connect(f"{server.url}/v1/realtime/robot/openpi", compression=None) as websocket:
        websocket.recv()
        for number in range(100):
            for t in range(2):
                websocket.send(codec.pack(request_of(episode, t) | {"session_id": number % 60}))
                assert codec.unpack(websocket.recv()).tolist() == [expected[t]]
            websocket.send(codec.pack({"endpoint": "reset"}))
            assert codec.unpack(websocket.recv()) == {"status": "reset successful"}
        assert len(server.call(lambda: list(server.service.sessions))) == 1
