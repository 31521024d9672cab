"""Fuzz the policy server's wire: targets that take any bytes, and mutations of their inputs.

`messages` reads messages as dialects do; `conversations` has two clients send to a whole server while a third plays.
`python -m helpers.fuzzing` (in `tests`) runs both with atheris, see `make fuzz`; `tests/serving/fuzz_corpus` holds for
each a minimised corpus: its inputs reach all code that fuzzing has reached so far. Targets need no atheris.
"""

from __future__ import annotations

from pathlib import Path

CORPUS = Path(__file__).parents[2] / "serving/fuzz_corpus"
"""Folder with the inputs of each target, in a folder of the target's name."""

TARGETS = ("messages", "conversations")


class FoundError(AssertionError):
    """Finding: an effect that no bytes of a client may have."""
