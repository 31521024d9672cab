"""Codec of messages: msgpack with arrays, which no bytes of a client can make crash, allocate much, or run code.

Arrays travel as a map: `{b"__ndarray__": True, b"data": bytes, b"dtype": "<f4", b"shape": [...]}` with keys of bytes in
openpi's protocol, of strings in vla-eval's, whose images are `{"__image__": True, "format": "png", "data", "shape"}`.
Both are read wherever they come; a message is written in one of them.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
from PIL import Image

from ..errors import InputError

MOST_BYTES = 16 * 1024**2
"""Most bytes of a message, and of all arrays that it stands for together."""

MOST_ITEMS = 1 << 16
"""Most items of all maps and lists of a message together."""

MOST_KEYS = 256
"""Most keys of a map."""

MOST_DEPTH = 8
"""Most maps and lists within each other."""

MOST_DIMENSIONS = 8

_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")
_FORMATS = {"png": "PNG", "jpeg": "JPEG"}
_CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}


class WireError(InputError):
    """Message that is not in the format of the protocol."""


def unpack(data: bytes) -> Any:
    """Return the value that a message stands for; tuples have become lists, and arrays are read-only.

    Raises:
        WireError: the message is larger, deeper or has more items than is allowed, is not msgpack, or holds an array
            that is not one of bools, integers or floats with as many bytes as its shape says.
    """
    if len(data) > MOST_BYTES:
        raise WireError(f"message: expected at most {MOST_BYTES} bytes, got {len(data)}")
    reader = _Reader()
    try:
        value = msgpack.unpackb(
            data,
            object_hook=reader.read_map,
            list_hook=reader.read_list,
            max_map_len=MOST_KEYS,
            max_array_len=MOST_ITEMS,
            max_ext_len=0,
        )
    except WireError:
        raise
    except Exception as error:  # msgpack's own, Unicode's, and those of its limits have no class in common
        reason = " ".join(str(error).split()) or type(error).__name__
        raise WireError(f"message: expected msgpack, got {len(data)} bytes that are not it ({reason:.80})") from None
    _check_depth(value, MOST_DEPTH)
    return value


def pack(value: Any) -> bytes:
    """Return a message with arrays as openpi's clients read them.

    Raises:
        WireError: an array is not one of bools, integers or floats.
    """
    return _pack(value, _with_bytes_keys)


def pack_with_text_keys(value: Any) -> bytes:
    """Return a message with arrays as vla-eval's clients read them. Raises `WireError`, see `pack`."""
    return _pack(value, _with_text_keys)


def _pack(value: Any, default: Callable[[Any], Any]) -> bytes:
    packed: bytes = msgpack.packb(value, default=default)
    return packed


def _with_bytes_keys(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        _check_kind(value.dtype)
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic):
        _check_kind(value.dtype)
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"message: expected arrays, numbers, strings, lists and maps, got {type(value).__name__}")


