"""Policy servers in processes of their own, and a proxy that cuts connections to them."""

from __future__ import annotations

import contextlib
import random
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from helpers import environment


class ServerProcess:
    """`jat-engine serve` in a process.

    Attributes:
        port: that it listens on.
        url: of it.
    """

    def __init__(self, folder: Path | str, *flags: str, port: int = 0) -> None:
        command = [sys.executable, "-m", "jat_engine.cli", "serve", "--model_name_or_path", str(folder), "--use_cpu"]
        self.process = subprocess.Popen(
            [*command, "--port", str(port), *flags],
            env=environment() | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r":(\d+)\s*$", line)
        if found is None:
            self.process.kill()
            raise AssertionError(f"{line}{self.process.communicate()[1]}")
        self.port = int(found[1])
        self.url = f"ws://127.0.0.1:{self.port}"

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self.process.kill()
        self._reap()

    def stop(self) -> None:
        """End it in an orderly way."""
        self.process.send_signal(signal.SIGTERM)
        self._reap()
        assert self.process.returncode == 0

    def _reap(self) -> None:
        self.process.communicate(timeout=60)

    @staticmethod
    def wait_until(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.01)

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self._reap()


class CuttingProxy:
    """A TCP proxy in a thread, that ends connections after random numbers of bytes, in either direction.

    Args:
        port: of the server.
        numbers: random ones.
        most_bytes: after which it cuts by itself at most; 0 to leave that to `cut`.
    """

    def __init__(self, port: int, numbers: random.Random, most_bytes: int = 0) -> None:
        self.port_of_server, self._numbers, self._most_bytes = port, numbers, most_bytes
        self.num_cut = 0
        self._holds = False
        self._lock = threading.Lock()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"ws://127.0.0.1:{self._listener.getsockname()[1]}"
        self._ended = False
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End all connections."""
        with self._lock:
            for pair in list(self._pairs):
                self._end(pair)

    def hold_answers(self) -> None:
        """Let requests pass, and keep answers back."""
        self._holds = True

    def release_answers(self) -> None:
        """Let answers pass again; of connections that are still there those that were kept back as well."""
        self._holds = False

    def _accept(self) -> None:
        while not self._ended:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.port_of_server))
            except OSError:
                client.close()
                continue
            with self._lock:
                self._pairs.add((client, server))
            threading.Thread(target=self._pass_on, args=(client, server), daemon=True).start()

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        """Copy bytes until the connection is cut or ends. Some bytes before the cut may arrive, others not."""
        pair = client, server
        cut_after = self._numbers.randrange(500, self._most_bytes) if self._most_bytes else None
        passed, kept = 0, b""
        with contextlib.suppress(OSError, ValueError):
            while True:
                ready, _, _ = select.select(pair, [], [], 0.02)
                if kept and not self._holds:
                    client.sendall(kept)
                    kept = b""
                for source in ready:
                    data = source.recv(1 << 16)
                    if not data:
                        raise OSError("ended")
                    if source is server and self._holds:
                        kept += data
                        continue
                    passed += len(data)
                    if cut_after is not None and passed > cut_after:
                        (client if source is server else server).sendall(data[: len(data) - (passed - cut_after)])
                        self.num_cut += 1
                        raise OSError("cut")
                    (client if source is server else server).sendall(data)
        with self._lock:
            self._end(pair)

    def _end(self, pair: tuple[socket.socket, socket.socket]) -> None:
        self._pairs.discard(pair)
        for one in pair:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def __enter__(self) -> CuttingProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = True
        self._listener.close()
        self.cut()
