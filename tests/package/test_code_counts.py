"""Check counts of `benchmarks/code_counts.py` that must not rise again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

SCRIPT = ROOT / "benchmarks" / "code_counts.py"
ODD_SHARE = 0.01
"""Most docstrings that may open with "What", "Where" and the like."""


def count(root: Path, output: Path) -> Any:
    """Return the figures of one checkout, and the lists that they counted, without running a step."""
    command = [sys.executable, str(SCRIPT), "--root", str(root), "--no-steps", "--json", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (counts,) = json.loads(output.read_text()).values()
    return counts


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return count(ROOT, tmp_path_factory.mktemp("counts") / "counts.json")


def test_imports_go_down_without_circles(counts: Any) -> None:
    assert counts["found"]["upward imports"] == []
    assert not counts["found"]["circles of modules"]


def test_docstrings_open_with_what_a_thing_does(counts: Any) -> None:
    odd, total = counts["values"]["docstrings that open oddly"]
    assert odd <= ODD_SHARE * total, "\n".join(counts["found"]["docstrings that open oddly"])


def test_faults_are_found(tmp_path: Path) -> None:
    """Count a package with one fault of each kind, in storeys of its own."""
    package = tmp_path / "jat_engine"
    (package / "engine").mkdir(parents=True)
    layers = "[[tool.importlinter.contracts]]\ntype = 'layers'\nlayers = ['engine', '(kernels) | config']\n"
    (tmp_path / "pyproject.toml").write_text(layers)
    files = {
        "__init__.py": '"""Do nothing."""\n',
        "config.py": '"""Where sizes are."""\n\nfrom .engine import session\n',
        "engine/__init__.py": "",
        "engine/engine.py": "def load():\n    from .session import step\n",
        "engine/session.py": (
            "import jat_engine.engine.engine\n\nPAGE_SIZE = 16  # beside others\n\n\n"
            "def step(continuous_observation, text_observation=None, *, image_observation=None):\n"
            + "    print(1)\n"
            * 20
        ),
    }
    for name, text in files.items():
        (package / name).write_text(text)
    values, found = count(tmp_path, tmp_path / "counts.json").values()
    assert found["upward imports"] == ["config -> engine.session"]
    assert found["circles of modules"] == ["engine.engine -> engine.session"]
    assert found["definitions of the drop-in signature"] == ["jat_engine/engine/session.py:6 step"]
    assert found["literals of the page size"] == ["jat_engine/engine/session.py:3"]
    assert values["docstrings that open oddly"] == [1, 2]
    assert values['"beside"'] == 1
    assert values["bodies of 20 lines without a pause"] == [1, 1]
    assert values["rooms"] == 3
