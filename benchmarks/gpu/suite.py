"""`pytest -m gpu`: counts and failures. The files that need what is not installed here are left out, by name."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree
from importlib import util
from pathlib import Path
from typing import Any

from .context import ROOT, Context
from .process import run as run_process

_MODULES = ("gymnasium", "hypothesis", "ale_py", "minigrid", "metaworld", "mujoco")


_WORDS = ("PASSED", "FAILED", "ERROR", "SKIPPED")


def run(context: Context) -> None:
    chosen, left_out = files()
    context.record("files", [path.name for path in chosen])
    context.record("files left out", left_out)
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "-p", "no:cacheprovider", "--tb=short"]
    command += ["--continue-on-collection-errors"]
    names = [str(path) for path in chosen]
    if not context.has_gpu:
        seconds = context.time_left() - 2
        done = run_process([*command, "--collect-only", *names], context.folder / "tests.log", seconds)
        found = re.findall(r"^(tests/\S+::\S+)|<(?:Function|Coroutine) ", done.output, re.MULTILINE)
        context.record("collected", {"gpu tests": len(found), "exit": done.code, "output": done.tail[-600:]})
        context.record("not run", "tests marked gpu need a GPU")
        return
    xml = context.folder / "tests.xml"
    xml.unlink(missing_ok=True)
    command += [f"--junitxml={xml}", *names]
    done = run_process(command, context.folder / "tests.log", context.time_left() - 3)
    context.record("output", done.tail)
    context.record("exit", "timed out" if done.code is None else done.code)
    context.record("verdicts so far", {word: len(re.findall(rf"::.* {word}", done.output)) for word in _WORDS})
    context.guard("counts", lambda: _counts(xml))


def files() -> tuple[list[Path], dict[str, str]]:
    """Test files whose imports at the top are installed here, and why others are left out."""
    chosen, left_out = [], {}
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        text = path.read_text()
        imports = re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE)
        missing = sorted({name for name in imports if name in _MODULES and util.find_spec(name) is None})
        if missing:
            left_out[path.name] = f"needs {', '.join(missing)}"
        elif "gpu" in text:
            chosen.append(path)
    return chosen, left_out


def _counts(xml: Path) -> dict[str, Any]:
    suites = list(ElementTree.parse(xml).getroot().iter("testsuite"))
    counts = {key: sum(int(s.get(key, 0)) for s in suites) for key in ("tests", "failures", "errors", "skipped")}
    failed = []
    for case in (case for suite in suites for case in suite.iter("testcase")):
        for problem in (*case.findall("failure"), *case.findall("error")):
            text = (problem.text or problem.get("message") or "").strip()
            failed.append({"test": f"{case.get('classname')}::{case.get('name')}", "why": text[-700:]})
    return {**counts, "failed": failed[:25]}
