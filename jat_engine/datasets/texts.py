"""Read texts and captions in the published columns, `text` and `images`, and people's `answers` to questions."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import DataError, one_line
from .arrow import NotUtf8Error, strings
from .sources import Rows, Source

if TYPE_CHECKING:
    from PIL import Image

TEXT, IMAGES, ANSWERS = "text", "images", "answers"


@dataclass(frozen=True)
class Example:
    """One row of a dataset of texts.

    Attributes:
        where: file or dataset, and row, for error messages.
        text: of any length.
        image: that the text is about; None in a dataset without images.
        answers: what people answered to the question in the text; None without that column.
    """

    where: str
    text: str
    image: Image.Image | None
    answers: tuple[str, ...] | None


def read_examples(source: Source, *, needs_images: bool) -> Iterator[Example]:
    """Read the rows of a dataset of texts.

    Args:
        source: the rows.
        needs_images: the column `images` must be there.

    Raises:
        DataError: a column is missing, or a value is not what its name says; names file, row and column.
    """
    for rows in source.read():
        yield from _read(rows, needs_images)


def _read(rows: Rows, needs_images: bool) -> Iterator[Example]:
    table, names = rows.table, rows.table.column_names
    for name in (TEXT, IMAGES) if needs_images else (TEXT,):
        if name not in names:
            raise DataError(f"{rows.where}: {name}: expected this column, got {', '.join(names)}")
    try:
        texts = strings(table[TEXT], TEXT)
    except NotUtf8Error as error:
        raise DataError(f"{rows.where}: rows from {rows.first}: {error}") from None

    for index, text in enumerate(texts):
        where = f"{rows.where}: row {rows.first + index}"
        if not isinstance(text, str):
            raise DataError(f"{where}: {TEXT}: expected a string, got {text!r:.80}")
        image = _open_image(table[IMAGES][index].as_py(), where) if IMAGES in names else None
        answers = _parse_answers(table[ANSWERS][index].as_py(), where) if ANSWERS in names else None
        yield Example(where, text, image, answers)


def _open_image(value: Any, where: str) -> Image.Image:
    from PIL import Image

    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes) or not data:
        raise DataError(f"{where}: {IMAGES}: expected an image, got {value!r:.80}; store the bytes of its file")
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except Exception as error:  # Pillow raises many kinds
        raise DataError(
            f"{where}: {IMAGES}: expected the file of an image, got {len(data)} bytes: {one_line(error):.80}"
        ) from None
    return image


def _parse_answers(value: Any, where: str) -> tuple[str, ...]:
    """Return answers that are stored as strings, or as OK-VQA's annotations, {"answer": string, ...}."""
    given = value if isinstance(value, list) else []
    answers: list[Any] = [one.get("answer") if isinstance(one, dict) else one for one in given]
    if len(answers) < 2 or not all(isinstance(answer, str) for answer in answers):
        raise DataError(f"{where}: {ANSWERS}: expected a list with the answers of at least 2 people, got {value!r:.80}")
    return tuple(answers)
