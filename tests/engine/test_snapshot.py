"""Snapshots of sessions: going on bit for bit, here and in another process, and refusals of what does not fit."""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import environment, program
from helpers.damage import damaged, with_other_values
from helpers.engines import EPISODE, Load, native, play, variants

from jat_engine import InputError, JatEngine, SessionError
from jat_engine.testing import golden

EPISODES = ["continuous_full", "continuous_cw9", "continuous_discrete_action", "babyai_sampled", "discrete_only"]
EPISODES += ["atari_sampled_cw8", "image_box"]


def open_for(engine: JatEngine, episode: golden.Episode) -> Any:
    return engine.open_session(context_window=episode.context_window, seed=5)


@pytest.mark.parametrize("options", variants("float32", "bfloat16"))
@pytest.mark.parametrize("name", EPISODES)
def test_a_restored_session_goes_on_as_the_first(name: str, options: dict[str, Any], load: Load) -> None:
    engine, episode = load(**options), EPISODE[name]
    steps = min(episode.steps, 24)
    for moment in (0, 1, 2, 11):
        with open_for(engine, episode) as session:
            for t in range(min(moment, steps)):
                play(session, episode, t)
            blob = session.snapshot()
            expected = [play(session, episode, t) for t in range(moment, steps)]
        with engine.open_session() as other, engine.restore(blob) as restored:  # other pages than before
            assert other.num_cached_tokens == 0
            for t in range(moment, steps):
                action, prediction = play(restored, episode, t)
                assert np.array_equal(action, expected[t - moment][0])
                np.testing.assert_array_equal(prediction, expected[t - moment][1])


@native
def test_another_process_goes_on_bit_for_bit(tiny_folder: Path, tmp_path: Path) -> None:
    engine = JatEngine.from_pretrained(tiny_folder, device="cpu", backend="cpu", dtype="bfloat16")
    episode = EPISODE["babyai_sampled"]
    with open_for(engine, episode) as session:
        for t in range(7):
            play(session, episode, t)
        (tmp_path / "snapshot").write_bytes(session.snapshot())
        expected = [play(session, episode, t)[1].view(np.int32).tolist() for t in range(7, 15)]
    arguments = [str(tiny_folder), str(tmp_path / "snapshot"), "babyai_sampled", "7", "15"]
    done = subprocess.run(
        program("restored_session", *arguments), capture_output=True, text=True, check=False, env=environment()
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == expected


def test_what_does_not_fit_is_refused(load: Load, tiny_model: Any) -> None:
    engine = load(backend="torch", dtype="float32")
    with open_for(engine, EPISODE["continuous_full"]) as session:
        play(session, EPISODE["continuous_full"], 0)
        blob = session.snapshot()
    with pytest.raises(SessionError, match="closed"):
        session.snapshot()
    with pytest.raises(InputError, match="dtype 'bfloat16', got 'float32'"):
        load(backend="torch", dtype="bfloat16").restore(blob)
    with pytest.raises(InputError, match="expected bytes from session"):
        engine.restore("text")  # type: ignore[arg-type]
    nested = b'{"a": ' + b"[" * 30_000
    body = blob[:8] + struct.pack("<I", len(nested)) + nested
    for data in (b"", blob[:30], blob[:-1], blob + b"x", b"X" + blob[1:], body + hashlib.sha256(body).digest()):
        with pytest.raises(InputError, match="snapshot: expected"):
            engine.restore(data)

    other = type(tiny_model)(tiny_model.config)
    with pytest.raises(InputError, match="weights"):
        JatEngine.from_model(other, device="cpu", backend="torch", dtype="float32").restore(blob)
    assert engine.cache_stats.reserved == 0


def header_of(blob: bytes) -> dict[str, Any]:
    (length,) = struct.unpack("<I", blob[8:12])
    header: dict[str, Any] = json.loads(blob[12 : 12 + length])
    return header


def with_header(blob: bytes, header: dict[str, Any]) -> bytes:
    """Return a snapshot with another header, and a right digest."""
    (length,) = struct.unpack("<I", blob[8:12])
    text = json.dumps(header).encode()
    body = blob[:8] + struct.pack("<I", len(text)) + text + blob[12 + length : -32]
    return body + hashlib.sha256(body).digest()


def rewrite(blob: bytes, change: dict[str, Any]) -> bytes:
    """Return a snapshot with other fields of its header."""
    header = header_of(blob)
    for name, value in change.items():
        owner, _, field = name.rpartition(".")
        (header[owner] if owner else header)[field] = value
    return with_header(blob, header)


@pytest.mark.parametrize(
    "change",
    [
        {"window": 0},
        {"window": 10**9},
        {"num_tokens": -1},
        {"num_tokens": 10**9},
        {"num_tokens": 40},
        {"start_offset": 16},
        {"num_again": 3},
        {"num_again": 0},
        {"begins": 1},
        {"last": None},
        {"last.modality": "image"},
        {"last.space": ["continuous", 0]},
        {"last.space": ["discrete", 4]},
        {"last.reward": float("nan")},
        {"last.text": ["go"]},
        {"last.num_padding": 10**9},
        {"arrays": []},
        {"arrays": [["pages", "|O", [1]]]},
        {"arrays": [["pages", "|u1", [-1]]]},
        {"arrays": [["pages", "|u1", [2**62, 2**62]]]},
    ],
    ids=str,
)
def test_an_inconsistent_state_is_refused(change: dict[str, Any], load: Load) -> None:
    engine = load(backend="torch", dtype="float32")
    with open_for(engine, EPISODE["continuous_full"]) as session:
        for t in range(3):
            play(session, EPISODE["continuous_full"], t)
        blob = session.snapshot()
    assert engine.restore(rewrite(blob, {})).num_cached_tokens == 4
    with pytest.raises(InputError, match="snapshot: expected"):
        engine.restore(rewrite(blob, change))


def test_random_changes_never_reach_the_engine(load: Load) -> None:
    engine = load(backend="torch", dtype="float32")
    with open_for(engine, EPISODE["babyai_sampled"]) as session:
        for t in range(3):
            play(session, EPISODE["babyai_sampled"], t)
        blob = session.snapshot()
    for data in damaged(blob, 300):
        with pytest.raises(InputError, match="snapshot: expected"):
            engine.restore(data)


@pytest.mark.parametrize("options", variants("float32"))
@pytest.mark.parametrize("name", ["continuous_cw9", "babyai_sampled"])
def test_any_value_of_any_field_is_refused_or_leaves_a_session_that_can_act(
    name: str, options: dict[str, Any], load: Load
) -> None:
    """A snapshot with a right digest is of this program, or of one that says what it likes."""
    engine, episode, num_refused = load(**options), EPISODE[name], 0
    with open_for(engine, episode) as session:
        for t in range(3):
            play(session, episode, t)
        blob = session.snapshot()
    before = engine.cache_stats.reserved
    for header in with_other_values(header_of(blob)):
        try:
            restored = engine.restore(with_header(blob, header))
        except InputError:
            num_refused += 1
            continue
        with restored, contextlib.suppress(InputError, SessionError):  # another observation than the snapshot's
            play(restored, episode, 3)
            restored.snapshot()
    assert num_refused > 500
    assert engine.cache_stats.reserved == before
