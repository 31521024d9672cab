"""Fuzz a whole server by two clients, while a third plays episodes and must not be affected.

An input stands for what two clients send:

    2 bytes   the path of each connection: an index of `PATHS`
    parts     header byte: kind in the lower half, the connection in bit 4, the opcode of a control frame above
              2 bytes, little-endian: length
              data
"""

from __future__ import annotations

import contextlib
import logging
import random
import socket
import struct
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from websockets.exceptions import WebSocketException

from helpers.fuzzing import FoundError, mutation
from helpers.servers import RunningServer, running_server
from helpers.serving_clients import Witness, expected_actions, frame, handshake, message_of
from jat_engine import JatEngine
from jat_engine.serving import codec
from jat_engine.serving.demo import Demo
from jat_engine.serving.dialects import DIALECTS
from jat_engine.serving.page import add_page
from jat_engine.serving.record import Recorder
from jat_engine.serving.snapshots import SnapshotStore
from jat_engine.testing import golden

PATHS: tuple[str | None, ...] = (*DIALECTS, "/play", None)
"""Paths of connections; None for one that begins with bytes in place of a handshake."""

BINARY, TEXT, CONTROL, RAW, CUT = range(5)
"""Kinds of parts: a message, one of text, a frame with any opcode, bytes of the connection, and its loss."""

_NUM_KINDS = 5
_MOST_PARTS = 24
_SECONDS = 300.0
"""Time-out of a client's socket."""

_MOST_LOOKS = 5000
"""Times that the server's sessions, pages and connections are looked at before a difference is a finding."""

_LAST = codec.pack({"endpoint": "last one", "type": "last one", "payload": {}, "seq": 0})
"""Message that dialects refuse with its words in the answer, after which all before it have been answered."""

_EXPECTED = (WebSocketException, EOFError, OSError, TimeoutError)
"""Errors by which the websockets library ends a connection."""


def is_utf8(data: bytes) -> bool:
    """Return True if bytes are text."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


class Part(NamedTuple):
    """A part of a conversation.

    Attributes:
        kind: of `BINARY` to `CUT`.
        connection: 0 or 1.
        data: content.
        opcode: of a frame of kind `CONTROL`.
    """

    kind: int
    connection: int
    data: bytes
    opcode: int = 0

    @property
    def is_message(self) -> bool:
        """True for a message that is answered, or ignored, and leaves the connection open."""
        return self.kind == BINARY or (self.kind == TEXT and is_utf8(self.data))

    @property
    def wire(self) -> bytes:
        """Return the bytes that the client sends."""
        if self.kind == RAW:
            return self.data
        return frame(self.data, {BINARY: 2, TEXT: 1}.get(self.kind, self.opcode))


class Conversation(NamedTuple):
    """Messages and bytes of two clients, in their order.

    Attributes:
        paths: of their connections.
        parts: in their order.
    """

    paths: tuple[str | None, str | None]
    parts: list[Part]

    def to_bytes(self) -> bytes:
        """Return the input that stands for it."""
        found = bytearray(PATHS.index(path) for path in self.paths)
        for part in self.parts:
            data = part.data[:65535]
            found += struct.pack("<BH", part.kind | part.connection << 4 | (part.opcode & 7) << 5, len(data)) + data
        return bytes(found)


def read(data: bytes) -> Conversation:
    """Return the conversation that an input stands for. Any bytes stand for one."""
    head = data[:2].ljust(2, b"\0")
    paths = PATHS[head[0] % len(PATHS)], PATHS[head[1] % len(PATHS)]
    parts: list[Part] = []
    begin = 2
    while begin < len(data) and len(parts) < _MOST_PARTS:
        first, length = struct.unpack("<BH", data[begin : begin + 3].ljust(3, b"\0"))
        body = data[begin + 3 : begin + 3 + length]
        kind, high = first & 0x0F, first >> 5
        opcode = (0, 1, 2, 8, 9, 10, 3, 15)[high] if kind == CONTROL else 0
        parts.append(Part(kind if kind < _NUM_KINDS else BINARY, first >> 4 & 1, body, opcode))
        begin += 3 + length
    return Conversation(paths, parts)


class Faults(logging.Handler):
    """Keep the errors that a server logs, except those of the websockets library for malformed bytes.

    Attributes:
        lines: that were logged.
    """

    _STRANGERS = "jat_engine.serving.server.websockets"
    _NAMES = ("jat_engine", "asyncio", _STRANGERS)

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        error = record.exc_info[1] if record.exc_info else None
        if record.name != self._STRANGERS or _is_own(error):
            self.lines.append(self.format(record))

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Keep what is logged meanwhile."""
        strangers = logging.getLogger(self._STRANGERS)
        before = strangers.level, strangers.propagate
        strangers.setLevel(logging.ERROR)
        strangers.propagate = False
        for name in self._NAMES:
            logging.getLogger(name).addHandler(self)
        try:
            yield
        finally:
            for name in self._NAMES:
                logging.getLogger(name).removeHandler(self)
            strangers.setLevel(before[0])
            strangers.propagate = before[1]


