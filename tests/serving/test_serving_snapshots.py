"""Files with sessions: what is in them, and files that are damaged or of another version."""

from __future__ import annotations

import asyncio
import hashlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("websockets", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

from helpers.damage import damaged, with_other_values
from helpers.engines import EPISODE, NATIVE
from helpers.servers import request_of

from jat_engine import InputError, JatEngine
from jat_engine.serving import codec
from jat_engine.serving.requests import Reply, Resume, Resumed, Settings, parse_act
from jat_engine.serving.service import PolicyService, ServiceOptions
from jat_engine.serving.sessions import ServedSession
from jat_engine.serving.snapshots import SnapshotStore, describe_session, parse_session
from jat_engine.serving.spaces import Box, Discrete

TOKEN = "a" * 40


def a_session(**changes: Any) -> ServedSession:
    settings = Settings("mujoco-ant", Box(-1.0, np.ones(2), (2,)), 8, 3, True)
    session = ServedSession("owner", "name", 1, settings)
    session.last_seq, session.last_reply = 4, Reply([0.5, -1.0], 0.1, 0.2, 3, prediction=np.ones(2, np.float32))
    session.steps, session.episodes, session.return_, session.opened_window = 5, 2, 1.5, 8
    for name, value in changes.items():
        setattr(session, name, value)
    return session


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"settings": Settings(None, Discrete(4)), "last_reply": Reply(2, 0.0, 0.0, 1), "opened_window": None},
        {"last_reply": None},
    ],
    ids=["box", "discrete", "reset"],
)
def test_a_session_goes_on_as_it_was_described(changes: dict[str, Any]) -> None:
    session, other = a_session(**changes), ServedSession("other", "name", 2, Settings())
    described = codec.unpack(codec.pack(describe_session(session)))
    parse_session(described).apply(other)
    assert codec.pack(describe_session(other)) == codec.pack(describe_session(session))
    assert not other.begins


def test_any_value_of_any_field_is_refused_or_of_its_type() -> None:
    described = codec.unpack(codec.pack(describe_session(a_session())))
    num_refused = 0
    for changed in with_other_values(described, [None, True, 3, -1, 0.5, "a", b"a", [], [1.0], ["a"], {}, np.ones(2)]):
        try:
            state = parse_session(changed)
        except InputError:
            num_refused += 1
            continue
        state.apply(session := ServedSession("other", "name", 2, Settings()))
        codec.pack(describe_session(session))
    assert num_refused > 100


@pytest.fixture
def load_engine(tiny_folder: Path) -> Callable[[], JatEngine]:
    backend = "cpu" if NATIVE else "torch"
    return lambda: JatEngine.from_pretrained(tiny_folder, device="cpu", backend=backend, dtype="float32")


async def play(service: PolicyService, steps: range, begins: bool = False) -> list[Any]:
    """Take steps of a golden episode, and return the actions."""
    actions = []
    for t in steps:
        fields = request_of(EPISODE["continuous_cw9"], t) | {"episode_start": begins and t == steps[0]}
        reply = await service.answer("me", parse_act(fields, seq=t + 1))
        assert isinstance(reply, Reply)
        actions.append(reply.action)
    return actions


def test_a_session_of_another_version_begins_again(load_engine: Callable[[], JatEngine], tmp_path: Path) -> None:
    """Its client is told why, and nothing of the file's is left in its session."""

    async def run() -> None:
        options = ServiceOptions(snapshot_every=1, resume_grace_s=0.0)
        service = PolicyService(load_engine, options, store=SnapshotStore(tmp_path, 3600.0, 10**9))
        await service.start()
        try:
            assert (await service.answer("me", Resume(TOKEN))) == Resumed("new", None, True)
            expected = await play(service, range(3))
            (session,) = service.sessions
            while session.is_saving:
                await asyncio.sleep(0.01)
            await service.drop("me")
            (path,) = tmp_path.iterdir()
            with_fields(path, lambda fields: fields.pop("return"))

            reply = await service.answer("me", Resume(TOKEN))
            assert isinstance(reply, Resumed)
            assert (reply.status, reply.seq) == ("new", None)
            assert reply.reason == "snapshot: expected return as this version writes it, got none"
            (session,) = service.sessions
            assert session.settings == Settings()
            assert session.agent.session is None
            assert await play(service, range(3)) == expected
        finally:
            await service.stop()

    asyncio.run(run())


