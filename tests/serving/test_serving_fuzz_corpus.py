"""Run the inputs of `fuzz_corpus` without atheris; `make test-long` fuzzes for longer.

FUZZ_SECONDS sets its seconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import util

import msgpack
import pytest

pytest.importorskip("websockets", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

from helpers import ROOT
from helpers.engines import native
from helpers.fuzzing import CORPUS, conversations, messages, mutation

from jat_engine.serving.dialects import DIALECTS


def inputs(target: str) -> list[bytes]:
    found = [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]
    assert found, "expected inputs in the corpus"
    return found


def test_messages_are_read_or_refused() -> None:
    for data in inputs("messages"):
        messages.run(data)


@pytest.mark.parametrize("endpoint", ["infer", "reset", "close", "resume"])
@pytest.mark.parametrize("dialect", range(len(DIALECTS)))
def test_any_value_of_any_field_is_read_or_refused(dialect: int, endpoint: str) -> None:
    """An array as `endpoint` of one dialect was neither: it is not equal to any text, nor false."""
    for request in mutation.with_each_value():
        fields = {"endpoint": endpoint} | request
        messages.run(bytes([dialect]) + msgpack.packb(fields))


@pytest.mark.parametrize("kind", ["hello", "observation", "episode_start", "episode_end"])
def test_any_value_of_any_field_of_vla_eval_is_read_or_refused(kind: str) -> None:
    dialect = bytes([list(DIALECTS).index("/vla-eval")])
    for request in mutation.with_each_value():
        messages.run(dialect + msgpack.packb({"type": kind, "seq": 0, "payload": request}))
    for value in mutation.VALUES:
        for name in ("type", "seq", "payload", "timestamp"):
            fields = {"type": kind, "seq": 0, "payload": mutation.GOOD[0], name: value}
            messages.run(dialect + msgpack.packb(fields))


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
