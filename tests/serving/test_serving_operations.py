"""The policy server's operation: pages of HTTP, keys and addresses, overload, and its process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("websockets", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

from helpers.engines import EPISODE, NATIVE
from helpers.servers import RunningServer, lone_actions, request_of, running_server
from helpers.serving_clients import handshake
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from jat_engine import InputError, JatEngine
from jat_engine.cli import main
from jat_engine.serving import codec
from jat_engine.serving.auth import check_address, is_allowed, read_keys
from jat_engine.serving.origins import parse_origins

OPTIONS = {"backend": "cpu" if NATIVE else "torch", "dtype": "float32"}
EPISODE_PLAYED = EPISODE["continuous_cw9"]


def get(server_port: int, path: str, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{server_port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def open_connection(port: int) -> ClientConnection:
    websocket = connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None, legacy=True)
    websocket.recv()
    return websocket


def ask(websocket: ClientConnection, t: int = 0, **fields: Any) -> Any:
    websocket.send(codec.pack(request_of(EPISODE_PLAYED, t) | fields))
    answer = websocket.recv()
    return answer if isinstance(answer, str) else codec.unpack(answer)["actions"][0].tolist()


@pytest.fixture(scope="module")
def load_engine(tiny_folder: Path) -> Callable[[], JatEngine]:
    return lambda: JatEngine.from_pretrained(tiny_folder, device="cpu", **OPTIONS)


@pytest.fixture(scope="module")
def server(load_engine: Callable[[], JatEngine]) -> Iterator[RunningServer]:
    with running_server(load_engine, max_sessions=1, keys=()) as running:
        yield running


def test_pages(server: RunningServer) -> None:
    assert get(server.port, "/healthz") == (200, "OK\n")
    assert get(server.port, "/health") == (200, '{"status": "ok"}')
    assert get(server.port, "/ready")[0] == 200
    status, config = get(server.port, "/config")
    assert status == 200
    assert json.loads(config)["backend"] == OPTIONS["backend"]
    status, line = get(server.port, "/nothing")
    assert (status, len(line.splitlines())) == (404, 1)

    with open_connection(server.port) as websocket:
        for t in range(3):
            ask(websocket, t)
        assert "expected" in ask(websocket, 3, reward="x")
        status, line = get(server.port, "/ready")
        assert (status, line) == (503, "all 1 sessions (--max_sessions) are open\n")
        _, metrics = get(server.port, "/metrics")
    values = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#"))
    assert float(values["jat_sessions"]) == float(values["jat_connections"]) == 1
    assert float(values['jat_errors_total{kind="input"}']) == 1
    assert float(values["jat_step_seconds_count"]) >= 3
    assert float(values['jat_requests_total{dialect="openpi"}']) == 3
    assert float(values['jat_cache_pages{state="reserved"}']) > 0


def test_a_wrong_path_is_refused(server: RunningServer) -> None:
    with pytest.raises(InvalidStatus) as refused:
        connect(f"{server.url}/other", legacy=True)
    assert refused.value.response.status_code == 404


def test_a_server_that_loads_is_not_ready(load_engine: Callable[[], JatEngine]) -> None:
    """It answers, so that whoever starts it can wait."""
    go, ports = threading.Event(), []

    def load() -> JatEngine:
        assert go.wait(60)
        return load_engine()

    def look() -> None:
        while not ports:
            time.sleep(0.01)
        seen.append(get(ports[0], "/healthz"))
        seen.append(get(ports[0], "/ready"))
        with pytest.raises(InvalidStatus) as refused:
            connect(f"ws://127.0.0.1:{ports[0]}", legacy=True)
        seen.append((refused.value.response.status_code, ""))
        go.set()

    seen: list[tuple[int, str]] = []
    watcher = threading.Thread(target=look)
    watcher.start()
    with running_server(load, on_port=ports.append) as server:
        watcher.join()
        assert seen == [(200, "OK\n"), (503, "the model is being loaded\n"), (503, "")]
        assert get(server.port, "/ready")[0] == 200


def test_an_engine_that_cannot_be_loaded_ends_the_start() -> None:
    def load() -> JatEngine:
        raise InputError("dtype: expected another")

    with pytest.raises(InputError, match="dtype: expected another"), running_server(load):
        pass


def test_a_failure_of_the_engine_costs_an_episode(
    load_engine: Callable[[], JatEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client is told a line without a traceback, and goes on with a new episode."""
    with load_engine() as engine:
        expected = lone_actions(engine, EPISODE_PLAYED, 2)

    def fail(groups: Any) -> None:
        raise RuntimeError("device lost")

    with running_server(load_engine) as server, open_connection(server.port) as websocket:
        assert ask(websocket, 0) == expected[0]
        pages = server.call(server.service.cache_stats).reserved
        with monkeypatch.context() as patch:
            patch.setattr(server.service.batcher.engine._runner.backend, "step", fail)
            answer = ask(websocket, 1, action_clip="box")  # the general way of a step
        assert answer == "server: internal error; its log has the traceback; start a new episode"
        assert server.call(server.service.cache_stats).reserved < pages
        assert "start of an episode" in ask(websocket, 1)
        assert ask(websocket, 0, episode_start=True) == expected[0]
        assert ask(websocket, 1) == expected[1]


