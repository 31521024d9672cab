"""Encode stacked frames as PNG files: the four grey frames are the channels of an RGBA image, without loss."""

from __future__ import annotations

import io
import zlib

import numpy as np
from PIL import Image

_COMPRESSION = {"compress_level": 3, "compress_type": zlib.Z_RLE}  # the smallest and fastest choice for these frames


def encode_frames(frames: np.ndarray) -> list[bytes]:
    """Encode the frames of each step as a PNG file; red is the oldest frame, alpha the newest.

    Args:
        frames: uint8 [steps, 84, 84, 4].

    Returns:
        One file per step.
    """
    files = []
    for frame in frames:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "PNG", **_COMPRESSION)
        files.append(file.getvalue())
    return files
