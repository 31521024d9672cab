"""Measure all that is to be known of the engine on a GPU: `python benchmarks/gpu_report.py --out DIR`.

Each section runs in a process of its own with its own time, so that a crash or a hang is one section's. What it has
found by then is kept. Written after every section: report.json (everything), report.md (tables), latency.png. Ends with
a short table and exit status 0, whatever failed: the report says what did.

Without an NVIDIA GPU it runs in a reduced form, with the tiny model on the CPU; every section says what it ran on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
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
        seconds, reduced_seconds: its budget on a GPU and in the reduced form.
        needs_gpu: whether there is nothing to reduce.
    """

    name: str
    title: str
    seconds: float
    reduced_seconds: float
    needs_gpu: bool = False


SECTIONS = (
    Section("machine", "machine", 30, 30),
    Section("build", "build", 130, 100),
    Section("parity", "parity: every path against float64", 110, 240),
    Section("latency", "latency: one agent", 110, 90),
    Section("primitives", "primitives: what the hardware's own operations cost", 40, 20),
    Section("throughput", "throughput: many agents", 60, 60),
    Section("kernels", "kernels: Triton kernels one by one", 50, 20, needs_gpu=True),
    Section("tests", "tests: pytest -m gpu", 100, 45),
    Section("sanitizer", "sanitizer: compute-sanitizer on a few steps", 75, 5, needs_gpu=True),
    Section("counters", "ncu: DRAM throughput by kernel", 45, 5, needs_gpu=True),
)
"""In the order of worth: when the time is over the rest is left out."""

TOTAL_SECONDS, TOTAL_REDUCED_SECONDS = 470.0, 480.0
_MODULES = {"tests": "suite"}

PLOT = "latency.png"
"""Drawn by the latency section into the working folder."""


def has_gpu() -> bool:
    """Return whether torch sees a GPU; asked in a process of its own, so that this one never holds it."""
    code = "import torch; print(int(torch.cuda.is_available()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    return done.stdout.strip() == "1"


class Report:
    """Keep what has been found so far, and its files."""

    def __init__(self, out: Path, work: Path, gpu: bool, quick: bool) -> None:
        self.out, self.work, self.gpu, self.quick = out, work, gpu, quick
        self.began = time.time()
        self.data: dict[str, Any] = {
            "schema": 1,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit() or os.environ.get("GPU_REPORT_COMMIT") or "unknown",
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
        """Write report.json, logs.txt, report.md and latency.png."""
        _replace(self.out / "report.json", json.dumps(self.data, indent=1) + "\n")
        self._write_logs()
        if (self.work / PLOT).exists():
            shutil.copy(self.work / PLOT, self.out / PLOT)
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
    parser.add_argument("--quick", action="store_true", help="the reduced form, also on a GPU")
    parser.add_argument("--seconds", type=float, help="of the whole report")
    parser.add_argument("--work", type=Path, help="folder for builds and checkpoints; by default a temporary one")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    gpu = has_gpu()
    quick = arguments.quick or not gpu
    began = time.time()
    deadline = began + (arguments.seconds or (TOTAL_REDUCED_SECONDS if quick else TOTAL_SECONDS))
    with tempfile.TemporaryDirectory(prefix="gpu-report-", ignore_cleanup_errors=True) as temporary:
        work = arguments.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        report = Report(arguments.out, work.resolve(), gpu, quick)
        failed: dict[str, str] = {}
        for section in SECTIONS:
            if section.name not in arguments.only:
                continue
            budget = min(section.reduced_seconds if quick else section.seconds, deadline - time.time() - 5)
            print(f"[{time.time() - report.began:5.0f} s] {section.title} ...", flush=True)
            if budget < 4 and not (section.needs_gpu and not gpu):
                report.add(section, {"status": "left out", "reason": "no time left", "seconds": 0.0, "result": {}})
                continue
            try:
                entry = run_section(section, report, budget, failed)
            except Exception as error:
                entry = {"status": "failed", "reason": describe(error), "seconds": 0.0, "result": {}}
            report.add(section, entry)
            if section.name == "parity":
                found = entry["result"].get("failed", {})
                failed = found if isinstance(found, dict) else {}

    print(markdown.summary(report.data), flush=True)
    return 0
