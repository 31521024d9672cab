"""Conversion of the pictures of text tasks to RGB with 8 bits per channel, whatever form they come in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_utils import load_image

_HELP = "pass PIL images, or arrays of uint8 or of floats in 0..1, of shape [H, W, 3]"
_CHANNELS = (1, 2, 3, 4)
"""Channels of a picture: grey, grey and alpha, RGB, RGB and alpha."""

_CHANNELS_FIRST = (1, 3, 4)
"""Channels of a picture [C, H, W]; [2, H, W] would rather be two grey pictures."""

_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_DARKEST_WHITE = 16
"""Floats in 0..255 have a larger value than this in any picture that is not black to the eye."""


def to_rgb(images: Any, input_data_format: Any = None) -> tuple[list[Image.Image], bool]:
    """Convert pictures to PIL images in mode RGB. Alpha is dropped, as in the training of the published model.

    Every form of a picture gives the same image: PIL images of any mode, file names and URLs, arrays, tensors and
    nested lists of numbers, with shape [H, W], [H, W, C] or [C, H, W] and C = 1 to 4, as bool, integers in 0..255,
    uint16 over its whole range, or floats in 0..1 or in 0..255.

    Args:
        images: a picture, a batch of pictures as an array of 4 dimensions, or nested lists of them.
        input_data_format: "channels_first" or "channels_last", for arrays; by default the dimension of a size up to 4.

    Returns:
        The pictures, one after the other, and whether floats in 0..1 were among them.

    Raises:
        ValueError: a picture has an invalid shape, type or value, or several of them have floats of different ranges.
    """
    layout = _layout(input_data_format)
    converted = [_convert(picture, layout) for picture in _flatten(images)]
    if not converted:
        raise ValueError(f"images: expected at least one picture, got none; {_HELP}")

    # Floats in 0..1 and floats in 0..255 differ by their values only, which a black picture does not show.
    tops = [picture.max() for picture in converted if _is_float(picture)]
    is_unit = bool(tops) and max(tops) * 255 < 255.5
    if not is_unit and any(0 < top * 255 < 255.5 for top in tops):
        raise ValueError(
            f"images: expected floats of one range, got pictures with a largest value of {min(tops):.3g} and of "
            f"{max(tops):.3g}; scale all of them to 0..1"
        )
    if not is_unit and tops and max(tops) < _DARKEST_WHITE:
        raise ValueError(
            f"images: expected floats in 0..1 or in 0..255, got a largest value of {max(tops):.4g}; clip or scale the "
            "values to 0..1"
        )
    pictures = [one for given in converted for one in (given if given.ndim == 4 else [given])]
    return [Image.fromarray(_to_bytes(picture, is_unit)) for picture in pictures], is_unit


def _layout(input_data_format: Any) -> str | None:
    name = getattr(input_data_format, "value", input_data_format)  # transformers has an enumeration of them
    if name not in (None, "channels_first", "channels_last"):
        raise ValueError(f"input_data_format: expected 'channels_first' or 'channels_last', got {input_data_format!r}")
    return None if name is None else str(name)


def _flatten(images: Any) -> list[Any]:
    """Return PIL images, and arrays of 2 to 4 dimensions; one of 4 holds several pictures of the same range."""
    if isinstance(images, str | os.PathLike):
        path = os.fspath(images)
        try:
            return [Image.open(path) if Path(path).exists() else load_image(path)]
        except Exception as error:  # the client that fetches a URL has classes of its own
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"images: expected a picture, got {path!r:.80} ({reason:.120})") from None
    if isinstance(images, Image.Image):
        if 0 in images.size:
            raise ValueError(f"images: expected a picture with pixels, got size {list(images.size)}")
        return [images]
    if isinstance(images, list | tuple) and not _is_numbers(images):
        return [picture for item in images for picture in _flatten(item)]

    array = _to_array(images)
    if array.ndim not in (2, 3, 4):
        raise ValueError(f"images: expected a picture of shape [H, W, C] or a batch of them, got {list(array.shape)}")
    return [array]


def _is_numbers(values: Any) -> bool:
    """Return whether nested lists hold a picture's numbers, or rows of numbers, rather than whole pictures."""
    while isinstance(values, list | tuple) and values:
        values = values[0]
    return isinstance(values, int | float | np.generic) or (
        isinstance(values, np.ndarray | torch.Tensor) and values.ndim < 2
    )


