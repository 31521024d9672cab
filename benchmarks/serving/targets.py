"""Servers that the benchmark compares, each in a process of its own."""

from __future__ import annotations

import argparse
import contextlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

SERVER, WITH_SNAPSHOTS, OPENPI = "jat-engine serve", "jat-engine serve --state_dir", "openpi's server"

_SLACK_TOKENS = 64
"""Tokens of the KV cache that a session takes besides its window, since pages are whole."""


class Target(NamedTuple):
    """A server to measure.

    Attributes:
        name: in the tables.
        url: to connect to.
        repeats_settings: each request has the settings of the episode, since the policy keeps none.
        extra: returns further fields for the requests of a client, given its number.
    """

    name: str
    url: str
    repeats_settings: bool = False
    extra: Callable[[int], dict[str, Any]] = lambda client: {}


def max_sessions(arguments: argparse.Namespace) -> int:
    """Return the most sessions that a server has at a time: those of throughput's clients, and the one of latency."""
    return max([*arguments.clients, 1]) + 1


def max_cached_tokens(arguments: argparse.Namespace) -> int:
    """Return the tokens that an engine's KV cache has room for, so that all sessions' windows fit."""
    return max_sessions(arguments) * (arguments.window + _SLACK_TOKENS)


@contextlib.contextmanager
def running(module: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a module as long as the context."""
    process = subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def our_server(name: str, folder: Path, arguments: argparse.Namespace) -> Iterator[Target]:
    """Run `jat-engine serve`, with snapshots for `WITH_SNAPSHOTS`."""
    command = ["serve", "--model_name_or_path", str(folder), "--use_cpu", "--port", "0", "--dtype", arguments.dtype]
    command += ["--max_sessions", str(max_sessions(arguments))]
    if arguments.num_threads is not None:
        command += ["--num_threads", str(arguments.num_threads)]
    with contextlib.ExitStack() as stack:
        if name == WITH_SNAPSHOTS:
            command += ["--state_dir", stack.enter_context(tempfile.TemporaryDirectory())]
        process = stack.enter_context(running("jat_engine.cli", *command))
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("serving on "), line
        yield Target(name, line.split()[-1])


@contextlib.contextmanager
def openpi_server(folder: Path, arguments: argparse.Namespace) -> Iterator[Target]:
    """Run openpi's server around an engine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["--openpi", str(arguments.openpi), "--model", str(folder), "--port", str(port)]
    command += ["--dtype", arguments.dtype, "--max_cached_tokens", str(max_cached_tokens(arguments))]
    if arguments.num_threads is not None:
        command += ["--num_threads", str(arguments.num_threads)]
    with running("benchmarks.serving.openpi_server", *command) as process:
        while True:
            assert process.poll() is None, "openpi's server has ended"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        yield Target(OPENPI, f"ws://127.0.0.1:{port}", repeats_settings=True, extra=lambda client: {"client": client})


@contextlib.contextmanager
def sweeping_echo(num_bytes: int) -> Iterator[str]:
    """Run a websocket server that reads `num_bytes` of memory for each message, and yield its URL."""
    with running("benchmarks.serving.echo", str(num_bytes)) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
