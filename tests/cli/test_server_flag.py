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


def test_the_tasks_and_seeds_of_the_training_are_the_servers(
    server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--max_steps", "3", "--num_episodes", "1", "--tasks", TASKS[0])
    shown = []
    for number, agent in enumerate((("--server", server.url), MODEL)):
        assert main(["eval", *agent, *flags, "--output_dir", str(tmp_path / str(number))]) == 0
        printed = capsys.readouterr()
        shown.append(re.findall(r"seeds? [\d to]+", printed.out + printed.err))
    assert shown[0] == shown[1]
    assert "3000000" in shown[0][0]
    results = [(tmp_path / name / "results.json").read_bytes() for name in "01"]
    assert results[0] == results[1]

    assert main(["eval", "--server", server.url, *flags, "--seed", "1000000", "--output_dir", str(tmp_path / "2")]) == 0
    assert "begin as demonstrations of the training did" in capsys.readouterr().err


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