def _is_own(error: BaseException | None) -> bool:
    """Return True if an error of a connection comes from this package, and is none that the library means to raise."""
    if error is None or isinstance(error, _EXPECTED):
        return False
    return any("jat_engine" in Path(found.filename).parts for found in traceback.extract_tb(error.__traceback__))


class Target:
    """A running server with all its options, and its witness.

    Attributes:
        num_inputs: number of inputs that have been run.
    """

    def __init__(
        self, server: RunningServer, witness: Witness, reserved: list[int], folder: Path, faults: Faults
    ) -> None:
        """Take the running parts; see `open_target`.

        Args:
            server: of the target.
            witness: that has played each of its episodes once.
            reserved: pages of the KV cache after each of its steps.
            folder: of snapshots, which an input leaves to none after it.
            faults: what the server has logged.
        """
        self.num_inputs = 0
        self._server, self._witness, self._reserved, self._folder = server, witness, reserved, folder
        self._faults = faults
        self._steps = len(reserved)

    def run(self, data: bytes) -> None:
        """Let two clients send what an input stands for, the witness acting meanwhile.

        Raises:
            FoundError: the witness's actions differ, a connection does not end, a session or page is left, or the
                server has logged an error of its own.
        """
        conversation = read(data)
        self.num_inputs += 1
        with self._open(conversation, 0) as first, self._open(conversation, 1) as second:
            sockets = (first, second)
            cut = set()
            for part in conversation.parts:
                client = sockets[part.connection]
                if client is None or part.connection in cut:
                    continue
                if part.kind == CUT:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    client.close()
                    cut.add(part.connection)
                else:
                    _send(client, part.wire)
            self._step()
            for index, client in enumerate(sockets):
                if client is not None and index not in cut:
                    _finish(client, conversation, index)
        self._check()

    @contextlib.contextmanager
    def _open(self, conversation: Conversation, index: int) -> Iterator[socket.socket | None]:
        """Yield a client's socket; None if nothing is sent over it."""
        if not any(part.connection == index for part in conversation.parts):
            yield None
            return
        path = conversation.paths[index]
        with socket.create_connection(("127.0.0.1", self._server.port), _SECONDS) as client:
            if path is not None:
                _send(client, handshake(f"127.0.0.1:{self._server.port}", path))
            yield client

    def _step(self) -> None:
        try:
            self._witness.step()
        except (AssertionError, OSError, WebSocketException) as error:
            raise FoundError(f"expected the witness to act as alone, got {error!r}") from error
        self._steps += 1

    def _check(self) -> None:
        """Raise `FoundError` unless sessions and pages are the witness's alone, and the log has no fault."""
        expected = 1, self._reserved[(self._steps - 1) % len(self._reserved)], 1
        for _ in range(_MOST_LOOKS):  # a count, not seconds, since a suspended process is no finding
            found = self._server.call(self._counts)
            if found == expected:
                break
            time.sleep(0.002)
        else:
            raise FoundError(f"expected (sessions, pages, connections) {expected}, got {found}")
        for path in self._folder.iterdir():
            with contextlib.suppress(OSError):
                path.unlink()
        if self._faults.lines:
            lines = self._faults.lines.copy()
            self._faults.lines.clear()
            raise FoundError("expected no fault in the log, got:\n" + "\n".join(lines))

    async def _counts(self) -> tuple[int, int, int]:
        service = self._server.service
        pages = (await service.cache_stats()).reserved
        return len(service.sessions), pages, len(self._server.server.connections)


