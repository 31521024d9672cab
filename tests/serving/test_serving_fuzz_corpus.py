"""Run the inputs of `fuzz_corpus` without atheris; `make test-long` fuzzes for longer.

FUZZ_SECONDS sets its seconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import util

import pytest

pytest.importorskip("websockets", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

from helpers import ROOT
from helpers.engines import native
from helpers.fuzzing import CORPUS, conversations, messages


def inputs(target: str) -> list[bytes]:
    found = [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]
    assert found, "expected inputs in the corpus"
    return found


def test_messages_are_read_or_refused() -> None:
    for data in inputs("messages"):
        messages.run(data)


@pytest.fixture(scope="module")
def target() -> Iterator[conversations.Target]:
    with conversations.open_target() as target:
        yield target


@native
def test_conversations_leave_other_sessions_alone(target: conversations.Target) -> None:
    for data in inputs("conversations"):
        target.run(data)


@pytest.mark.long
@native
@pytest.mark.skipif(util.find_spec("atheris") is None, reason="atheris is not installed")
def test_nothing_is_found_in_long() -> None:
    command = [sys.executable, "-m", "helpers.fuzzing", "--seconds", os.environ.get("FUZZ_SECONDS", "1200")]
    assert subprocess.run(command, cwd=ROOT / "tests").returncode == 0
