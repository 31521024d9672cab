"""The documentation names what is there: its maps of files are those of the sources, and its links lead to files."""

from __future__ import annotations

import importlib.util
import re
from types import ModuleType

import pytest
from helpers import ROOT


def script(name: str) -> ModuleType:
    """Import `docs/<name>.py`, which is in no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_maps_of_files_are_up_to_date() -> None:
    for path, text in script("write_file_map").documents().items():
        assert path.read_text() == text, "run python docs/write_file_map.py"


def test_links_lead_to_files_of_the_repository() -> None:
    links = script("repository_links")
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("kernels/*.md"), *ROOT.glob("benchmarks/**/*.md")]
    found = []
    for page in pages:
        name = page.relative_to(ROOT).as_posix()
        targets = (links.resolve(name, link) for _, link in re.findall(links.LINK, page.read_text()))
        found += [target for target in targets if target is not None]
    assert {"docs/demo.webp", "benchmarks/results/cpu.json", "CONTRIBUTING.md"} <= set(found)
    with pytest.raises(FileNotFoundError, match=r"docs/index.md: expected a file of the repository, .* nowhere.md"):
        links.resolve("docs/index.md", "nowhere.md")


def test_the_picture_of_the_readme_is_small() -> None:
    assert 10_000 < (ROOT / "docs/demo.webp").stat().st_size <= script_limit()


def script_limit() -> int:
    """Return the most bytes that `docs/make_demo_picture.py` writes."""
    text = (ROOT / "docs/make_demo_picture.py").read_text()
    return int(re.search(r"MAX_BYTES = ([\d_]+)", text)[1])  # type: ignore[index]
