"""The primitives of the persistent kernel on the CPU: each does what the hardware promises, and no more."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import cuda_emulator, thread_sanitizer

pytestmark = pytest.mark.skipif(bool(cuda_emulator.missing_tools()), reason=cuda_emulator.missing_tools())

RIGHT = [
    *(f"{name} {dtype}" for name in ("mma", "mma_half") for dtype in ("float32", "bfloat16", "float16")),
    "store_async",
    "store_async before expect_tx",
    "bulk_copy",
    "named_barrier",
    "packet",
    "store_prediction",
]
WRONG = {
    "bulk_copy without a wait": "a bulk copy is under way to a block that has ended",
    "store_async without expect_tx": "number 0: expected 0.000000, got -nan",
    "named_barrier left out": "number 1: expected 33.000000, got -nan",
    "named_barrier of different counts": "barrier: expected the 64 threads of earlier arrivals, got 32",
}
RACES = ["store_async without a wait", "named_barrier left out"]


@pytest.fixture(scope="module")
def check(cuda_emulator_folder: Path) -> Callable[[str], str]:
    """Return a function that runs one check and returns its answer."""
    [program] = cuda_emulator.build(cuda_emulator_folder, "cuda_primitives")

    def check(name: str) -> str:
        done = subprocess.run([program, name], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return check


@pytest.fixture(scope="module")
def races(cuda_emulator_folder: Path) -> Callable[[str], bool]:
    """Return a function that tells if ThreadSanitizer finds a race in a check."""
    if not cuda_emulator.sanitizer_library():
        pytest.skip("needs gcc with libtsan")
    [program] = cuda_emulator.build(cuda_emulator_folder, "cuda_primitives_tsan")

    def races(name: str) -> bool:
        return "data race" in thread_sanitizer.run([str(program), name]).stderr

    return races


@pytest.mark.parametrize("name", RIGHT)
def test_a_primitive_does_what_it_says(name: str, check: Callable[[str], str]) -> None:
    assert check(name) == "ok"


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_use_shows_in_the_result(name: str, check: Callable[[str], str]) -> None:
    assert check(name).startswith(WRONG[name])


def test_thread_sanitizer_knows_the_order_of_the_primitives(races: Callable[[str], bool]) -> None:
    """Barriers and mbarriers order what they should; without them a race is found."""
    found = {name: races(name) for name in ("store_async", "named_barrier", "mma float32", "packet", *RACES)}
    assert [name for name, race in found.items() if race] == RACES
