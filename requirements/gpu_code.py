"""Check the code for GPUs without one, with the oldest and the newest Triton, each in an environment of its own.

    make test-gpu-code    # or only a part: make test-gpu-code OPTIONS="--triton oldest --architectures 90"

With each: all tests of the kernels, planted faults and golden episodes of the CUDA backend, executed from the PTX for
each architecture; registers, spills and shared memory; and that no kernel touches, before it waits for earlier ones,
what those may write. Prints what was executed, and exits with 1 if something failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENTS = ROOT / ".venv" / "triton"
RELEASES = ("oldest", "newest")
TESTS = [*sorted((ROOT / "tests" / "kernels").glob("test_kernels*.py")), ROOT / "tests" / "ptx"]
LINES = 400
"""Of a failed run, so many are shown."""


def install(release: str) -> Path:
    """Install a release of Triton into a folder of its own, unless it is there; return the folder."""
    requirements = ROOT / "requirements" / f"triton-{release}.txt"
    folder = ENVIRONMENTS / requirements.read_text().split()[0].replace("==", "-")
    if not (folder / "triton").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
        options = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "--target", str(folder)]
        subprocess.run([*pip, *options, "-r", str(requirements)], check=True)
    return folder


def run(folder: Path, *command: str) -> tuple[bool, str]:
    """Run `python -m command` with the Triton of a folder; return whether it succeeded, and its output."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), str(ROOT / "tests")])
    environment["TRITON_CACHE_DIR"] = str(folder / "cache")
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", *command], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    return done.returncode == 0, done.stdout + done.stderr


def execute(folder: Path, architecture: int) -> bool:
    """Run the tests from PTX for an architecture, and print what was executed."""
    options = ["-q", "-p", "no:cacheprovider", "-p", "helpers.ptx.plugin", "--ptx-arch", str(architecture)]
    passed, output = run(folder, "pytest", *options, *map(str, TESTS))
    lines = output.splitlines()
    begin = next((index for index, line in enumerate(lines) if line.startswith("Triton ")), 0)
    print("\n".join(lines[begin:] if passed else lines[-LINES:]) + "\n", flush=True)
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(description="Check the code for GPUs without one.")
    parser.add_argument("--triton", nargs="+", default=RELEASES, choices=RELEASES)
    parser.add_argument("--architectures", type=int, nargs="+", default=[90, 80])
    options = parser.parse_args()

    failed = []
    for release in options.triton:
        folder = install(release)
        for architecture in options.architectures:
            if not execute(folder, architecture):
                failed.append(f"{folder.name}, PTX for sm_{architecture}")
        for name in ("kernel_resources", "dependent_launch"):
            passed, output = run(folder, f"benchmarks.{name}")
            print(output if not passed else "\n".join(output.splitlines()[-1:]), flush=True)
            if not passed:
                failed.append(f"{folder.name}, {name}")

    print("Failed: " + "; ".join(failed) if failed else "All passed.")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
