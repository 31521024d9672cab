"""The page for a browser: how it is served, its status, and the agent's play for viewers, over real connections."""

from __future__ import annotations

import base64
import http.client
import io
import json
import re
import time
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("websockets", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

from helpers.engines import EPISODE, NATIVE
from helpers.servers import RunningServer, request_of, running_server
from PIL import Image
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from jat_engine import JatEngine
from jat_engine.envs import get_task, make
from jat_engine.evaluation import run_episode
from jat_engine.serving import codec
from jat_engine.serving.demo import Demo
from jat_engine.serving.page import add_page

OPTIONS = {"backend": "cpu" if NATIVE else "torch", "dtype": "float32"}
HOSTILE = "<img src=x onerror=alert(1)>\u202e\n'\""
TASK = "babyai-go-to-obj"


@pytest.fixture(scope="module")
def load_engine(tiny_folder: Path) -> Callable[[], JatEngine]:
    return lambda: JatEngine.from_pretrained(tiny_folder, device="cpu", **OPTIONS)


@pytest.fixture(scope="module")
def server(load_engine: Callable[[], JatEngine]) -> Iterator[RunningServer]:
    with running_server(load_engine, max_sessions=8) as running:
        running.call(lambda: add_page(running.server, running.server._describe))
        yield running


def get(server: RunningServer, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read()


def status_of(server: RunningServer) -> dict[str, Any]:
    time.sleep(0.3)  # a status is made four times a second
    code, _, body = get(server, "/status")
    assert code == 200
    found: dict[str, Any] = json.loads(body)
    return found


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


# ---- the file --------------------------------------------------------------------------------------------------------


def test_the_page_runs_its_own_script_alone(server: RunningServer) -> None:
    code, headers, body = get(server, "/")
    assert (code, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert headers["X-Content-Type-Options"] == "nosniff"
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "require-trusted-types-for 'script'" in policy
    assert "unsafe" not in policy
    assert body == resources.files("jat_engine.serving").joinpath("static/index.html").read_bytes()


def test_the_page_loads_nothing_and_makes_no_markup_of_text() -> None:
    html = resources.files("jat_engine.serving").joinpath("static/index.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://(?!\")|//[a-z0-9-]+\.[a-z]|@import|url\(", html)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|\son[a-z]+=|\sstyle=", html)
    assert html.count("<script>") == html.count("<script") == html.count("<style>") == 1


def test_a_websocket_still_speaks_openpi(server: RunningServer) -> None:
    with connect(server.url, compression=None) as websocket:
        assert codec.unpack(websocket.recv())["server"] == "jat-engine"


def test_the_page_asks_for_the_key(load_engine: Callable[[], JatEngine]) -> None:
    with running_server(load_engine, keys=("secret",)) as server:
        server.call(lambda: add_page(server.server, server.server._describe))
        assert get(server, "/")[0] == 200
        assert get(server, "/status")[0] == 401
        assert get(server, "/status", Authorization="Bearer secret")[0] == 200


# ---- the status ------------------------------------------------------------------------------------------------------


def test_the_status_describes_sessions(server: RunningServer) -> None:
    names = {"atari_sampled_cw8": "pong", "continuous_cw9": HOSTILE, "babyai_sampled": "b"}
    with connect(server.url, compression=None, max_size=None) as websocket:
        websocket.recv()
        for name, session_id in names.items():
            for t in range(3):
                websocket.send(codec.pack(request_of(EPISODE[name], t) | {"session_id": session_id}))
                assert isinstance(websocket.recv(), bytes)
        websocket.send(codec.pack({"unknown": 1}))
        websocket.recv()

        status = status_of(server)
        assert status["num_sessions"] == 3
        assert status["steps"] >= 9
        assert status["errors"]["input"] >= 1
        assert set(status["latency_ms"]) == {"p50", "p90", "p99"}
        assert status["pages"]["used"] >= 3
        image, continuous, mission = status["sessions"]
        assert [one["name"] for one in status["sessions"]] == list(names.values())
        assert all((one["step"], one["episode"]) == (3, 1) for one in status["sessions"])

        prefix, data = image["picture"].split(",")
        assert prefix == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            newest = EPISODE["atari_sampled_cw8"].observation(2)["image_observation"][:, :, -1]
            assert picture.mode == "L"
            assert list(picture.getdata()) == newest.reshape(-1).tolist()
        values = EPISODE["continuous_cw9"].observation(2)["continuous_observation"]
        assert continuous["values"] == [float(f"{float(value):.4g}") for value in values]
        rewards = [EPISODE["continuous_cw9"].reward(t) for t in (1, 2)]
        assert continuous["return"] == pytest.approx(sum(rewards), rel=1e-3)
        assert mission["text"] == EPISODE["babyai_sampled"].observation(2)["text_observation"]
    wait_until(lambda: not server.call(lambda: len(server.service.sessions)))
    assert status_of(server)["sessions"] == []


# ---- play ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def playing(load_engine: Callable[[], JatEngine]) -> Iterator[tuple[RunningServer, Demo]]:
    pytest.importorskip("minigrid", reason="needs the babyai extra")
    with running_server(load_engine, max_sessions=8, keys=("secret",)) as server:
        demo = Demo(server.service, [get_task(TASK)], 1, ("secret",))
        server.call(lambda: add_page(server.server, server.server._describe, demo))
        yield server, demo


def watch(websocket: Any, steps: int) -> list[dict[str, Any]]:
    """Return the states that a viewer sees, after looking at their frames."""
    states = []
    while len(states) < steps:
        message = json.loads(websocket.recv(timeout=60))
        if "step" in message:
            with Image.open(io.BytesIO(websocket.recv(timeout=60))) as frame:
                assert frame.convert("RGB").size == (256, 256)
            states.append(message)
    return states


def test_a_viewer_watches_the_episode_of_run_episode(
    playing: tuple[RunningServer, Demo], load_engine: Callable[[], JatEngine]
) -> None:
    server, demo = playing
    with connect(server.url + "/play", max_size=None) as websocket:
        websocket.send(json.dumps({"key": "secret"}))
        websocket.send(json.dumps({"play": "<b>none</b>"}))
        assert "expected one of the offered tasks" in json.loads(websocket.recv())["error"]
        websocket.send("[" * 3000)
        assert "expected a JSON object" in json.loads(websocket.recv())["error"]
        websocket.send(json.dumps({"play": TASK, "seed": 5}))
        states = watch(websocket, 4)
        assert [one["step"] for one in states] == [0, 1, 2, 3]
        (session,) = server.call(lambda: list(server.service.sessions))
        assert session.settings.task == TASK

        with connect(server.url + "/play") as other:  # only one at a time
            other.send(json.dumps({"key": "secret"}))
            other.send(json.dumps({"play": TASK}))
            assert "plays 1 environments already" in json.loads(other.recv(timeout=20))["error"]

    wait_until(lambda: demo.num_environments == 0)  # it stops when the viewer leaves
    wait_until(lambda: not server.call(lambda: len(server.service.sessions)))

    actions: list[Any] = []
    with load_engine() as engine:
        act = engine.get_next_action
        engine.get_next_action = lambda *a, **k: actions.append(act(*a, **k)) or actions[-1]  # type: ignore[method-assign]
        run_episode(engine, None, make(TASK), task=get_task(TASK), seed=5, max_steps=3)
    assert [one["action"] for one in states[1:]] == actions


def test_viewers_need_a_key_and_a_page_of_this_server(playing: tuple[RunningServer, Demo]) -> None:
    server, demo = playing
    for first in (json.dumps({"key": "other"}), json.dumps({}), json.dumps({"play": TASK}), b"\x00"):
        with connect(server.url + "/play") as websocket:
            websocket.send(first)
            with pytest.raises(ConnectionClosed) as closed:
                websocket.recv(timeout=20)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1008
    with pytest.raises(InvalidStatus) as refused:
        connect(server.url + "/play", origin="http://evil.example", legacy=True)
    assert refused.value.response.status_code == 403
    assert demo.num_environments == 0


def test_an_environment_that_fails_leaves_a_line(load_engine: Callable[[], JatEngine]) -> None:
    pytest.importorskip("minigrid", reason="needs the babyai extra")
    from dataclasses import replace

    with running_server(load_engine) as server:
        broken = replace(get_task(TASK), maker="jat_engine.envs.babyai:no_such_maker")
        demo = Demo(server.service, [broken], 1)
        server.call(lambda: add_page(server.server, server.server._describe, demo))
        with connect(server.url + "/play") as websocket:
            websocket.send(json.dumps({}))
            websocket.send(json.dumps({"play": TASK}))
            assert json.loads(websocket.recv(timeout=60))["state"] == "loading"
            line = json.loads(websocket.recv(timeout=60))["error"]
            assert line.startswith(f"{TASK}: ")
            assert len(line.splitlines()) == 1
            wait_until(lambda: demo.num_environments == 0)
