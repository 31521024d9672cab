"""Run `pytest -m gpu`: counts and failures.

Files without a test marked gpu are not run. Files that need what is not installed here are left out, by name; those
that need it indirectly cannot be collected, which is counted apart from what fails.
"""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from importlib import util
from pathlib import Path
from typing import Any

from .process import run as run_process
from .section import ROOT, SectionRun

SIMULATORS = ("gymnasium", "ale_py", "minigrid", "metaworld", "mujoco")
"""What a machine with a GPU need not have."""

_MODULES = (*SIMULATORS, "hypothesis")

_MARKED = re.compile(r"\bmark\.gpu\b")

_COUNTED = ("tests", "failures", "errors", "skipped")

_WORDS = ("PASSED", "FAILED", "ERROR", "SKIPPED")


def run(section: SectionRun) -> None:
    chosen, left_out = files()
    section.record("files", [path.name for path in chosen])
    section.record("files left out", left_out)
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "-p", "no:cacheprovider", "--tb=short"]
    command += ["--continue-on-collection-errors"]
    names = [str(path) for path in chosen]
    if not section.has_gpu:
        seconds = section.time_left() - 2
        done = run_process([*command, "--collect-only", *names], section.folder / "tests.log", seconds)
        found = re.findall(r"^(tests/\S+::\S+)|<(?:Function|Coroutine) ", done.output, re.MULTILINE)
        section.record("collected", {"gpu tests": len(found), "exit": done.code, "output": done.tail[-600:]})
        section.record("not run", "tests marked gpu need a GPU")
        return
    # A process a file, side by side: compiling kernels takes most of the time. Persistent kernels want the GPU alone.
    alone = [path for path in chosen if "persistent" in path.name]
    together = [path for path in chosen if path not in alone]
    with ThreadPoolExecutor(max(1, len(together))) as pool:
        results = list(pool.map(lambda path: _run_file(section, command, path), together))
    results += [_run_file(section, command, path) for path in alone]
    section.record("by file", {result["file"]: result for result in results})
    totals = {key: sum(result.get(key, 0) for result in results) for key in _COUNTED}
    failed = [failure for result in results for failure in result.get("failed", [])]
    section.record("counts", {**totals, "failed": failed[:25]})
    section.record("not collected", {r["file"]: r["not collected"] for r in results if r.get("not collected")})
    unfinished = [result["file"] for result in results if result["exit"] == "timed out"]
    section.record("exit", f"timed out: {', '.join(unfinished)}" if unfinished else max(r["exit"] for r in results))


def _run_file(section: SectionRun, command: list[str], path: Path) -> dict[str, Any]:
    xml, log = section.folder / f"{path.stem}.xml", section.folder / f"{path.stem}.log"
    xml.unlink(missing_ok=True)
    seconds = section.time_left() - 3
    if seconds < 5:
        return {"file": path.name, "exit": "timed out", "why": "no time left"}
    done = run_process([*command, f"--junitxml={xml}", str(path)], log, seconds)
    result: dict[str, Any] = {"file": path.name, "exit": "timed out" if done.code is None else done.code}
    if xml.exists():
        return {**result, **counts(xml)}
    verdicts = {word: len(re.findall(rf"::.* {word}", done.output)) for word in _WORDS}
    return {**result, "verdicts so far": verdicts, "output": done.tail[-500:]}


def files() -> tuple[list[Path], dict[str, str]]:
    """Return the files with tests marked gpu, and why others of them are left out: what they import is missing."""
    chosen, left_out = [], {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        text = path.read_text()
        if not _MARKED.search(text):
            continue
        imports = re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE)
        missing = sorted({name for name in imports if name in _MODULES and util.find_spec(name) is None})
        if missing:
            left_out[path.name] = f"needs {', '.join(missing)}"
        else:
            chosen.append(path)
    return chosen, left_out


def counts(xml: Path) -> dict[str, Any]:
    """Read pytest's JUnit file: numbers of tests, what failed, and why files could not be collected."""
    suites = list(ElementTree.parse(xml).getroot().iter("testsuite"))
    found: dict[str, Any] = {key: sum(int(s.get(key, 0)) for s in suites) for key in _COUNTED}
    failed, not_collected = [], []
    for case in (case for suite in suites for case in suite.iter("testcase")):
        for problem in (*case.findall("failure"), *case.findall("error")):
            text = (problem.text or problem.get("message") or "").strip()
            if problem.get("message") == "collection failure":
                not_collected.append(text[-300:])
            else:
                failed.append({"test": f"{case.get('classname')}::{case.get('name')}", "why": text[-700:]})
    for key in ("tests", "errors"):
        found[key] -= len(not_collected)
    return {**found, "failed": failed[:25], "not collected": not_collected}