def test_too_many_waiting_requests_are_refused(load_engine: Callable[[], JatEngine]) -> None:
    """The engine's thread is kept busy; the request that does not fit into the queue can be repeated."""
    started, busy = threading.Event(), threading.Event()
    with running_server(load_engine, max_queue=2) as server:
        connections = [open_connection(server.port) for _ in range(3)]
        for websocket in connections:
            ask(websocket, 0)
        batcher = server.service.batcher
        server.call(lambda: [batcher.call(lambda: (started.set(), busy.wait(60))), None][1])
        assert started.wait(60)
        for number, websocket in enumerate(connections):
            websocket.send(codec.pack(request_of(EPISODE_PLAYED, 1)))
            while batcher.queue_length < min(number + 1, 2):  # requests of different connections come in any order
                time.sleep(0.001)
        assert "expected at most 2 waiting requests" in connections[2].recv()
        assert get(server.port, "/healthz")[0] == 200  # the loop goes on
        busy.set()
        answers = [codec.unpack(websocket.recv())["actions"] for websocket in connections[:2]]
        assert ask(connections[2], 1) == answers[0][0].tolist() == answers[1][0].tolist()
        for websocket in connections:
            websocket.close()


def test_keys_are_read_and_compared(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# of the robots\nabc\n\n  d e \n")
    assert read_keys(file) == ("abc", "d e")
    assert is_allowed("Api-Key abc", ("abc", "x"))
    assert is_allowed("bearer x", ("abc", "x"))
    assert is_allowed(None, ())
    for header in (None, "", "abc", "Api-Key", "Api-Key ab", "Basic abc", "Api-Key äbc"):
        assert not is_allowed(header, ("abc", "x"))
    file.write_bytes(b"\xef\xbb\xbfabc\n")
    assert read_keys(file) == ("abc",)
    file.write_text("abc\nschlüssel\n")
    with pytest.raises(InputError, match=r"--api_key_file: expected keys of visible ASCII characters, .* in line 2"):
        read_keys(file)
    file.write_text("# none\n")
    with pytest.raises(InputError, match="--api_key_file: expected a file with a key"):
        read_keys(file)
    with pytest.raises(InputError, match="--api_key_file"):
        read_keys(tmp_path / "missing")


def test_public_addresses_need_a_key() -> None:
    for host in ("127.0.0.1", "::1", "localhost"):
        check_address(host, (), False)
    for host in ("0.0.0.0", "::", "192.168.1.2", "robot.example", ""):
        with pytest.raises(InputError, match="--host: expected an address of this machine alone"):
            check_address(host, (), False)
        check_address(host, ("key",), False)
        check_address(host, (), True)


def test_pages_of_other_servers_are_refused(load_engine: Callable[[], JatEngine]) -> None:
    """A browser says whose page it is; a name that its owner lets stand for 127.0.0.1 is no name of this machine."""
    origins = parse_origins(["https://robots.example", "http://[::1]:80"])
    with running_server(load_engine, allowed_origins=origins) as server:
        own, alias = f"127.0.0.1:{server.port}", f"localhost:{server.port}"
        let_in: list[dict[str, str]] = [
            {},
            {"Origin": f"http://{own}"},
            {"Host": alias, "Origin": f"HTTP://LOCALHOST:{server.port}"},
            {"Host": f"[::1]:{server.port}"},
            {"Origin": "https://robots.example"},
            {"Host": "robots.example", "Origin": "https://robots.example:443"},
            {"Host": "robots.example", "Origin": "http://robots.example"},
        ]
        others = [
            "null",
            "http://evil.example",
            f"http://{alias}",
            "http://127.0.0.1",
            "http://[",
            "",
            "robots.example",
        ]
        refused = [{"Origin": origin} for origin in [*others, f"http://{own}.evil.example", "http://robots.example"]]
        rebound = f"evil.example:{server.port}"
        refused += [
            {"Host": rebound},
            {"Host": rebound, "Origin": f"http://{rebound}"},
            {"Host": "[", "Origin": "null"},
        ]
        for path in ("/", "/vla-eval", "/v1/realtime/robot/openpi"):
            for headers in let_in:
                assert handshake_status(server.port, path, headers) == "101", headers
            for headers in refused:
                assert handshake_status(server.port, path, headers) == "403", headers
        assert get(server.port, "/config")[0] == 200
        status, line = get(server.port, "/config", Host=rebound)
        assert (status, line.splitlines()) == (403, [line.strip()])
        assert "expected localhost or 127.0.0.1, got evil.example" in line
    with running_server(load_engine, allowed_origins=parse_origins(["*"])) as server:
        assert handshake_status(server.port, "/", {"Host": rebound, "Origin": "null"}) == "101"
    with running_server(load_engine, keys=("key",)) as server:  # behind a proxy with another name
        headers = {"Host": "robots.example", "Authorization": "Api-Key key"}
        assert handshake_status(server.port, "/", headers) == "101"
        assert handshake_status(server.port, "/", headers | {"Origin": "https://evil.example"}) == "403"


def handshake_status(port: int, path: str, headers: dict[str, str]) -> str:
    """Return the status of the answer to the request that opens a websocket."""
    others = {name: value for name, value in headers.items() if name != "Host"}
    request = handshake(headers.get("Host", f"127.0.0.1:{port}"), path, others)
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(request)
        return connection.recv(4096).decode(errors="replace").split()[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--host", "0.0.0.0"], "--host: expected an address of this machine"),
        (["--port", "70000"], "--port: expected 0 to 65535"),
        (["--max_sessions", "0"], "--max_sessions: expected at least 1"),
        (["--num_threads", "0"], "--num_threads: expected at least 1"),
        (["--kv_dtype", "float8_e4m3"], "kv_dtype: expected"),
        (["--max_wait_ms", "5"], "--max_wait_ms: expected 0 to 1"),
        (["--task", "atari-pnog"], "--task: expected the name of a published task, got 'atari-pnog'; did you mean"),
        (["--api_key_file", "missing"], "--api_key_file: expected a file"),
        (["--backend", "reference"], "--backend: expected an engine's"),
        (["--allowed_origins", "robots.example"], "--allowed_origins: expected origins such as https://"),
    ],
)
def test_wrong_flags(flags: list[str], message: str, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--model_name_or_path", str(tiny_folder), "--use_cpu", "--port", "0", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_port_that_is_in_use(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["serve", "--model_name_or_path", str(tiny_folder), "--use_cpu", "--port", str(port)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--port: expected a free one of 127.0.0.1, got {port}, which is in use; stop" in line


def start_process(folder: Path, *flags: str) -> tuple[subprocess.Popen[str], int]:
    command = [sys.executable, "-m", "jat_engine.cli", "serve", "--model_name_or_path", str(folder), "--use_cpu"]
    command += ["--port", "0", "--dtype", "float32", "--backend", OPTIONS["backend"], *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("serving on ws://127.0.0.1:"), line
    return process, int(line.rsplit(":", 1)[1])


@pytest.mark.skipif(os.name == "nt", reason="no SIGTERM")
def test_sigterm_lets_sessions_end(tiny_folder: Path) -> None:
    process, port = start_process(tiny_folder, "--drain_timeout_s", "60")
    try:
        acting, silent = open_connection(port), open_connection(port)
        first = ask(acting, 0)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed):
            silent.recv(timeout=30)
        assert silent.close_code == 1001
        assert get(port, "/ready") == (503, "the server ends\n")
        with pytest.raises(InvalidStatus) as refused:
            open_connection(port)
        assert refused.value.response.status_code == 503
        assert ask(acting, 1) != first
        acting.close()
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0
        assert "Traceback" not in errors
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(os.name == "nt", reason="no SIGTERM")
def test_a_second_signal_ends_at_once(tiny_folder: Path) -> None:
    process, port = start_process(tiny_folder, "--drain_timeout_s", "600")
    try:
        with open_connection(port) as acting:
            ask(acting, 0)
            process.send_signal(signal.SIGTERM)
            while get(port, "/ready")[0] == 200:
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            with pytest.raises(ConnectionClosed):
                acting.recv(timeout=30)
            assert acting.close_code == 1001
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0
        assert "Traceback" not in errors
    finally:
        process.kill()
        process.wait()
