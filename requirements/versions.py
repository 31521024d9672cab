"""Run the tests marked `versions` with the oldest and the newest releases of what jat-engine requires.

    make test-versions    # or only one set: make test-versions SETS=newest

Each set of releases gets an environment that is thrown away. The oldest are those of oldest.txt; the newest are what
PyPI has today within the limits of setup.py. torch, and the package with its native module, are shared with the
environment this runs in. Prints a table, and exits with 1 if a test failed or a file of tests ran none.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

import lock
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
OLDEST_PYTHON = (3, 11)  # oldest.txt is made for it
SHARED = ("torch", "jat-engine")
SETS = ("oldest", "newest")


class VersionsError(Exception):
    """A set of releases could not be looked up or installed."""


def pins(locked: Path) -> dict[str, str]:
    """Return the version of each package in a file of requirements."""
    return dict(re.findall(r"^([\w.-]+)==([\w.]+)", locked.read_text(), re.MULTILINE))


def locked_releases(name: str, folder: Path) -> Path:
    """Return the file with the releases of the set `name`; that of the newest is made now, in `folder`."""
    if name == "oldest":
        if sys.version_info[:2] != OLDEST_PYTHON:
            raise VersionsError("the oldest releases are those for Python 3.11: make test-versions PYTHON=python3.11")
        return lock.FOLDER / "oldest.txt"
    newest = folder / "newest.txt"
    wanted = [*lock.requirements("all"), *lock.test_tools()]
    python = "{}.{}".format(*sys.version_info)
    lock.resolve(wanted, newest, "--refresh", python=python)
    return newest


def install(locked: Path, environment: Path) -> Path:
    """Make an environment of `locked` and what is shared; return its interpreter."""
    uv = [sys.executable, "-m", "uv", "--quiet", "--no-config"]
    subprocess.run([*uv, "venv", "--python", sys.executable, str(environment)], check=True)
    python = environment / "bin" / "python"
    subprocess.run([*uv, "pip", "install", "--python", str(python), "--no-deps", "-r", str(locked)], check=True)
    site_packages = next(environment.glob("lib/python*/site-packages"))
    for distribution in map(metadata.distribution, SHARED):
        for part in {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            (site_packages / part).symlink_to(str(distribution.locate_file(part)))
    return python


def run_tests(python: Path, report: Path) -> dict[str, Counter[str]]:
    """Run the tests marked `versions`; return for each file of tests how many passed, failed and were skipped."""
    files = [str(file) for file in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.versions" in file.read_text()]
    command = [str(python), "-m", "pytest", "-q", "-m", "versions", "-n", "auto", "--dist", "loadfile", *files]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command += ["-p", "no:cacheprovider", "-p", "no:benchmark", f"--junit-xml={report}"]
    subprocess.run(command, check=False, cwd=ROOT, env=environment)

    if not report.exists():
        raise VersionsError("pytest stopped without a report")
    results: dict[str, Counter[str]] = defaultdict(Counter)
    for case in ElementTree.parse(report).iter("testcase"):
        names = re.findall(r"test_\w+", case.get("classname") or case.get("name") or "")
        outcomes = {child.tag for child in case}
        outcome = "failed" if outcomes & {"failure", "error"} else "skipped" if "skipped" in outcomes else "passed"
        results[names[0] if names else "collection"][outcome] += 1
    return results


def print_table(title: str, rows: dict[str, dict[str, str]], sets: list[str]) -> None:
    width = max(map(len, rows))
    print("\n" + "  ".join([title.ljust(width), *(name.ljust(20) for name in sets)]))
    for row, cells in rows.items():
        print("  ".join([row.ljust(width), *(cells.get(name, "-").ljust(20) for name in sets)]).rstrip())


def main(sets: list[str]) -> int:
    versions: dict[str, dict[str, str]] = defaultdict(dict)
    results: dict[str, dict[str, Counter[str]]] = defaultdict(dict)
    with tempfile.TemporaryDirectory() as temporary:
        for name in sets:
            folder = Path(temporary) / name
            folder.mkdir()
            try:
                locked = locked_releases(name, folder)
                python = install(locked, folder / "environment")
            except subprocess.CalledProcessError as error:
                reason = f"uv failed with exit status {error.returncode}: is PyPI reachable from here?"
                raise VersionsError(f"the {name} releases could not be installed; {reason}") from error
            found = pins(locked)
            for requirement in lock.requirements("all"):
                versions[requirement.name][name] = found[canonicalize_name(requirement.name)]
            print(f"== {name}: {len(found)} packages, transformers {found['transformers']}", flush=True)
            for file, counts in run_tests(python, folder / "report.xml").items():
                results[file][name] = counts

    print_table("package", dict(versions), sets)
    print(f"\nall with Python {sys.version.split()[0]}, torch {metadata.version('torch')}")
    cells = {
        file: {
            name: ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items())) for name, counts in row.items()
        }
        for file, row in sorted(results.items())
    }
    print_table("tests", cells, sets)
    missing = [(file, name) for file, row in results.items() for name in sets if not row.get(name, Counter())["passed"]]
    failed = [(file, name) for file, row in results.items() for name, counts in row.items() if counts["failed"]]
    for file, name in sorted({*missing, *failed}):
        print(f"{file} {'failed' if (file, name) in failed else 'ran no test'} with the {name} releases")
    return 1 if missing or failed or not results else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:] or list(SETS)))
    except VersionsError as error:
        sys.exit(f"test-versions: {error}")