def test_a_damaged_file_is_no_session(load_engine: Callable[[], JatEngine], tmp_path: Path) -> None:
    async def run() -> None:
        store = SnapshotStore(tmp_path, 3600.0, 10**9)
        with load_engine() as engine, engine.open_session() as session:
            await store.write(TOKEN, describe_session(a_session()), session.capture())
        (path,) = tmp_path.iterdir()
        whole = await store.read(TOKEN)
        assert whole is not None
        data = path.read_bytes()
        (length,) = struct.unpack("<I", data[8:12])
        for changed in damaged(data[: 12 + length + 32], 500):  # what follows is checked by the engine
            path.write_bytes(changed)
            assert await store.read(TOKEN) is None

        header = b"\xc1"  # no msgpack, but with a right digest
        begin = data[:8] + struct.pack("<I", len(header)) + header
        path.write_bytes(begin + hashlib.sha256(begin).digest())
        assert await store.read(TOKEN) is None
        store.close()

    asyncio.run(run())


def test_a_newer_state_is_not_removed(load_engine: Callable[[], JatEngine], tmp_path: Path) -> None:
    """A server that was stopped for a while does not know that another one has gone on with its session."""

    async def run() -> None:
        stopped, other = (SnapshotStore(tmp_path, 3600.0, 10**9) for _ in range(2))
        with load_engine() as engine, engine.open_session() as session:
            captured = session.capture()
        await stopped.write(TOKEN, describe_session(a_session(last_seq=5)), captured)
        await other.write(TOKEN, describe_session(a_session(last_seq=9)), captured)
        await stopped.write(TOKEN, describe_session(a_session(last_seq=7)), captured)
        await stopped.remove(TOKEN, 8)
        found = await other.read(TOKEN)
        assert found is not None
        assert found.fields["seq"] == 9
        await other.remove(TOKEN, 9)
        assert await other.read(TOKEN) is None
        for store in (stopped, other):
            store.close()

    asyncio.run(run())


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="--state_dir: expected a folder that can be written to"):
        SnapshotStore(tmp_path / "file", 1.0, 1)


def test_the_oldest_make_room(
    load_engine: Callable[[], JatEngine], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        with load_engine() as engine, engine.open_session() as session:
            captured = session.capture()
        size = await SnapshotStore(tmp_path / "a", 3600.0, 10**9).write(TOKEN, describe_session(a_session()), captured)
        store = SnapshotStore(tmp_path / "b", 3600.0, int(3.5 * size))
        tokens = [f"{number:040}" for number in range(6)]
        for number, token in enumerate(tokens):
            await store.write(token, describe_session(a_session(last_seq=number)), captured)
            await asyncio.sleep(0.02)  # so that their times differ
        assert [await store.read(token) is not None for token in tokens] == [False] * 3 + [True] * 3
        assert "--state_max_gb" in caplog.text
        for number in range(100):  # the same file, again and again
            await store.write(tokens[-1], describe_session(a_session(last_seq=10 + number)), captured)
        assert [await store.read(token) is not None for token in tokens] == [False] * 3 + [True] * 3
        store.close()

        small = SnapshotStore(tmp_path / "c", 3600.0, 1)
        for token in tokens[:2]:
            await small.write(token, describe_session(a_session()), captured)
            await asyncio.sleep(0.02)
        assert [await small.read(token) is not None for token in tokens[:2]] == [False, True]
        small.max_age_s = 0.0
        await small.remove_old()
        assert not list((tmp_path / "c").iterdir())
        small.close()

    asyncio.run(run())


def with_fields(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the fields of a session's file, and its digest."""
    data = path.read_bytes()
    (length,) = struct.unpack("<I", data[8:12])
    fields = codec.unpack(data[12 : 12 + length])
    change(fields)
    header = codec.pack(fields)
    begin = data[:8] + struct.pack("<I", len(header)) + header
    path.write_bytes(begin + hashlib.sha256(begin).digest() + data[12 + length + 32 :])
