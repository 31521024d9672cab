"""The codec of the policy server: round trips, and bytes that clients should not send.

EXAMPLES sets how many the long test draws.
"""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
import pytest

msgpack = pytest.importorskip("msgpack", reason="the extra `serve` is not installed")

from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from jat_engine.serving import codec
from jat_engine.serving.codec import WireError

ARRAYS = hnp.arrays(
    st.one_of(hnp.integer_dtypes(), hnp.unsigned_integer_dtypes(), hnp.floating_dtypes(), st.just(np.dtype(bool))),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
)


@settings(max_examples=100, deadline=None)
@given(array=ARRAYS, packs=st.sampled_from([codec.pack, codec.pack_with_text_keys]))
def test_arrays_come_back(array: np.ndarray, packs: Any) -> None:
    found = codec.unpack(packs({"a": array, "b": [1, None, "x", 2.5, (True,)]}))
    assert found["a"].dtype == array.dtype
    assert found["a"].shape == array.shape
    assert found["a"].tobytes() == array.tobytes()
    assert found["b"] == [1, None, "x", 2.5, [True]]


def test_scalars_come_back() -> None:
    for value in (np.float32(1.5), np.int64(-3), np.bool_(True), np.uint8(255)):
        found = codec.unpack(codec.pack(value))
        assert (type(found), found) == (type(value), value)
    with pytest.raises(WireError, match="expected one of dtype uint8, got"):
        codec.unpack(msgpack.packb({b"__npgeneric__": True, b"data": -1, b"dtype": "|u1"}))


@pytest.mark.parametrize("module", ["openpi_client.msgpack_numpy", "vla_eval.protocol.numpy_codec"])
def test_clients_read_what_the_server_writes(module: str) -> None:
    theirs = pytest.importorskip(module)
    array = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    if module.startswith("openpi"):
        assert np.array_equal(theirs.unpackb(codec.pack({"a": array}))["a"], array)
        assert np.array_equal(codec.unpack(theirs.packb({"a": array}))["a"], array)
        return
    read = msgpack.unpackb(codec.pack_with_text_keys({"a": array}), object_hook=theirs.decode_ndarray)
    assert np.array_equal(read["a"], array)
    for picture in (np.arange(84 * 84 * 4, dtype=np.uint8).reshape(84, 84, 4), array):
        assert np.array_equal(codec.unpack(msgpack.packb({"a": picture}, default=theirs.encode_ndarray))["a"], picture)


def packed_array(**changes: Any) -> bytes:
    fields = {"data": bytes(8), "dtype": "<f4", "shape": [2]} | changes
    return bytes(msgpack.packb({b"__ndarray__": True} | {key.encode(): value for key, value in fields.items()}))


BAD_ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "objects": ({"dtype": "|O"}, "dtype of bools, integers or floats"),
    "text": ({"dtype": "<U2"}, "dtype of bools"),
    "records": ({"dtype": "f4,f4"}, "dtype of bools"),
    "bytes": ({"dtype": "|S8"}, "dtype of bools"),
    "complex": ({"dtype": "<c8"}, "dtype of bools"),
    "dates": ({"dtype": "<M8[s]"}, "dtype of bools"),
    "long doubles": ({"dtype": "<f16"}, "dtype of bools"),
    "a list of fields": ({"dtype": [["a", "<f4"]]}, "dtype of bools"),
    "no dtype": ({"dtype": None}, "dtype of bools"),
    "too few bytes": ({"data": bytes(7)}, "expected 8 bytes of data"),
    "too many bytes": ({"data": bytes(9)}, "expected 8 bytes of data"),
    "no bytes": ({"data": "abcdefgh"}, "expected 8 bytes of data"),
    "negative sizes": ({"shape": [-1, -2]}, "sizes >= 0"),
    "a negative size": ({"shape": [-1]}, "sizes >= 0"),
    "sizes that are no integers": ({"shape": [2.0]}, "sizes >= 0"),
    "a bool for a size": ({"shape": [True, 2]}, "sizes >= 0"),
    "a number for a shape": ({"shape": 2}, "sizes >= 0"),
    "many dimensions": ({"shape": [1] * 9}, "at most 8 sizes"),
    "a huge product": ({"shape": [2**20, 2**20, 2**20]}, "bytes in all arrays"),
    "a product beyond 64 bits": ({"shape": [2**24] * 8}, "bytes in all arrays"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_other_arrays_are_refused(name: str) -> None:
    changes, message = BAD_ARRAYS[name]
    with pytest.raises(WireError, match=message) as caught:
        codec.unpack(packed_array(**changes))
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bytes(codec.MOST_BYTES + 1), "at most 16777216 bytes"),
        (b"\x91" * 9 + b"\xc0", "within each other"),
        (b"\x91" * 100_000 + b"\xc0", "expected msgpack"),
        (msgpack.packb([[0] * 1000] * 100), "items in all"),
        (b"\xdd\xff\xff\xff\xff", "expected msgpack"),
        (b"\xdf\xff\xff\xff\xff", "expected msgpack"),
        (b"\xc6\xff\xff\xff\xff", "expected msgpack"),
        (msgpack.packb({str(number): 0 for number in range(300)}), "expected msgpack"),
        (msgpack.packb({1: 2}), "expected msgpack"),
        (msgpack.packb(msgpack.ExtType(5, b"abc")), "expected msgpack"),
        (b"\xa1\xff", "expected msgpack"),
        (msgpack.packb({"__image__": True, "format": "gif", "data": b"", "shape": [1, 1, 3]}), "png, jpeg or raw"),
        (msgpack.packb({"__image__": True, "format": "png", "data": b"x", "shape": [1, 1, 3]}), "expected a png"),
        (msgpack.packb({"__image__": True, "format": "png", "data": b"x", "shape": [9**9, 9, 3]}), "sizes >= 0"),
    ],
)
def test_other_messages_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(WireError, match=message):
        codec.unpack(data)


def test_a_picture_is_not_larger_than_it_says() -> None:
    """A PNG of few bytes can stand for gigabytes of pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (3000, 3000)).save(buffer, "PNG")
    fields = {"__image__": True, "format": "png", "data": buffer.getvalue()}
    with pytest.raises(WireError, match="expected a png of the given shape"):
        codec.unpack(msgpack.packb(fields | {"shape": [84, 84, 3]}))
    with pytest.raises(WireError, match="bytes in all arrays"):
        codec.unpack(msgpack.packb(fields | {"shape": [3000, 3000, 3]}))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.binary(), inner),
    max_leaves=20,
)
KEYS = [b"__ndarray__", b"data", b"dtype", b"shape", b"__npgeneric__", "__ndarray__", "__image__", "data", "format"]
MAPS = st.dictionaries(
    st.sampled_from(KEYS), VALUES | st.sampled_from(["<f4", "|O", "png", "raw", [2], [-1], bytes(8)])
)


MESSAGES = st.binary(max_size=200) | st.one_of(VALUES, MAPS).map(msgpack.packb)


def check_message(data: bytes) -> None:
    try:
        codec.unpack(data)
    except WireError as error:
        assert len(str(error).splitlines()) == 1


@settings(max_examples=300, deadline=None)
@given(data=MESSAGES)
@example(data=b"\xdc\xff\xff" + b"\xdc\xff\xff" * 400)
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    check_message(data)


@pytest.mark.long
@settings(max_examples=int(os.environ.get("EXAMPLES", "20000")), deadline=None)
@given(data=MESSAGES)
def test_any_bytes_are_read_or_refused_for_long(data: bytes) -> None:
    check_message(data)
