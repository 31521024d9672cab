"""Write datasets of texts in the published columns, with images and people's answers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

QUESTIONS = [
    "Q: Where? A: here",
    "Q: Who? A: a cat",
    "Q: How many? A: two",
    "Q: What? A: ball",
]
CAPTIONS = ["a red ball", "two blue keys", "x", "a very long caption of a door, which is cut off"]
ARTICLES = ["The door is open.", "Go to the red ball, and then to the green box next to the purple ball. " * 3, "x", ""]
ANSWERS = [["here"] * 4 + ["there"] * 6, ["cat"] * 10, ["2"] * 10, ["ball", "a ball", "box", "box"]]


def picture(seed: int) -> Image.Image:
    """Return an image of noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8))


def png(image: Image.Image) -> dict[str, Any]:
    """Return an image as `datasets.Image` stores it."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def write_texts(
    folder: Path,
    name: str,
    texts: Sequence[Any],
    *,
    images: Sequence[Any] | None = None,
    answers: Sequence[Any] | None = None,
    split: str = "test",
) -> Path:
    """Write a split of a dataset as the published one is stored, and return its folder."""
    columns: dict[str, Any] = {"text": list(texts)}
    if images is not None:
        columns["images"] = [png(image) if isinstance(image, Image.Image) else image for image in images]
    if answers is not None:
        columns["answers"] = list(answers)
    path = folder / name / f"{split}-00000-of-00001-29b654dcc3597a04.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return folder


def write_published(folder: Path, *, with_answers: bool = False) -> Path:
    """Write all four datasets, and return their folder."""
    write_texts(folder, "wikipedia", ARTICLES)
    write_texts(folder, "oscar", ARTICLES[:1])
    write_texts(folder, "conceptual-captions", CAPTIONS, images=[picture(seed) for seed in range(4)])
    answers = ANSWERS if with_answers else None
    return write_texts(folder, "ok-vqa", QUESTIONS, images=[picture(seed) for seed in range(4)], answers=answers)
