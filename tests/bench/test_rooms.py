"""Rooms stay apart: nothing imports what stands above it, and benchmarks use what others can see."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT

TESTS = {"tests", "conftest", *(path.stem for path in (ROOT / "tests").glob("*") if path.name != "__pycache__")}
"""Names under which tests can be imported."""

PRIVATE = {
    ("jat_engine/bench/peers/torch_compile.py", "_inductor"),  # where torch keeps this option
    ("benchmarks/gpu/compiled_peer.py", "_dynamo"),  # and these counters
    ("benchmarks/gpu/device_time.py", "_sleep"),
    ("benchmarks/gpu/trace.py", "_cuda"),  # the module in whose place the traced one runs
}
"""File and underscore name of another package, where that package has no public one."""


def sources(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found, f"no files in {folder}"
    return found


def imports(path: Path) -> Iterator[str]:
    """First parts of what a file imports by absolute names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").partition(".")[0]


def private_names(path: Path) -> Iterator[str]:
    """Underscore names of other objects and modules that a file uses."""
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Attribute):
            owner = node.value
            is_own = isinstance(owner, ast.Name) and owner.id in ("self", "cls")
            names = [] if is_own else [node.attr]
        elif isinstance(node, ast.ImportFrom):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        yield from (name for name in names if name.startswith("_") and not name.endswith("__"))


@pytest.mark.parametrize(("folder", "above"), [("jat_engine", {"benchmarks", *TESTS}), ("benchmarks", TESTS)])
def test_no_import_goes_up(folder: str, above: set[str]) -> None:
    wrong = [f"{path}: {name}" for path in sources(folder) for name in imports(path) if name in above]
    assert not wrong


@pytest.mark.parametrize("folder", ["jat_engine/bench", "jat_engine/testing", "benchmarks"])
def test_no_private_state(folder: str) -> None:
    """A session is led by `force_action`, an engine read by its properties."""
    wrong = []
    for path in sources(folder):
        name = str(path.relative_to(ROOT))
        wrong += [f"{name}: {found}" for found in private_names(path) if (name, found) not in PRIVATE]
    assert not wrong