@contextlib.contextmanager
def open_target() -> Iterator[Target]:
    """Start a server of the golden model, with snapshots, the page and a record, and a witness that plays."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        checkpoint = golden.write_checkpoint(folder / "model")
        states = folder / "states"

        def load() -> JatEngine:
            return JatEngine.from_pretrained(checkpoint, device="cpu", backend="cpu", dtype="float32")

        with load() as engine:
            expected = expected_actions(engine)
        store = SnapshotStore(states, 3600.0, 10**9)
        limits: dict[str, Any] = {"max_sessions": 6, "snapshot_every": 2, "resume_grace_s": 0.0}
        limits["ping_interval_s"] = 3600.0  # a suspended process must not lose its connections
        server = stack.enter_context(running_server(load, store=store, **limits))
        recorder = Recorder(folder / "record", 10**8, dict)
        stack.callback(recorder.close)
        server.call(lambda: server.service.observers.append(recorder))
        server.call(lambda: add_page(server.server, dict, Demo(server.service, [], 1)) and None)

        faults = Faults()
        stack.enter_context(faults.listening())
        witness = Witness(server.url, expected)
        stack.callback(witness.close)
        reserved = []
        for _ in range(sum(map(len, expected.values()))):
            witness.step()
            reserved.append(server.call(server.service.cache_stats).reserved)
        yield Target(server, witness, reserved, states, faults)


def change(data: bytes, numbers: random.Random) -> bytes:
    """Return an input with a part that is another, missing, added, or somewhere else."""
    paths, parts = read(data)
    index = numbers.randrange(len(parts)) if parts else 0
    match numbers.randrange(8) if parts else 0:
        case 0 if len(parts) < _MOST_PARTS:
            parts.insert(index, _good(paths, numbers))
        case 1:
            del parts[index]
        case 2:
            parts.insert(numbers.randrange(len(parts)), parts[index])
        case 3:
            parts[index] = parts[index]._replace(connection=numbers.randrange(2))
        case 4 if numbers.random() < 0.3:
            parts[index] = parts[index]._replace(kind=numbers.randrange(_NUM_KINDS), opcode=numbers.randrange(8))
        case 5 if numbers.random() < 0.3:
            paths = (numbers.choice(PATHS), numbers.choice(PATHS))
        case _:
            changed = mutation.change(parts[index].data, numbers)
            if changed is not None:
                parts[index] = parts[index]._replace(data=changed)
    return Conversation(paths, parts).to_bytes()


def _good(paths: tuple[str | None, str | None], numbers: random.Random) -> Part:
    """Return a part as clients send it."""
    connection = numbers.randrange(2)
    fields: dict[str, Any] = dict(numbers.choice(mutation.GOOD))
    if paths[connection] == "/vla-eval":
        return Part(BINARY, connection, message_of("observation", fields))
    match numbers.randrange(4):
        case 0:
            fields = {"endpoint": "resume", "token": mutation.TOKEN}
        case 1:
            fields = {"endpoint": numbers.choice(("reset", "close"))}
    if numbers.random() < 0.5:
        fields["session_id"] = numbers.choice("ab")
    if numbers.random() < 0.5:
        fields["seq"] = numbers.randrange(8)
    return Part(BINARY, connection, codec.pack(fields))


class _Reader:
    """Reads what a server sends to a websocket.

    Attributes:
        has_last: the answer to the last message has come.
        is_closing: the server has sent a close frame.
    """

    def __init__(self) -> None:
        self.has_last = self.is_closing = False
        self._rest, self._is_open = bytearray(), False

    def feed(self, data: bytes) -> None:
        """Read bytes."""
        rest = self._rest
        rest += data
        if not self._is_open:
            end = rest.find(b"\r\n\r\n")
            if end < 0:
                return
            self._is_open = True
            del rest[: end + 4]
        while len(rest) >= 2:
            size, begin = rest[1], 2
            if size >= 126:
                begin = 4 if size == 126 else 10
                size = int.from_bytes(rest[2:begin], "big")
            if len(rest) < begin + size:
                return
            self.is_closing |= rest[0] & 0x0F == 8
            self.has_last |= b"last one" in rest[begin : begin + size]
            del rest[: begin + size]


def _send(client: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):  # the server has closed it, which it may
        client.sendall(data)


def _finish(client: socket.socket, conversation: Conversation, index: int) -> None:
    """Wait until everything is answered, or, where the bytes are no messages, until the server closes."""
    own = [part for part in conversation.parts if part.connection == index]
    is_whole = conversation.paths[index] in DIALECTS and all(part.is_message for part in own)
    reader = _Reader()
    try:
        if is_whole:
            client.sendall(frame(_LAST))
        else:
            client.shutdown(socket.SHUT_WR)
        while not (is_whole and reader.has_last) and (more := client.recv(1 << 16)):
            reader.feed(more)
            if is_whole and reader.is_closing:
                client.shutdown(socket.SHUT_WR)
                is_whole = False
    except TimeoutError as error:
        raise FoundError(f"expected connection {index} to be answered or closed, got neither") from error
    except OSError:  # closed already
        return
