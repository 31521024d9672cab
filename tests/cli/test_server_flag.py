"""`jat-engine play` and `eval` with an agent of a server: as with the same agent in their own process."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("websockets", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")
pytest.importorskip("minigrid", reason="the extra `babyai` is not installed")

from helpers.remote_servers import ServerProcess

from jat_engine.cli import main

MODEL = ("--model_name_or_path", "jat-mini", "--use_cpu")
TASKS = ("babyai-go-to-obj", "babyai-open")


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess("jat-mini") as server:
        yield server


def test_play(server: ServerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for agent in (("--server", server.url), MODEL):
        assert main(["play", *agent, "--task", TASKS[0], "--num_episodes", "3", "--seed", "5"]) == 0
        printed = capsys.readouterr()
        shown.append(re.sub(r"latency [^,]*, p99 [^,]*", "", printed.out))
        assert "token_id" not in printed.err  # transformers warns of ids beyond the vocabulary
    assert shown[0] == shown[1]
    assert shown[0].count("episode") == 3


def test_eval(server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that was begun with a server can be gone on with without one, since it is the same agent."""
    flags = ["--tasks", *TASKS, "--seed", "40", "--max_steps", "40"]
    own, served = tmp_path / "own", tmp_path / "served"
    assert main(["eval", *MODEL, *flags, "--num_episodes", "3", "--output_dir", str(own)]) == 0
    agent = ("--server", server.url)
    assert main(["eval", *agent, *flags, "--num_episodes", "2", "--output_dir", str(served)]) == 0
    assert "jat-engine connections" not in [thread.name for thread in threading.enumerate()]
    assert main(["eval", *MODEL, *flags, "--num_episodes", "3", "--output_dir", str(served)]) == 0
    assert (own / "results.json").read_bytes() == (served / "results.json").read_bytes()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), "--model_name_or_path, --server: expected one of them, got neither"),
        (("--server", "ws://127.0.0.1:1", *MODEL), "expected one of them, got both"),
        (("--server", "ws://127.0.0.1:1"), "--server ws://127.0.0.1:1: url: expected a server at"),
        (("--server", "ws://127.0.0.1:1", "--ray"), "--server: expected --model_name_or_path with --ray"),
    ],
)
def test_flags_that_do_not_fit(flags: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--tasks", TASKS[0], *flags]) == 2
    assert expected in capsys.readouterr().err
