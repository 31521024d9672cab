"""Encode stacked frames as PNG files: the four grey frames are the channels of an RGBA image, without loss."""

from __future__ import annotations

import io
import zlib

import numpy as np
from PIL import Image

_COMPRESSION = {"compress_level": 3, "compress_type": zlib.Z_RLE}  # the smallest and fastest choice for these frames


class EncodedFrames(list[bytes]):
    """Frames of an episode as `encode_frame` returns them, one for each step."""


def encode_frame(frame: np.ndarray) -> bytes:
    """Encode the frames of a step as a PNG file; red is the oldest frame, alpha the newest.

    Args:
        frame: uint8 [84, 84, 4].
    """
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG", **_COMPRESSION)
    return file.getvalue()
