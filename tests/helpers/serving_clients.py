"""Clients of a policy server that come and go in every way, and one that checks that its actions stay the same."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from websockets.exceptions import ConnectionClosedOK
from websockets.sync.client import connect

from helpers.engines import EPISODE
from helpers.servers import lone_actions, request_of
from jat_engine import JatEngine
from jat_engine.serving import codec

PLAYED = ("continuous_cw9", "continuous_discrete_action", "discrete_only", "babyai_sampled", "atari_sampled_cw8")
"""Golden episodes of all kinds of observations and actions, greedy and sampled."""

WAYS = ("close", "reset", "kill", "half a message", "half a handshake", "silence", "no reading", "slow reading")
"""Ways in which a client leaves: with a close frame; with a TCP reset; killed by SIGKILL; with a reset in the middle of
a message; with its socket left open (a half-open connection) in the middle of the handshake, after some steps, or while
it reads no answers; with a reset after it has read answers more slowly than it has asked for them."""

_CONNECT: dict[str, Any] = {"compression": None, "max_size": None, "open_timeout": 200, "ping_interval": None}
_CONNECT["legacy"] = True  # connections that outlive the call
_HALF_A_MESSAGE = 1 << 20
"""Size of a message of which only half is sent."""

_OF_PROCESS = 8
"""Connections of a process that is killed or stopped."""

_MOST_LEFT_OPEN = 30
"""Sockets that are left open at a time."""

_MOST_UNREAD = 50_000
"""Messages of a client that reads no answers; the server stops reading them long before."""

_PROCESS = """
import sys
from websockets.sync.client import connect

url, count, path = sys.argv[1:]
request = open(path, "rb").read()
connections = []
for _ in range(int(count)):
    connections.append(connect(url, compression=None, max_size=None, open_timeout=200, legacy=True))
    connections[-1].recv()
    connections[-1].send(request)
    connections[-1].recv()
print("acting", flush=True)
while True:
    for connection in connections:
        connection.send(request)
        connection.recv()
"""


def wait_until(condition: Callable[[], bool], seconds: float = 250.0) -> None:
    """Wait for a condition, which must become true in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "expected the condition to become true in time"
        time.sleep(0.02)


class Witness:
    """A client that plays golden episodes one after the other, and compares each action with that of a lone agent."""

    def __init__(self, url: str, expected: dict[str, list[Any]]) -> None:
        """Connect.

        Args:
            url: of the server.
            expected: actions of lone agents by the name of the episode.
        """
        self._url, self._expected = url, expected
        self._connect()

    def step(self, count: int = 1) -> None:
        """Take steps, and check their actions."""
        for _ in range(count):
            try:
                self._step()
            except ConnectionClosedOK:  # idle for too long: this machine was busy with something else
                self._connect()

    def _connect(self) -> None:
        self._websocket = connect(self._url, **_CONNECT)
        self._websocket.recv()
        self._steps = self._endless(self._expected)

    def _step(self) -> None:
        name, t, action = next(self._steps)
        fields = request_of(EPISODE[name], t) | ({"episode_start": True} if t == 0 else {})
        self._websocket.send(codec.pack(fields))
        answer = self._websocket.recv(timeout=200)
        if isinstance(answer, str) and "closed since it was idle" in answer:  # as in `step`
            self._steps = self._endless(self._expected)
            return
        assert isinstance(answer, bytes), answer
        assert codec.unpack(answer)["actions"].tolist() == [action], f"{name}, step {t}"

    def close(self) -> None:
        """Leave."""
        self._websocket.close()

    @staticmethod
    def _endless(expected: dict[str, list[Any]]) -> Iterator[tuple[str, int, Any]]:
        while True:
            for name, actions in expected.items():
                for t, action in enumerate(actions):
                    yield name, t, action


def expected_actions(engine: JatEngine) -> dict[str, list[Any]]:
    """Return the actions of lone agents by the name of the episode."""
    return {name: lone_actions(engine, EPISODE[name]) for name in PLAYED}


