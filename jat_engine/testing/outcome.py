"""`Outcome`, the result of a check, and `run_check`, which turns exceptions into outcomes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


class SkipCheckError(Exception):
    """Error of a check that cannot run here; the message says why."""


class CheckFailedError(Exception):
    """Error of a check that failed; the message gives the expected and the actual result."""


@dataclass(frozen=True)
class Outcome:
    """Result of one check.

    Attributes:
        name: name of the check.
        status: "PASS", "FAIL" or "SKIPPED".
        detail: the findings, or the reason why the check failed or was skipped; one line.
        seconds: wall time.
    """

    name: str
    status: Literal["PASS", "FAIL", "SKIPPED"]
    detail: str
    seconds: float


def run_check(name: str, check: Callable[[], str]) -> Outcome:
    """Run a check, measure its time, and return its outcome.

    Args:
        name: name of the outcome.
        check: function that returns its findings as text. If it raises an exception, the outcome is SKIPPED (for
            `SkipCheckError`) or FAIL. KeyboardInterrupt is not caught.
    """
    began = time.perf_counter()
    status: Literal["PASS", "FAIL", "SKIPPED"]
    try:
        status, detail = "PASS", check()
    except SkipCheckError as error:
        status, detail = "SKIPPED", str(error)
    except Exception as error:  # a check reports any error of a library
        is_ours = isinstance(error, CheckFailedError | ValueError | OSError)
        status, detail = "FAIL", str(error) if is_ours else f"{type(error).__name__}: {error}"
    return Outcome(name, status, " ".join(detail.split()), time.perf_counter() - began)
