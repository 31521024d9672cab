"""Write the checkpoints of the report: `python -m benchmarks.gpu.checkpoints WORK [tiny]`.

`tiny` is the model of the recorded answers, `small` has the published size and random weights.
"""

from __future__ import annotations

import sys
from pathlib import Path

from jat_engine.bench.workload import random_checkpoint
from jat_engine.testing import golden

from .section import SectionRun


def tiny_checkpoint(work: Path) -> Path:
    """Return the recorded answers' checkpoint, written unless it is there."""
    folder = work / "tiny"
    if not (folder / "complete").exists():
        golden.write_checkpoint(folder)
        (folder / "complete").touch()
    return folder


def small_checkpoint(work: Path) -> Path:
    """Return a checkpoint of the published size, written unless it is there."""
    return random_checkpoint("small", work / "small")


def checkpoint(section: SectionRun) -> Path:
    """Return what is measured: the published size, or in the reduced form the tiny model."""
    return tiny_checkpoint(section.folder) if section.quick else small_checkpoint(section.folder)


if __name__ == "__main__":  # writes both checkpoints, while something else is being built
    tiny_checkpoint(Path(sys.argv[1]))
    if sys.argv[2:] != ["tiny"]:
        small_checkpoint(Path(sys.argv[1]))
