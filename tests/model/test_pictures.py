"""Pictures of text tasks: each form gives the pixels of its RGB picture with 8 bits, or one line of refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jat_engine import JatProcessor

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (40, 36, 3), dtype=np.uint8)
RGBA = np.dstack((RGB, RNG.integers(0, 256, (40, 36), dtype=np.uint8)))
GREY = RGB[..., 0]
UNIT = RGB.astype(np.float32) / 255
BATCH = np.stack((RGB, RGB[::-1]))

COLOURED: dict[str, Any] = {
    "uint8": RGB,
    "floats in 0..1": UNIT,
    "float16": UNIT.astype(np.float16),
    "float64": UNIT.astype(np.float64),
    "floats in 0..255": RGB.astype(np.float32),
    "int64": RGB.astype(np.int64),
    "uint16": RGB.astype(np.uint16) * 257,
    "uint16, shifted": RGB.astype(np.uint16) << 8,
    "lists": RGB.tolist(),
    "lists of floats": UNIT.tolist(),
    "rgba": RGBA,
    "rgba floats": RGBA / 255,
    "channel first": RGB.transpose(2, 0, 1),
    "tensor": torch.from_numpy(UNIT).permute(2, 0, 1).requires_grad_(),
    "bfloat16 tensor": torch.from_numpy(UNIT).bfloat16(),
    "batch of one": RGB[None],
    "nested": [[RGB]],
    "strides": RGB[::-1][::-1],
    "PIL": Image.fromarray(RGB),
    "PIL RGBA": Image.fromarray(RGBA),
    "PIL CMYK": Image.fromarray(RGB).convert("CMYK"),
}
GREYS: dict[str, Any] = {
    "[H, W]": GREY,
    "[H, W, 1]": GREY[..., None],
    "[1, H, W]": GREY[None],
    "grey and alpha": np.dstack((GREY, GREY)),
    "floats": GREY / 255,
    "tensor": torch.from_numpy(GREY),
    "lists": GREY.tolist(),
    "rows": list(GREY),
    "PIL LA": Image.merge("LA", (Image.fromarray(GREY), Image.fromarray(GREY))),
    "PIL P": Image.fromarray(GREY).convert("P"),
    "PIL I;16": Image.fromarray(GREY.astype(np.uint16) * 257),
}
BATCHES: dict[str, Any] = {
    "array": BATCH,
    "floats": BATCH / 255,
    "tensor": torch.from_numpy(BATCH).permute(0, 3, 1, 2),
    "lists": BATCH.tolist(),
    "mixed": [Image.fromarray(BATCH[0]), BATCH[1] / 255],
    "of lists": [[BATCH[0]], [BATCH[1]]],
}


def pixels(processor: JatProcessor, images: Any, **options: Any) -> torch.Tensor:
    values: torch.Tensor = processor(images=images, return_tensors="pt", **options)["pixel_values"]
    return values


@pytest.mark.parametrize("name", COLOURED)
def test_coloured_pictures(name: str, tiny_processor: JatProcessor) -> None:
    expected = tiny_processor.image_processor([Image.fromarray(RGB)], return_tensors="pt").pixel_values
    assert torch.equal(pixels(tiny_processor, COLOURED[name]), expected)


@pytest.mark.parametrize("name", GREYS)
def test_grey_pictures(name: str, tiny_processor: JatProcessor) -> None:
    expected = tiny_processor.image_processor([Image.fromarray(GREY).convert("RGB")], return_tensors="pt").pixel_values
    assert torch.equal(pixels(tiny_processor, GREYS[name]), expected)


@pytest.mark.parametrize("name", BATCHES)
def test_several_pictures(name: str, tiny_processor: JatProcessor) -> None:
    expected = pixels(tiny_processor, [Image.fromarray(picture) for picture in BATCH])
    assert torch.equal(pixels(tiny_processor, BATCHES[name]), expected)


def test_black_and_white_and_a_file(tiny_processor: JatProcessor, tmp_path: Path) -> None:
    mask = GREY > 127
    assert torch.equal(pixels(tiny_processor, mask), pixels(tiny_processor, Image.fromarray(mask)))
    Image.fromarray(RGB).save(tmp_path / "a.png")
    for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
        assert torch.equal(pixels(tiny_processor, path), pixels(tiny_processor, RGB))
    floats = RGB.astype(np.float32)
    black = pixels(tiny_processor, [floats * 0, floats])  # black has no range of its own
    assert torch.equal(black, pixels(tiny_processor, [RGB * 0, RGB]))


def test_options_that_say_what_the_pictures_are(tiny_processor: JatProcessor) -> None:
    """`do_rescale=False` is what transformers asks for where pictures are floats in 0..1 already."""
    assert torch.equal(pixels(tiny_processor, UNIT, do_rescale=False), pixels(tiny_processor, RGB))
    unscaled = pixels(tiny_processor, RGB, do_rescale=False, do_normalize=False)
    assert unscaled.max() > 200
    narrow = RGB[:3]  # [3, 36, 3]
    given = pixels(tiny_processor, narrow, input_data_format="channels_last")
    assert torch.equal(given, pixels(tiny_processor, Image.fromarray(narrow)))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (UNIT * 2 - 1, "expected floats in 0..1 or in 0..255, got -1 to 1; undo the normalisation"),
        (UNIT * np.nan, "expected finite values"),
        (UNIT * 1.5, "got a largest value of 1.5; clip or scale"),
        (RGB.astype(np.float32) * 2, "got 0 to 510"),
        ([UNIT, RGB.astype(np.float32)], "expected floats of one range"),
        (RGB.astype(np.int16) - 5, "expected integers in 0..255, got -5 to 250"),
        (RGB.astype(np.uint16), "uint16 over its whole range, got a largest value of 255"),
        (Image.fromarray(GREY.astype(np.int32)), "got mode 'I'; scale it to 0..255"),
        (Image.fromarray(UNIT[..., 0]), "got mode 'F'; scale it to 0..255"),
        (RGB[:3], r"got shape \[3, 36, 3\], which can be both; pass input_data_format"),
        (np.zeros((8, 32, 32), np.uint8), r"got shape \[8, 32, 32\]; pass a batch of grey pictures as a list"),
        (RGB[:0], "expected a picture with pixels"),
        (RGB[None, None], "expected a picture of shape"),
        ([], "expected at least one picture"),
        ([None], "expected pictures, got NoneType"),
        ([[1, 2], [3]], "expected pictures, got list"),
        ("nowhere.png", "expected a picture, got 'nowhere.png'"),
        (UNIT * 1j, "expected pictures, got ndarray of complex64"),
    ],
)
def test_refused_pictures(images: Any, message: str, tiny_processor: JatProcessor) -> None:
    with pytest.raises(ValueError, match=message):
        pixels(tiny_processor, images)
