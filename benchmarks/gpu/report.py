"""Measure all that is to be known of the engine on a GPU: `python benchmarks/gpu_report.py --out DIR`.

Each section runs in a process of its own with its own time, so that a crash or a hang is one section's. What it has
found by then is kept. Sections come in the order of worth, and their times add up to less than the whole, a quarter of
an hour. Where a command may take ten minutes at most, two do it, `--call 1` and `--call 2`; with the same `--work`
folder the second one finds what the first has built.
Written after every section: report.json (everything), report.md (tables), latency.png, tiles.json. Ends with a short
table and exit status 0, whatever failed: the report says what did.

Without an NVIDIA GPU it runs in a reduced form, with the tiny model on the CPU; every section says what it ran on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jat_engine.bench.results import commit

from . import markdown
from .process import Process, python_module
from .section import SectionRun, describe


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        name, title: for the command line and for documents.
        seconds, reduced_seconds: its own time on a GPU and in the reduced form; it may use what earlier ones leave.
        needs_gpu: whether there is nothing to reduce.
        calls: in which of two calls it runs, where one would take too long.
    """

    name: str
    title: str
    seconds: float
    reduced_seconds: float
    needs_gpu: bool = False
    calls: tuple[int, ...] = (2,)


SECTIONS = (
    Section("machine", "machine", 10, 20, calls=(1, 2)),
    Section("build", "build", 75, 90, calls=(1, 2)),
    Section("parity", "parity: every path against float64", 95, 200, calls=(1,)),
    Section("latency", "latency: one agent", 140, 70, calls=(1,)),
    Section("throughput", "throughput: many agents", 60, 50, calls=(1,)),
    Section("trace", "trace: phases of the persistent kernel by the GPU's clock", 50, 5, needs_gpu=True, calls=(1,)),
    Section("tests", "tests: pytest -m gpu", 90, 30),
    Section("texts", "texts: tokens written and prompts read", 15, 5, needs_gpu=True),
    Section("kernels", "kernels: Triton kernels one by one", 55, 5, needs_gpu=True),
    Section("primitives", "primitives: what the hardware's own operations cost", 10, 15),
    Section("geometries", "geometries: numbers and sizes of clusters", 22, 5, needs_gpu=True),
    Section("counters", "ncu: DRAM throughput by kernel", 55, 5, needs_gpu=True),
    Section("sanitizer", "sanitizer: compute-sanitizer on a few steps", 50, 5, needs_gpu=True),
    Section("resources", "resources: registers and spills by the Triton of this machine", 15, 5, needs_gpu=True),
    Section("tiles", "tiles: sweep of the products' tile sizes", 40, 5, needs_gpu=True),
)
"""In the order of worth. Together they take less than the whole, so that one that hangs takes no other's time."""

TOTAL_SECONDS, TOTAL_REDUCED_SECONDS = 840.0, 570.0
CALL_SECONDS = 450.0
"""Of one of two calls."""
LAST_SECONDS = 10.0
"""Kept back to end a section that hangs and to write the report."""
_MODULES = {"tests": "suite"}

PLOT = "latency.png"
"""Drawn by the latency section into the working folder."""


_GPU_SECONDS = 60.0


def look_for_gpu(work: Path, seconds: float = _GPU_SECONDS) -> tuple[bool, str]:
    """Tell whether torch sees a GPU, and why not; asked in a process of its own, so that this one never holds it."""
    code = "import torch; print('GPU', int(torch.cuda.is_available()))"
    done = Process([sys.executable, "-c", code], work / "look_for_gpu.log").wait(seconds)
    if done.code is None:
        return False, f"torch did not say within {seconds:.0f} s whether there is a GPU"
    if done.code != 0:
        return False, f"torch cannot be imported: {done.tail[-500:]}"
    return "GPU 1" in done.output, "" if "GPU 1" in done.output else "torch finds no NVIDIA GPU"


def seconds_of(sections: Sequence[Section], quick: bool, gpu: bool) -> float:
    """Return the sections' own times together; without a GPU those that need one take none."""
    return sum(
        section.reduced_seconds if quick else section.seconds for section in sections if gpu or not section.needs_gpu
    )


def is_in(section: Section, call: int | None) -> bool:
    """Return whether a section runs in one of the two calls; None for all sections in one."""
    return call is None or call in section.calls


def budget(sections: Sequence[Section], left: float, quick: bool, gpu: bool) -> float:
    """Return the seconds that the first of the sections may take.

    Its own, and all that is left over when the others get theirs. Without enough for all, the first comes first.

    Args:
        sections: that are still to be run, in order.
        left: seconds until the end of the report.
        quick: the reduced form.
        gpu: whether there is one.
    """
    own, others = seconds_of(sections[:1], quick, gpu), seconds_of(sections[1:], quick, gpu)
    return max(min(own, left), left - others)


