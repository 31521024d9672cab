"""`Outcome`: what one check found, and running a check so that it always has one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


class SkipCheckError(Exception):
    """Raised by a check that cannot be made here; the message says why."""


class CheckFailedError(Exception):
    """Raised by a check that found something wrong; the message says what was expected and what came."""


@dataclass(frozen=True)
class Outcome:
    """The result of one check.

    Attributes:
        name: of the check.
        status: "PASS", "FAIL" or "SKIPPED".
        detail: what was found, or why it failed or was skipped; one line.
        seconds: wall time.
    """

    name: str
    status: Literal["PASS", "FAIL", "SKIPPED"]
    detail: str
    seconds: float


def run_check(name: str, check: Callable[[], str]) -> Outcome:
    """Run and time a check.

    Args:
        name: of the outcome.
        check: returns what it found. An exception it raises becomes the outcome; an interrupt does not.
    """
    began = time.perf_counter()
    status: Literal["PASS", "FAIL", "SKIPPED"]
    try:
        status, detail = "PASS", check()
    except SkipCheckError as error:
        status, detail = "SKIPPED", str(error)
    except Exception as error:  # whatever a library raises is what the check is there to tell
        is_ours = isinstance(error, CheckFailedError | ValueError | OSError)
        status, detail = "FAIL", str(error) if is_ours else f"{type(error).__name__}: {error}"
    return Outcome(name, status, " ".join(detail.split()), time.perf_counter() - began)