class Churn:
    """Cycles of clients that connect, act and leave.

    Attributes:
        counts: cycles so far by the way of leaving.
    """

    def __init__(self, url: str, folder: Path, numbers: random.Random) -> None:
        """Take the server's address.

        Args:
            url: of the server.
            folder: for the requests of processes.
            numbers: to draw from.
        """
        self.counts = dict.fromkeys(WAYS, 0)
        self._url, self._numbers = url, numbers
        self._open: list[socket.socket] = []
        self._stopped: list[subprocess.Popen[bytes]] = []
        self._request_file = folder / "request.bin"
        self._request_file.write_bytes(self._request())

    def run(self, cycles: int, on_cycle: Callable[[], None]) -> None:
        """Run at least `cycles` cycles, and call `on_cycle` after each, or after each group that ends at once."""
        end = sum(self.counts.values()) + cycles
        ways = list(WAYS)
        while sum(self.counts.values()) < end:
            if not ways:
                ways = list(WAYS)
            way = ways.pop(self._numbers.randrange(len(ways)))
            self.counts[way] += self._leave_by(way)
            on_cycle()

    def stop_process(self) -> int:
        """Let a process act, stop it with SIGSTOP, and return the number of its connections."""
        process = self._start_process()
        self._stopped.append(process)
        process.send_signal(signal.SIGSTOP)
        return _OF_PROCESS

    def close(self) -> None:
        """Close the sockets that were left open, and end the stopped processes."""
        for left in self._open:
            left.close()
        self._open.clear()
        for process in self._stopped:
            _kill(process)
        self._stopped.clear()

    def _leave_by(self, way: str) -> int:
        """Run a cycle, or several at once, and return their number."""
        if way == "kill":
            return self._kill_process()
        if way in ("silence", "no reading", "slow reading"):
            return self._fall_silent(way)
        if way == "half a handshake":
            return self._leave_open(self._socket(b"GET / HTTP/1.1\r\nHost: "))
        websocket = connect(self._url, **_CONNECT)
        websocket.recv()
        with contextlib.suppress(ConnectionClosedOK):  # idle for too long, see `Witness`
            for _ in range(self._numbers.randint(1, 3)):
                websocket.send(self._request())
                if self._numbers.random() < 0.7:  # else the request is on its way when the client goes
                    websocket.recv()
        if way == "half a message":
            with contextlib.suppress(ConnectionError):
                websocket.socket.sendall(frame(bytes(_HALF_A_MESSAGE))[: _HALF_A_MESSAGE // 2])
        if way in ("reset", "half a message"):
            _reset(websocket.socket)
        websocket.close()
        return 1

    def _request(self) -> bytes:
        name = self._numbers.choice(PLAYED)
        return codec.pack(request_of(EPISODE[name], 0) | {"episode_start": True})

    def _kill_process(self) -> int:
        process = self._start_process()
        time.sleep(self._numbers.uniform(0, 0.02))
        _kill(process)
        return _OF_PROCESS

    def _start_process(self) -> subprocess.Popen[bytes]:
        """Return a process with connections that act."""
        command = [sys.executable, "-W", "ignore", "-c", _PROCESS]
        command += [self._url, str(_OF_PROCESS), str(self._request_file)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"acting\n"
        except BaseException:
            _kill(process)
            raise
        return process

    def _fall_silent(self, way: str) -> int:
        """Open a connection by hand, act, and leave its socket open: neither pings nor a close are answered.

        Args:
            way: "silence", or to ask on without reading, until the server waits for the client, or with slow reading,
                a few bytes at a time.
        """
        left = self._socket(handshake(self._url.removeprefix("ws://"), "/vla-eval"))
        left.recv(1 << 12)
        observation = codec.unpack(self._request())
        left.sendall(frame(message_of("observation", observation)))
        hello = frame(message_of("hello", {"padding": "x" * 4000}))
        if way == "slow reading":
            with contextlib.suppress(ConnectionError):
                left.sendall(hello * 20)
                for _ in range(20):
                    left.recv(64)
            _reset(left)
            return 1
        if way == "no reading":
            left.settimeout(0.3)
            with contextlib.suppress(TimeoutError, ConnectionError):
                for _ in range(_MOST_UNREAD):
                    left.sendall(hello)
                raise AssertionError("expected the server to stop reading")
        return self._leave_open(left)

    def _socket(self, sent: bytes) -> socket.socket:
        """Return a socket with a small buffer for what it receives, after sending bytes to the server."""
        host, port = self._url.removeprefix("ws://").split(":")
        opened = socket.socket()
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        opened.connect((host, int(port)))
        opened.sendall(sent)
        return opened

    def _leave_open(self, left: socket.socket) -> int:
        """Keep a socket open while others come and go."""
        self._open.append(left)
        if len(self._open) > _MOST_LEFT_OPEN:
            self._open.pop(0).close()
        return 1


def drop_with_token(url: str, token: str, numbers: random.Random) -> None:
    """Open a session that can be resumed, act, and lose the connection. The session is not resumed."""
    websocket = connect(url, **_CONNECT)
    websocket.recv()
    websocket.send(codec.pack({"endpoint": "resume", "token": token}))
    websocket.recv()
    episode = EPISODE[numbers.choice(PLAYED)]
    for t in range(numbers.randint(3, 8)):
        fields = request_of(episode, t) | {"seq": t} | ({"episode_start": True} if t == 0 else {})
        websocket.send(codec.pack(fields))
        answer = codec.unpack(websocket.recv(timeout=200))
        assert "actions" in answer, answer
    _reset(websocket.socket)
    websocket.close()


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _reset(connected: socket.socket) -> None:
    """Close a connection with a TCP reset."""
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    with contextlib.suppress(OSError):  # the server has closed it
        connected.shutdown(socket.SHUT_RD)
    connected.close()


def message_of(kind: str, payload: dict[str, Any]) -> bytes:
    """Return a message of vla-eval's protocol."""
    return codec.pack_with_text_keys({"type": kind, "payload": payload, "seq": 0, "timestamp": 0.0})


def handshake(host: str, path: str, headers: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """Return the HTTP request that opens a websocket, with further headers."""
    lines = (f"GET {path} HTTP/1.1", f"Host: {host}", "Upgrade: websocket", "Connection: Upgrade")
    lines += ("Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Version: 13")
    lines += tuple(f"{name}: {value}" for name, value in headers.items())
    return "\r\n".join((*lines, "\r\n")).encode()


def frame(data: bytes, opcode: int = 2) -> bytes:
    """Return a message as a client's frame, with a mask of zeros."""
    size = len(data)
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 1 << 16:
        length = b"\xfe" + size.to_bytes(2, "big")
    else:
        length = b"\xff" + size.to_bytes(8, "big")
    return bytes([0x80 | opcode]) + length + bytes(4) + data


def metrics(port: int) -> dict[str, float]:
    """Return the metrics of a server by name and labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=200) as response:
        lines = response.read().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def process_size(pid: int) -> tuple[int, int]:
    """Return the resident bytes of a process that are its own, and its open files."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    bytes_ = (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")
    return bytes_, sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


@contextlib.contextmanager
def serving_process(folder: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run `jat-engine serve` in a process. Yields it and its port; it is killed at the end."""
    command = [sys.executable, "-m", "jat_engine.cli", "serve", "--model_name_or_path", str(folder), "--use_cpu"]
    command += ["--port", "0", "--dtype", "float32", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("serving on ws://127.0.0.1:"), line
        yield process, int(line.rsplit(":", 1)[1])
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def all_gone(port: int, before: dict[str, float]) -> bool:
    """Return True if a server has as many connections, sessions and pages as before."""
    names = ["jat_connections", "jat_sessions", *(name for name in before if name.startswith("jat_cache_pages"))]
    now = metrics(port)
    return all(now[name] == before[name] for name in names)
