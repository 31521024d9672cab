"""Drawing of rooms with the captions that the model wrote for them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLUMNS, MARGIN, TEXT_HEIGHT = 4, 16, 28
"""Rooms in a row, and pixels between rooms and of a caption."""


def draw_rooms(pictures: Sequence[np.ndarray], captions: Sequence[str]) -> Image.Image:
    """Return an image of rooms in rows, each with its caption below.

    Args:
        pictures: uint8 [192, 192, 3] each; at least one.
        captions: one for each picture.
    """
    height, width = pictures[0].shape[:2]
    cell_width, cell_height = width + MARGIN, height + TEXT_HEIGHT + MARGIN
    num_rows = -(-len(pictures) // COLUMNS)
    size = (min(len(pictures), COLUMNS) * cell_width + MARGIN, num_rows * cell_height + MARGIN)
    image = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(size=14)

    for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left, top = MARGIN + index % COLUMNS * cell_width, MARGIN + index // COLUMNS * cell_height
        image.paste(Image.fromarray(picture), (left, top))
        pen.text((left, top + height + 6), caption, fill="black", font=font)
    return image