def _to_array(values: Any) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return np.asarray((values.float() if values.dtype == torch.bfloat16 else values).numpy())
    if isinstance(values, list | tuple) and values and isinstance(values[0], torch.Tensor):
        values = [_to_array(value) for value in values]
    try:
        array = np.asarray(values)
    except ValueError:  # rows of different lengths
        array = np.empty(0, object)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"images: expected pictures, got {type(values).__name__} of {array.dtype}; {_HELP}")
    return array


def _convert(picture: Any, layout: str | None) -> np.ndarray:
    """Return one or several pictures as an array [..., H, W, 3] of integers in 0..255, or of floats as given."""
    if isinstance(picture, Image.Image):
        if picture.mode not in _SIXTEEN_BITS:
            return _convert_pil(picture)
        picture, layout = np.asarray(picture).astype(np.uint16), None
    array = _channels_last(picture, layout)
    if array.shape[-1] in (2, 4):
        array = array[..., :-1]

    if _is_float(array):
        array = array.astype(np.float32 if array.dtype.itemsize < 4 else array.dtype)
        if not np.isfinite(array).all():
            raise ValueError("images: expected finite values, got NaN or infinity")
        least, most = array.min(), array.max()
        if least * 255 < -0.5 or most >= 255.5:
            raise ValueError(
                f"images: expected floats in 0..1 or in 0..255, got {least:.4g} to {most:.4g}; undo the normalisation, "
                "which the processor does itself"
            )
    elif array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype == np.uint16:
        array = _drop_low_bits(array)
    elif array.min() < 0 or array.max() > 255:
        raise ValueError(f"images: expected integers in 0..255, got {array.min()} to {array.max()}; convert to uint8")
    return np.repeat(array, 3, -1) if array.shape[-1] == 1 else array


def _convert_pil(picture: Image.Image) -> np.ndarray:
    if picture.mode in ("I", "F"):  # 32 bits, of which Pillow would keep the lowest 8
        raise ValueError(
            f"images: expected a PIL image of 8 or 16 bits per channel, got mode {picture.mode!r}; scale it to 0..255 "
            "and convert it to uint8"
        )
    try:
        return np.asarray(picture.convert("RGB"))
    except (ValueError, OSError) as error:
        raise ValueError(
            f"images: expected a picture that converts to RGB, got mode {picture.mode!r} ({error})"
        ) from None


def _channels_last(array: np.ndarray, layout: str | None) -> np.ndarray:
    """Return pictures as [..., H, W, C]."""
    if 0 in array.shape:
        raise ValueError(f"images: expected a picture with pixels, got shape {list(array.shape)}")
    if array.ndim == 2:
        return array[..., None]
    first, last = array.shape[-3] in _CHANNELS_FIRST, array.shape[-1] in _CHANNELS
    if layout is None and first and last:
        raise ValueError(
            f"images: expected [H, W, C] or [C, H, W], got shape {list(array.shape)}, which can be both; pass "
            'input_data_format="channels_last" or "channels_first"'
        )
    if not (last if layout == "channels_last" else first if layout == "channels_first" else first or last):
        raise ValueError(
            f"images: expected 1 to 4 channels in [H, W, C] or [C, H, W], got shape {list(array.shape)}; pass a batch "
            "of grey pictures as a list"
        )
    is_first = layout == "channels_first" or (layout is None and first)
    return np.moveaxis(array, -3, -1) if is_first else array


def _drop_low_bits(array: np.ndarray) -> np.ndarray:
    if 0 < array.max() < 256:
        raise ValueError(
            f"images: expected uint16 over its whole range, got a largest value of {array.max()}; convert to uint8"
        )
    return array >> 8


def _is_float(array: np.ndarray) -> bool:
    return array.dtype.kind == "f"


def _to_bytes(picture: np.ndarray, is_unit: bool) -> np.ndarray:
    if _is_float(picture):
        picture = np.clip(np.rint(picture * 255 if is_unit else picture), 0, 255)
    return np.ascontiguousarray(picture, np.uint8)