def _with_text_keys(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        _check_kind(value.dtype)
        return {"__ndarray__": True, "data": value.tobytes(), "dtype": value.dtype.str, "shape": list(value.shape)}
    if isinstance(value, np.generic):
        _check_kind(value.dtype)
        return value.item()
    raise TypeError(f"message: expected arrays, numbers, strings, lists and maps, got {type(value).__name__}")


def _check_kind(dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "biuf":
        raise WireError(f"array: expected bools, integers or floats, got dtype {dtype}")


class _Reader:
    """Counts what one message holds, and reads the maps that stand for arrays."""

    def __init__(self) -> None:
        self.num_items = 0
        self.num_bytes = 0

    def read_list(self, items: list[Any]) -> list[Any]:
        self._count(len(items))
        return items

    def read_map(self, found: dict[Any, Any]) -> Any:
        self._count(len(found))
        if b"__ndarray__" in found:
            return self._array(found.get(b"data"), found.get(b"dtype"), found.get(b"shape"))
        if b"__npgeneric__" in found:
            return _scalar(found.get(b"data"), found.get(b"dtype"))
        if "__ndarray__" in found:
            return self._array(found.get("data"), found.get("dtype"), found.get("shape"))
        if "__image__" in found:
            return self._image(found)
        return found

    def _count(self, items: int) -> None:
        self.num_items += items
        if self.num_items > MOST_ITEMS:
            raise WireError(f"message: expected at most {MOST_ITEMS} items in all maps and lists, got more")

    def _array(self, data: Any, dtype: Any, shape: Any) -> np.ndarray:
        kind, sizes = _dtype(dtype), self._shape(shape, dtype)
        size = math.prod(sizes) * kind.itemsize
        if not isinstance(data, bytes) or len(data) != size:
            got = f"{len(data)} bytes" if isinstance(data, bytes) else type(data).__name__
            raise WireError(f"array: expected {size} bytes of data for shape {sizes} of {kind}, got {got}")
        return np.frombuffer(data, kind).reshape(sizes)

    def _shape(self, shape: Any, dtype: Any) -> list[int]:
        """Return the sizes of an array. Its bytes count towards those of the message."""
        is_list = isinstance(shape, list | tuple) and len(shape) <= MOST_DIMENSIONS
        if not is_list or not all(type(size) is int and 0 <= size <= MOST_BYTES for size in shape):
            raise WireError(f"array: expected a shape of at most {MOST_DIMENSIONS} sizes >= 0, got {shape!r:.80}")
        sizes = list(shape)
        self.num_bytes += math.prod(sizes) * _dtype(dtype).itemsize
        if self.num_bytes > MOST_BYTES:
            raise WireError(f"array: expected at most {MOST_BYTES} bytes in all arrays, got more; shape {sizes}")
        return sizes

    def _image(self, found: dict[Any, Any]) -> np.ndarray:
        """Return an image, uint8 [H, W, C]; a gray one in a PNG or JPEG file as [H, W, 1]."""
        name, data = found.get("format"), found.get("data")
        if not isinstance(name, str) or name not in (*_FORMATS, "raw"):
            raise WireError(f"image: expected format png, jpeg or raw, got {name!r:.80}")
        if name == "raw":
            return self._array(data, found.get("dtype", "|u1"), found.get("shape"))
        if not isinstance(data, bytes):
            raise WireError(f"image: expected bytes of data, got {type(data).__name__}")
        shape = self._shape(found.get("shape"), "|u1")
        mode = _CHANNELS.get(shape[2]) if len(shape) == 3 else None
        try:
            with Image.open(io.BytesIO(data), formats=[_FORMATS[name]]) as image:
                if mode is None or (image.height, image.width) != (shape[0], shape[1]) or image.mode != mode:
                    raise WireError(
                        f"image: expected a {name} of the given shape, got {shape} for {image.height} x {image.width} "
                        f"pixels of {image.mode}"
                    )
                return np.asarray(image).reshape(shape)
        except WireError:
            raise
        except Exception as error:  # Pillow's, of a damaged file: any class
            raise WireError(f"image: expected a {name}, got {len(data)} bytes ({error!s:.80})") from None


def _dtype(name: Any) -> np.dtype[Any]:
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        raise WireError(f"array: expected a dtype of bools, integers or floats such as '<f4', got {name!r:.80}")
    return np.dtype(name)


def _scalar(data: Any, dtype: Any) -> Any:
    kind = _dtype(dtype)
    if not isinstance(data, bool | int | float):
        raise WireError(f"number: expected one of dtype {kind}, got {type(data).__name__}")
    try:
        with np.errstate(over="ignore"):  # infinite, as in an array
            return kind.type(data)
    except (ValueError, OverflowError, TypeError):
        raise WireError(f"number: expected one of dtype {kind}, got {data!r:.80}") from None


def _check_depth(value: Any, left: int) -> None:
    if type(value) is not dict and type(value) is not list:
        return
    if not left:
        raise WireError(f"message: expected at most {MOST_DEPTH} maps and lists within each other, got more")
    for item in value.values() if type(value) is dict else value:
        _check_depth(item, left - 1)
