"""Names and layouts of the published datasets of texts."""

from __future__ import annotations

from collections.abc import Sequence

QUESTIONS = "ok-vqa"
"""Dataset of questions about images, whose texts are `Q: <question> A: <answer>`."""

CAPTIONS = "conceptual-captions"

TEXT_TASKS = (CAPTIONS, QUESTIONS, "oscar", "wikipedia")
"""Published datasets of texts, in alphabetical order."""

PREFIX = "text:"
"""Beginning of the name of any other dataset of texts, as for `jat-engine train`."""


def needs_images(task: str) -> bool:
    """Tell if the texts of a dataset are about images."""
    return task in (CAPTIONS, QUESTIONS)


def find_text_tasks(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate datasets of texts from other names.

    Args:
        names: of tasks, domains and datasets; a dataset that is not published has the prefix "text:".

    Returns:
        The datasets, each once and without the prefix, and the other names.

    Example:
        >>> find_text_tasks(["ok-vqa", "text:my-books", "atari"])
        (['ok-vqa', 'my-books'], ['atari'])
    """
    texts = {name.removeprefix(PREFIX): None for name in names if _is_text(name)}
    return list(texts), [name for name in names if not _is_text(name)]


def _is_text(name: str) -> bool:
    return name in TEXT_TASKS or (name.startswith(PREFIX) and len(name) > len(PREFIX))
