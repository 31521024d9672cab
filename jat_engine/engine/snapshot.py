"""Snapshots: the whole state of a session as bytes, from which an engine with the same weights goes on.

    magic    8 bytes, "JATSNAP1"
    length   4 bytes, little-endian: of the header
    header   JSON: what the session and its engine are, and the arrays that follow with dtypes and shapes
    arrays   one after the other, little-endian: the pages of the KV cache that hold tokens, the last step, ...
    digest   32 bytes: SHA-256 of all before

Nothing in it is code: a snapshot of another engine, or a damaged one, is refused. On the native CPU backend the session
goes on bit for bit, in this or another process.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import numpy as np
import torch

from ..backends import LastStep
from ..errors import InputError
from ..observation import ActionSpace, Modality, Observations
from .kv_cache import CachedTokens
from .step import Episodes, EpisodesState, StepRunner

_MAGIC = b"JATSNAP1"
_DIGEST_BYTES = 32
_MOST_HEADER_BYTES = 1 << 16

_VALUE_DTYPES: dict[str, str] = {"continuous": "<f4", "discrete": "<i8", "discrete+text": "<i8", "image": "|u1"}
_DTYPES = ("<f4", "<i8", "|u1")


class Parts(NamedTuple):
    """A snapshot that has been checked as bytes.

    Attributes:
        header: as it was written.
        arrays: by name, read-only.
    """

    header: dict[str, Any]
    arrays: dict[str, np.ndarray]


class Captured(NamedTuple):
    """A copy of a session's state, which its further steps do not change.

    Attributes:
        header: what the session and its engine are.
        arrays: by name.
    """

    header: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def to_bytes(self) -> bytes:
        """Return the snapshot. Any thread may call this, while the engine goes on."""
        header = {**self.header, "arrays": [[name, a.dtype.str, list(a.shape)] for name, a in self.arrays.items()]}
        text = json.dumps(header).encode()
        data: Any = (np.ascontiguousarray(array).data for array in self.arrays.values())
        parts = [_MAGIC, struct.pack("<I", len(text)), text, *data]
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        return b"".join([*parts, digest.digest()])


def capture(runner: StepRunner, episodes: Episodes, identity: dict[str, Any]) -> Captured:
    """Return a copy of the state of a single agent's episode. Waits for a running step.

    Args:
        runner: of the engine.
        episodes: of the agent.
        identity: of the engine, which another one must have to restore the snapshot.

    Raises:
        SessionError: the session is closed, or the call comes from within a step.
    """
    arrays: dict[str, np.ndarray] = {}
    with runner.lock:
        runner.check_idle()
        episodes.check_open()
        state, generator = episodes.state, episodes.generator_state()
        cached, backend = state.cached, runner.backend
        num_pages = -(-(cached.start_offset + state.context_len) // backend.page_size) if state.context_len else 0
        arrays["pages"] = backend.read_pages(cached.table[:num_pages])
        header = {
            **identity,
            "window": episodes.window,
            "uses_first_reward": episodes.uses_first_reward,
            "start_offset": int(cached.start_offset),
            "num_tokens": int(cached.num_tokens),
            "num_again": int(state.num_again),
            "begins": bool(state.begins),
        }
        if generator is not None:
            arrays["generator"] = generator
        last = state.last
        if last is not None:
            observed = last.observations
            header["last"] = {
                "modality": observed.modality,
                "fields": observed.fields,
                "num_padding": observed.num_padding,
                "text": None if observed.texts is None else observed.texts[0],
                "reward": float(observed.rewards[0]),
                "space": [last.space.kind, last.space.size],
            }
            arrays["observation"] = np.array(observed.values[0], _VALUE_DTYPES[observed.modality])
            is_continuous = last.space.kind == "continuous"
            arrays["action"] = np.array(last.actions[0], "<f4" if is_continuous else "<i8")
            embedding = backend.read_embedding(last.embeddings)
            if embedding is not None:
                arrays["embedding"] = embedding
    return Captured(header, arrays)


def read(blob: Any) -> Parts:
    """Check a snapshot's bytes, and return its parts.

    Raises:
        InputError: it is damaged, or no snapshot.
    """
    if not isinstance(blob, bytes | bytearray | memoryview):
        raise InputError(f"snapshot: expected bytes from session.snapshot(), got {type(blob).__name__}")
    view = memoryview(blob).cast("B")
    begin = len(_MAGIC) + 4
    if len(view) < begin + _DIGEST_BYTES or bytes(view[: len(_MAGIC)]) != _MAGIC:
        raise InputError(f"snapshot: expected bytes that begin with {_MAGIC.decode()}, got {bytes(view[:8])!r:.40}")
    body = view[:-_DIGEST_BYTES]
    if hashlib.sha256(body).digest() != bytes(view[-_DIGEST_BYTES:]):
        raise InputError("snapshot: expected bytes as they were written, got damaged or truncated ones")

    (length,) = struct.unpack("<I", view[len(_MAGIC) : begin])
    try:
        if length > min(_MOST_HEADER_BYTES, len(body) - begin):
            raise ValueError("header")
        header = json.loads(bytes(view[begin : begin + length]))
        arrays, begin = {}, begin + length
        for name, dtype, shape in header["arrays"]:
            if dtype not in _DTYPES or not all(type(size) is int and size >= 0 for size in shape):
                raise ValueError("arrays")
            count = int(np.prod(shape, dtype=object)) if shape else 1
            size = count * np.dtype(dtype).itemsize
            if size > len(body) - begin:
                raise ValueError("arrays")
            arrays[name] = np.frombuffer(body[begin : begin + size], dtype).reshape(shape)
            begin += size
        if begin != len(body):
            raise ValueError("arrays")
    except (ValueError, KeyError, TypeError, RecursionError) as error:  # JSON's and Unicode's are ValueErrors
        raise InputError("snapshot: expected the layout of this version, got another one") from error
    return Parts(header, arrays)


def restore(runner: StepRunner, parts: Parts, identity: dict[str, Any]) -> Episodes:
    """Begin episodes that go on where a snapshot was taken.

    Args:
        runner: of the engine.
        parts: of the snapshot.
        identity: of the engine.

    Raises:
        InputError: the snapshot is of another engine, or inconsistent.
        CacheFullError: the KV cache has too few free pages.
        SessionError: the engine is closed.
    """
    header, arrays = parts
    for name, value in identity.items():
        if header.get(name) != value:
            raise InputError(
                f"snapshot: expected one of an engine with {name} {value!r:.80}, got {header.get(name)!r:.80}"
            )
    try:
        state = _state_of(runner, header, arrays)
        generator = _generator_of(arrays)
        window, uses_first_reward = header["window"], header["uses_first_reward"]
        if not (type(window) is int and 1 <= window <= runner.max_window and type(uses_first_reward) is bool):
            raise ValueError("window")
        if state.cached.num_tokens > window:
            raise ValueError("num_tokens")
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"snapshot: expected a consistent state, got a wrong {error}") from error

    episodes = runner.open(window, generator, None, uses_first_reward)
    try:
        with runner.lock:
            runner.check_idle()
            table = episodes.state.cached.table
            pages = arrays["pages"]
            if len(pages):
                runner.backend.write_pages(table[: len(pages)], pages)
            last = state.last
            if last is not None:
                last = last._replace(embeddings=runner.backend.make_embedding(arrays.get("embedding")))
            episodes.state = state._replace(cached=state.cached._replace(table=table), last=last)
    except BaseException:
        episodes.close()
        raise
    return episodes


def _state_of(runner: StepRunner, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> EpisodesState:
    """Return the state of a snapshot, without its pages and embedding. Errors name the field that is wrong."""
    backend = runner.backend
    start_offset = _integer(header, "start_offset", backend.page_size - 1)
    num_tokens = _integer(header, "num_tokens", runner.max_window)
    num_again = _integer(header, "num_again", 2)
    last = _last_of(runner, header, arrays) if header.get("last") is not None else None
    if (last is None) != (num_again == 0) or (last is None and num_tokens):
        raise ValueError("last")
    if type(header["begins"]) is not bool:
        raise ValueError("begins")

    state = EpisodesState(
        CachedTokens(np.empty(0, np.int32), start_offset, num_tokens), num_again, last, 0, header["begins"]
    )
    rows = state.context_len
    num_pages = -(-(start_offset + rows) // backend.page_size) if rows else 0
    if arrays["pages"].shape != (num_pages, backend.page_bytes) or arrays["pages"].dtype != np.uint8:
        raise ValueError("pages")
    return state


def _last_of(runner: StepRunner, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> LastStep:
    fields = header["last"]
    modality, text, (kind, size) = fields["modality"], fields["text"], fields["space"]
    limits = runner.limits
    if modality not in get_args(Modality) or type(fields["fields"]) is not str:
        raise ValueError("modality")
    if not (_is_unicode(text) if modality == "discrete+text" else text is None):
        raise ValueError("text")
    largest = {"continuous": limits.max_continuous_size, "discrete": limits.vocab_size}
    if kind not in largest or type(size) is not int or not 1 <= size <= largest[kind]:
        raise ValueError("space")
    space = ActionSpace(kind, size)

    values, action, reward = arrays["observation"], arrays["action"], fields["reward"]
    if values.dtype.str != _VALUE_DTYPES[modality] or not values.size:
        raise ValueError("observation")
    num_padding = fields["num_padding"]
    if type(num_padding) is not int or not 0 <= num_padding < values.size:
        raise ValueError("num_padding")
    if type(reward) is not float or not abs(reward) <= float(np.finfo(np.float32).max):  # false for NaN
        raise ValueError("reward")
    embedding = arrays.get("embedding")
    if embedding is None:
        if modality != "continuous":
            raise ValueError("embedding")
    elif embedding.dtype != np.float32 or embedding.shape != (runner.config.hidden_size,):
        raise ValueError("embedding")

    if kind == "continuous":
        if action.shape != (size,) or action.dtype != np.float32 or not np.isfinite(action).all():
            raise ValueError("action")
        actions: list[Any] = [action.copy()]
    else:
        if action.shape != () or action.dtype != np.int64 or not 0 <= action < size:
            raise ValueError("action")
        actions = [int(action)]
    texts = None if text is None else [text]
    observed = Observations(modality, [values.copy()], texts, [reward], fields["fields"], num_padding)
    return LastStep(observed, None, space, actions)


def _is_unicode(text: Any) -> bool:
    """Return True for a string without lone surrogates, which a tokenizer refuses."""
    return type(text) is str and not any("\ud800" <= character <= "\udfff" for character in text)


def _generator_of(arrays: dict[str, np.ndarray]) -> torch.Generator | None:
    if "generator" not in arrays:
        return None
    generator = torch.Generator()
    expected = generator.get_state()
    state = arrays["generator"]
    if state.dtype != np.uint8 or state.shape != tuple(expected.shape):
        raise ValueError("generator")
    generator.set_state(torch.from_numpy(state.copy()))
    return generator


def _integer(header: dict[str, Any], name: str, most: int) -> int:
    value = header[name]
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(name)
    return value


def fingerprint(get: Callable[[str], torch.Tensor], names: list[str]) -> str:
    """Return a hash of parameters, by which snapshots know the weights of their engine.

    Args:
        get: returns a parameter, float32.
        names: of small parameters, which every training changes.
    """
    digest = hashlib.sha256()
    for name in names:
        digest.update(np.ascontiguousarray(get(name).numpy()).data)
    return digest.hexdigest()[:32]
