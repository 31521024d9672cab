"""Check the code for GPUs without one, with the oldest and the newest Triton, each in an environment of its own.

    make test-gpu-code                                  # everything; parts that passed with this code are not repeated
    make test-gpu-code PARTS="newest/sm_90/* */early"   # these parts
    make test-gpu-code PARTS=list                       # their names

A part is a release of Triton, an architecture and a set of tests, which are executed from the PTX: golden episodes of
the CUDA backend, planted faults, products of many rows, the tests of kernels; and for each release of Triton the
machine code: registers, spills and shared memory, and that no kernel touches, before it waits for earlier ones, what
those may write. Each result is kept in build/gpu_code, and all of this code's go to benchmarks/results/gpu_code.md.
Exits with 1 if something failed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENTS = ROOT / ".venv" / "triton"
RESULTS = ROOT / "build" / "gpu_code"
SUMMARY = ROOT / "benchmarks" / "results" / "gpu_code.md"
SOURCES = (
    "jat_engine/kernels/*.py",
    "jat_engine/backends/cuda/*.py",
    "tests/kernels/test_kernels*.py",
    "tests/ptx/*.py",
    "tests/helpers/kernel_cases.py",
    "tests/helpers/ptx/*.py",
    "benchmarks/kernel_variants.py",
    "benchmarks/triton_launches.py",
    "benchmarks/dependent_launch.py",
    "benchmarks/early_accesses.py",
    "benchmarks/resource_limits.py",
    "requirements/triton-*.txt",
)
"""A result counts as long as these files are the same."""

RELEASES = ("newest", "oldest")
ARCHITECTURES = (90, 80)
KERNELS = "tests/kernels/test_kernels"
SUITES = {
    "episodes": ["tests/ptx/test_episodes.py"],
    "faults": ["tests/ptx/test_faults.py"],
    "rows": ["tests/ptx/test_large_rows.py"],
    "attention": [f"{KERNELS}_attention.py"],
    "images": [f"{KERNELS}_image.py"],
    "kernels": [f"{KERNELS}.py"],
}
MACHINE_CODE = {"early": "dependent_launch", "resources": "kernel_resources"}
"""Modules of benchmarks."""


class Part(NamedTuple):
    """A release of Triton, an architecture (0: all) and what is checked with them."""

    release: str
    architecture: int
    suite: str

    @property
    def name(self) -> str:
        return "/".join([self.release, *([f"sm_{self.architecture}"] if self.architecture else []), self.suite])

    @property
    def file(self) -> Path:
        return RESULTS / f"{self.name.replace('/', '-')}.json"


PARTS = [
    *(Part(release, architecture, suite) for architecture in ARCHITECTURES for release in RELEASES for suite in SUITES),
    *(Part(release, 0, suite) for release in RELEASES for suite in MACHINE_CODE),
]


def install(release: str) -> Path:
    """Install a release of Triton into a folder of its own, unless it is there; return the folder."""
    requirements = ROOT / "requirements" / f"triton-{release}.txt"
    folder = ENVIRONMENTS / requirements.read_text().split()[0].replace("==", "-")
    if not (folder / "triton").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
        options = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "--target", str(folder)]
        subprocess.run([*pip, *options, "-r", str(requirements)], check=True)
    return folder


def source_hash() -> str:
    """Return a hash of what the results depend on."""
    found = hashlib.sha256()
    for file in sorted(file for pattern in SOURCES for file in ROOT.glob(pattern)):
        found.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes() + b"\0")
    return found.hexdigest()


def kept_result(part: Part, source: str) -> dict[str, Any] | None:
    """Return the result of a part that passed with this code."""
    if not part.file.exists():
        return None
    result: dict[str, Any] = json.loads(part.file.read_text())
    return result if result["source"] == source else None


def check(part: Part, source: str) -> tuple[bool, str]:
    """Run a part; keep its result if it passed, and return whether it did, with its output."""
    folder = install(part.release)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), str(ROOT / "tests")])
    environment["TRITON_CACHE_DIR"] = str(folder / "cache")
    environment["OMP_NUM_THREADS"] = "1"

    report = part.file.with_suffix(".new")
    report.unlink(missing_ok=True)
    command = [sys.executable, "-W", "ignore", "-m"]
    if part.suite in MACHINE_CODE:
        command.append(f"benchmarks.{MACHINE_CODE[part.suite]}")
    else:
        command += ["pytest", "-q", "-p", "no:cacheprovider", "-p", "helpers.ptx.plugin"]
        command += ["--ptx-arch", str(part.architecture), "--ptx-json", str(report), *SUITES[part.suite]]
    begun = time.monotonic()
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    if done.returncode:
        return False, output

    result: dict[str, Any] = {"source": source, "triton": folder.name.removeprefix("triton-")}
    result["minutes"] = round((time.monotonic() - begun) / 60, 1)
    if part.suite in MACHINE_CODE:
        result["checked"] = int(re.findall(r"(\d+) kernels", output)[-1])
    else:
        result |= json.loads(report.read_text())
        report.unlink()
    part.file.write_text(json.dumps(result, indent=1) + "\n")
    return True, output


def summary(source: str) -> str:
    """Return what passed with this code, as Markdown."""
    results = {part: result for part in PARTS if (result := kept_result(part, source))}
    missing = [part.name for part in PARTS if part not in results]
    lines = [
        "# The code for GPUs, checked without one",
        "",
        "Written by `make test-gpu-code`. Triton kernels are compiled for an architecture and their PTX is executed on "
        "a CPU, every block and thread of it; all tests passed. Planted faults are mistakes put into that PTX, each of "
        "which its test found. Machine code (SASS) of every variant that the engine launches at the published size is "
        "read for accesses before the wait for earlier kernels, and for spills and shared memory. Nothing was timed.",
        "",
        "Not checked with this code: " + ", ".join(missing) + "." if missing else "All parts were checked.",
        "",
        "| Triton | architecture | part | tests passed | skipped | planted faults found | kernels | kinds of products "
        "| launches | PTX instructions |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    for part, result in results.items():
        if part.suite in MACHINE_CODE:
            continue
        executed = result["executed"]
        cells = [result["triton"], f"sm_{part.architecture}", part.suite]
        cells += [str(result[name]) for name in ("passed", "skipped", "planted_faults")]
        cells += [
            str(len({row["kernel"] for row in executed})),
            ", ".join(sorted({row["products"] for row in executed})),
        ]
        cells += [f"{sum(row[name] for row in executed):,}" for name in ("launches", "instructions")]
        lines.append(f"| {' | '.join(cells)} |")

    lines += ["", "| Triton | machine code | variants |", "| --- | --- | ---: |"]
    what = {"early": "nothing is touched too early", "resources": "registers, spills and shared memory within limits"}
    lines += [
        f"| {result['triton']} | {what[part.suite]} | {result['checked']} |"
        for part, result in results.items()
        if part.suite in what
    ]
    return "\n".join([*lines, "", *_by_kernel(results), ""])


def _by_kernel(results: dict[Part, dict[str, Any]]) -> list[str]:
    """Return lines of a table of what was executed, a kernel and its dtypes a row."""
    columns = [(part.release, part.architecture) for part in results if part.architecture]
    columns = list(dict.fromkeys(columns))
    triton = {part.release: result["triton"] for part, result in results.items()}
    counts: dict[tuple[str, str], dict[tuple[str, int], int]] = {}
    for part, result in results.items():
        for row in result.get("executed", ()):
            of_kernel = counts.setdefault((row["kernel"], row["dtypes"]), dict.fromkeys(columns, 0))
            of_kernel[part.release, part.architecture] += row["instructions"]
    titles = [f"{triton[release]}, sm_{architecture}" for release, architecture in columns]
    lines = ["Millions of PTX instructions executed, by kernel and dtypes of its tensors:", ""]
    lines += [f"| kernel | dtypes | {' | '.join(titles)} |", f"| --- | --- |{' ---: |' * len(columns)}"]
    for (kernel, dtypes), of_kernel in sorted(counts.items()):
        cells = [f"{of_kernel[column] / 1e6:.2f}" for column in columns]
        lines.append(f"| {kernel} | {dtypes} | {' | '.join(cells)} |")
    return lines


def chosen_parts(patterns: Iterable[str]) -> list[Part]:
    found = [part for part in PARTS if any(fnmatch(part.name, pattern) for pattern in patterns)]
    if not found:
        raise SystemExit("PARTS: expected names or patterns of " + ", ".join(part.name for part in PARTS))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Check the code for GPUs without one.")
    parser.add_argument("parts", nargs="*", default=["*"], help="names or patterns, or list")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="parts at once")
    options = parser.parse_args()
    if options.parts == ["list"]:
        print("\n".join(part.name for part in PARTS))
        return 0

    RESULTS.mkdir(parents=True, exist_ok=True)
    source = source_hash()
    parts = chosen_parts(options.parts)
    waiting = [part for part in parts if kept_result(part, source) is None]
    for release in dict.fromkeys(part.release for part in waiting):
        install(release)

    failed = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for part, (passed, output) in zip(waiting, pool.map(lambda part: check(part, source), waiting), strict=True):
            print(f"{part.name}: {'passed' if passed else 'FAILED'}", flush=True)
            if not passed:
                failed.append(part.name)
                print("\n".join(output.splitlines()[-400:]), flush=True)

    if source_hash() != source:
        print("The code was changed meanwhile: nothing is written.")
        return 1
    SUMMARY.write_text(summary(source))
    print(f"{len(parts) - len(waiting)} parts had passed before; see {SUMMARY.relative_to(ROOT)}")
    print("Failed: " + ", ".join(failed) if failed else "All passed.")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
