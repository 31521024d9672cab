"""Fuzzing of the policy server's wire: targets that take any bytes, and what changes bytes into similar ones.

`messages` reads messages as dialects do; `conversations` has two clients send to a whole server while a third plays.
`python -m helpers.fuzzing` (in `tests`) runs both with atheris, see `make fuzz`; `tests/serving/fuzz_corpus` holds
inputs of both that together reach all code that is known to be reached. Targets need no atheris.
"""

from __future__ import annotations

from pathlib import Path

CORPUS = Path(__file__).parents[2] / "serving/fuzz_corpus"
"""Folder with the inputs of each target, in a folder of the target's name."""

TARGETS = ("messages", "conversations")


class FoundError(AssertionError):
    """Something that no bytes of a client may cause."""
