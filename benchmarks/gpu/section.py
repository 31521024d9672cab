"""Run one section of the report in this process: `python -m benchmarks.gpu.section NAME RUN.json`."""

from __future__ import annotations

import importlib
import json
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class SectionRun:
    """Tell a section of the report what to do, and write what it finds, as it finds it.

    Attributes:
        work: folder for checkpoints, builds and logs, outside the checkout.
        output: the section's JSON file.
        has_gpu: whether torch sees an NVIDIA GPU.
        deadline: of the section, seconds since the epoch.
        quick: the reduced form: the tiny model and few steps.
        failed_paths: path -> why it cannot be used, as parity has found.
        paths: names of those to compare; empty for all.
    """

    work: str
    output: str
    has_gpu: bool
    deadline: float
    quick: bool
    failed_paths: dict[str, str]
    paths: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.result: dict[str, Any] = {}
        self._lock = threading.Lock()

    @classmethod
    def read(cls, path: Path) -> SectionRun:
        """Read what `write` wrote."""
        return cls(**json.loads(path.read_text()))

    def write(self, path: Path) -> None:
        """Write what the section is told, for another process."""
        path.write_text(json.dumps(asdict(self)))

    @property
    def device(self) -> str:
        """Name of torch's device."""
        return "cuda" if self.has_gpu else "cpu"

    @property
    def folder(self) -> Path:
        """`work` as a path."""
        return Path(self.work)

    def chosen(self, names: Iterable[str]) -> list[str]:
        """Return those of some paths that are to be compared."""
        return [name for name in names if not self.paths or name in self.paths]

    def time_left(self) -> float:
        """Return the seconds until the deadline."""
        return self.deadline - time.time()

    def record(self, name: str, value: Any) -> None:
        """Keep a finding; what was recorded survives the section's death."""
        with self._lock:
            self.result[name] = value
            path = Path(self.output)
            temporary = path.with_suffix(".part")
            temporary.write_text(json.dumps(self.result, default=_plain))
            temporary.replace(path)

    def guard(self, name: str, measure: Callable[[], Any]) -> bool:
        """Record what a part finds, or its error. Returns whether it went well."""
        try:
            self.record(name, measure())
        except Exception as error:
            self.record(name, {"error": describe(error)})
            return False
        return True


def describe(error: BaseException, lines: int = 8) -> str:
    """Return the end of a traceback."""
    text = "".join(traceback.format_exception(error)).strip().splitlines()
    text = [line for line in text if line.strip(" ^~")]
    return "\n".join(text[-lines:])[-2000:]


def _plain(value: Any) -> Any:
    """Turn numpy's numbers and arrays into Python's."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def main() -> int:
    name, path = sys.argv[1:]
    section = SectionRun.read(Path(path))
    try:
        importlib.import_module(f"{__package__}.{name}").run(section)
    except Exception as error:
        print(describe(error, 30), file=sys.stderr)
        section.record("error", describe(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
