"""Recorded messages of RoboArena's and vllm-omni's clients get answers of the same form as from their own servers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

pytest.importorskip("websockets", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

from helpers.engines import EPISODE, NATIVE
from helpers.servers import lone_actions, running_server
from websockets.sync.client import connect

from jat_engine import JatEngine
from jat_engine.serving import codec
from jat_engine.serving.dialects import RESET_REPLIES, dialects_with
from jat_engine.serving.requests import Reset

FRAMES = Path(__file__).parent / "frames"
PATHS = {"roboarena": "/", "vllm_omni": "/v1/realtime/robot/openpi"}
PLAYED = EPISODE["continuous_cw9"]


@pytest.fixture(scope="module")
def load_engine(tiny_folder: Path) -> Callable[[], JatEngine]:
    options = {"backend": "cpu" if NATIVE else "torch", "dtype": "float32"}
    return lambda: JatEngine.from_pretrained(tiny_folder, device="cpu", **options)


def step_of(fields: dict[Any, Any]) -> int | None:
    """Return the step of the golden episode that a request's observation is of; None if it has none."""
    observation = fields.get("continuous_observation")
    if observation is None:
        return None
    (t,) = [t for t in range(3) if np.array_equal(observation, PLAYED.observation(t)["continuous_observation"])]
    return t


@pytest.mark.parametrize("name", list(PATHS))
def test_clients_of_others_get_what_their_servers_send(name: str, load_engine: Callable[[], JatEngine]) -> None:
    frames = msgpack.unpackb((FRAMES / f"{name}.msgpack").read_bytes())
    asked = [message for sender, message in frames if sender == "client"]
    told = [message for sender, message in frames if sender == "server"]
    with load_engine() as engine:
        expected = lone_actions(engine, PLAYED, 3)

    played: list[int] = []
    with running_server(load_engine) as server, connect(server.url + PATHS[name], compression=None) as websocket:
        greeting, recorded = codec.unpack(websocket.recv()), codec.unpack(told[0])
        assert set(recorded) <= set(greeting)
        for key in set(recorded) - {"action_space"}:
            assert type(greeting[key]) is type(recorded[key])
        for message, theirs in zip(asked, told[1:], strict=True):
            websocket.send(message)
            ours = websocket.recv()
            assert type(ours) is type(theirs)
            t = step_of(codec.unpack(message))
            if isinstance(theirs, str):
                assert ours == theirs
                continue
            answer, recorded = codec.unpack(ours), codec.unpack(theirs)
            assert type(answer) is type(recorded)
            if t is None:
                assert set(answer) == set(recorded)
                assert answer.get("status") == recorded.get("status")
                continue
            if isinstance(recorded, dict):
                assert set(recorded) <= set(answer)
                answer, recorded = answer["actions"], recorded["actions"]
            assert (answer.dtype, answer.ndim) == (recorded.dtype, recorded.ndim)
            assert answer.tolist() == [expected[t]]
            played.append(t)
        sessions = [session.name for session in server.call(lambda: list(server.service.sessions))]
    assert played.count(0) >= 5  # episodes, which resets and names have begun
    assert len(sessions) == (3 if name == "roboarena" else 2)  # a reset of vllm-omni's frees names


@pytest.mark.parametrize("reset_reply", RESET_REPLIES)
def test_resets_are_answered_as_told(reset_reply: str) -> None:
    for path in PATHS.values():
        reply = dialects_with(reset_reply)[path]({}).reply(Reset(), None, 0.0)
        text = "reset successful"
        assert reply == (text if reset_reply == "text" else codec.pack({"status": text}))
    assert dialects_with(reset_reply).keys() == {*PATHS.values(), "/vla-eval"}