class Report:
    """Keep what has been found so far, and its files."""

    def __init__(self, out: Path, work: Path, gpu: bool, quick: bool, paths: Sequence[str] = ()) -> None:
        self.out, self.work, self.gpu, self.quick, self.paths = out, work, gpu, quick, tuple(paths)
        self.began = time.time()
        self.data: dict[str, Any] = {
            "schema": 1,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            # Whoever sets it knows what a copied tree cannot tell.
            "commit": os.environ.get("GPU_REPORT_COMMIT") or commit() or "unknown",
            "command": " ".join(sys.argv),
            "measured on a GPU": gpu,
            "reduced": quick,
            "sections": {},
        }

    def add(self, section: Section, entry: dict[str, Any]) -> None:
        """Take in a section's entry, and write everything."""
        self.data["sections"][section.name] = {"title": section.title, **entry}
        self.data["seconds"] = round(time.time() - self.began, 1)
        self.write()

    def write(self) -> None:
        """Write report.json, logs.txt, report.md, latency.png and tiles.json."""
        _replace(self.out / "report.json", json.dumps(self.data, indent=1) + "\n")
        self._write_logs()
        if (self.work / PLOT).exists():
            shutil.copy(self.work / PLOT, self.out / PLOT)
        tiles = self.data["sections"].get("tiles", {}).get("result", {}).get("tiles")
        if tiles:
            _replace(
                self.out / "tiles.json", json.dumps({"commit": self.data["commit"], "tiles": tiles}, indent=1) + "\n"
            )
        try:
            markdown.write(self.data, self.out)
        except Exception as error:  # a table that cannot be written takes no result away
            self.data["report error"] = describe(error)
            _replace(self.out / "report.json", json.dumps(self.data, indent=1) + "\n")

    def _write_logs(self) -> None:
        """Write the ends of all logs into logs.txt."""
        parts = []
        for path in sorted(self.work.glob("**/*.log"), key=lambda path: path.stat().st_mtime):
            lines = path.read_text(errors="replace").splitlines()
            parts.append(f"==== {path.relative_to(self.work)}\n" + "\n".join(line[:300] for line in lines[-80:]))
        _replace(self.out / "logs.txt", "\n".join(parts)[-400_000:] + "\n")


def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(".part")
    temporary.write_text(text)
    temporary.replace(path)


def run_section(section: Section, report: Report, seconds: float, failed: dict[str, str]) -> dict[str, Any]:
    """Run a section; return its entry in report.json."""
    if section.needs_gpu and not report.gpu:
        return {"status": "not run", "reason": "there is no NVIDIA GPU", "seconds": 0.0, "result": {}}
    work = report.work
    output, log = work / f"{section.name}.json", work / f"{section.name}.log"
    output.unlink(missing_ok=True)
    told = SectionRun(
        work=str(work),
        output=str(output),
        has_gpu=report.gpu,
        deadline=time.time() + seconds,
        quick=report.quick,
        failed_paths=failed,
        paths=report.paths,
    )
    told.write(work / f"{section.name}.run.json")
    module = _MODULES.get(section.name, section.name)
    command = python_module("section", module, str(work / f"{section.name}.run.json"))

    # The tiny model gains nothing from threads, and on a busy machine loses a lot.
    done = Process(command, log, {} if report.gpu else {"OMP_NUM_THREADS": "1"}).wait(seconds)
    try:
        result = json.loads(output.read_text())
    except (OSError, ValueError):
        result = {}
    entry: dict[str, Any] = {"status": "ok", "seconds": round(done.seconds, 1), "result": result}
    if done.code is None:
        entry.update(status="timed out", reason=f"not done within {seconds:.0f} s", log=done.tail)
    elif done.code != 0:
        entry.update(status="failed", reason=result.get("error", f"exit status {done.code}"), log=done.tail)
    elif "not run" in result and isinstance(result["not run"], str):
        entry.update(status="not run", reason=result["not run"])
    elif report.quick:
        entry["status"] = "reduced"
    entry["on"] = "GPU" if report.gpu else "CPU"
    return entry


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [section.name for section in SECTIONS]
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="SECTION", help=", ".join(names))
    parser.add_argument(
        "--paths", nargs="+", default=(), metavar="PATH", help="of those that are compared; all if absent"
    )
    parser.add_argument("--call", type=int, choices=(1, 2), help="the first or the second half of the sections")
    parser.add_argument("--quick", action="store_true", help="the reduced form, also on a GPU")
    parser.add_argument("--seconds", type=float, help="of the whole report")
    parser.add_argument("--work", type=Path, help="folder for builds and checkpoints; by default a temporary one")
    arguments = parser.parse_args()
    began = time.time()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpu-report-", ignore_cleanup_errors=True) as temporary:
        work = arguments.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        gpu, why_not = look_for_gpu(work)
        quick = arguments.quick or not gpu
        whole = TOTAL_REDUCED_SECONDS if quick else CALL_SECONDS if arguments.call else TOTAL_SECONDS
        deadline = began + (arguments.seconds or whole) - LAST_SECONDS
        report = Report(arguments.out, work.resolve(), gpu, quick, arguments.paths)
        report.data["no GPU"] = why_not
        chosen = [section for section in SECTIONS if section.name in arguments.only and is_in(section, arguments.call)]
        run_all(chosen, report, deadline)

    print(markdown.summary(report.data), flush=True)
    return 0


def run_all(sections: Sequence[Section], report: Report, deadline: float) -> None:
    """Run sections in their order, each with its own time, and keep what each finds.

    Args:
        sections: to run.
        report: to add to.
        deadline: of all, seconds since the epoch.
    """
    failed: dict[str, str] = {}
    for number, section in enumerate(sections):
        seconds = budget(sections[number:], deadline - time.time(), report.quick, report.gpu)
        print(f"[{time.time() - report.began:5.0f} s] {section.title} ...", flush=True)
        if seconds < 4 and not (section.needs_gpu and not report.gpu):
            report.add(section, {"status": "left out", "reason": "no time left", "seconds": 0.0, "result": {}})
            continue
        try:
            entry = run_section(section, report, seconds, failed)
        except Exception as error:
            entry = {"status": "failed", "reason": describe(error), "seconds": 0.0, "result": {}}
        report.add(section, entry)
        if section.name == "parity":
            found = entry["result"].get("failed", {})
            failed = found if isinstance(found, dict) else {}
