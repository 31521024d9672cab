"""pytest: run Triton kernels from their PTX instead of interpreting them.

    python -m pytest -p helpers.ptx.plugin --ptx-arch 90 tests/kernels

A table at the end says which kernels were executed, and how many of their instructions. `--ptx-json` writes it, with
how many tests passed, and how many of those found a planted fault.
`--ptx-sample 2` runs two cases of every test, of reduced precision where there are some.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"  # read when a kernel is defined: before anything imports one

import pytest

_LAUNCHER = pytest.StashKey[Any]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--ptx-arch", type=int, default=90, help="compute capability to compile for, e.g. 80, 90")
    parser.addoption("--ptx-json", type=Path, help="file for the table of what was executed")
    parser.addoption("--ptx-sample", type=int, help="run at most so many cases of each test, spread over all of them")


def pytest_configure(config: pytest.Config) -> None:
    from helpers.ptx.launcher import PtxLauncher

    os.environ["JAT_PTX_ARCH"] = str(config.getoption("--ptx-arch"))  # for kernel_cases.py

    config.addinivalue_line("markers", "ptx_all: every case counts, also in a sample")
    config.addinivalue_line("markers", "planted_fault: shows that a mistake in the PTX is found")
    config.stash[_LAUNCHER] = PtxLauncher(config.getoption("--ptx-arch"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    most = config.getoption("--ptx-sample")
    if most is None:
        return
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        cases.setdefault(item.nodeid.partition("[")[0], []).append(item)

    kept: list[pytest.Item] = []
    for same in cases.values():
        if same[0].get_closest_marker("ptx_all"):
            kept += same
            continue
        reduced = [item for item in same if re.search("bfloat16|float16|int8|e4m3", item.nodeid)] or same
        count = min(most, len(reduced))
        # The middle of each of `count` equal parts.
        kept += [reduced[(2 * part + 1) * len(reduced) // (2 * count)] for part in range(count)]
    items[:] = kept


@pytest.fixture(scope="session", autouse=True)
def ptx_launcher(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The launcher of this run. The CUDA backend runs on the CPU, with programmatic dependent launch if it can."""
    from jat_engine.backends import select

    with request.config.stash[_LAUNCHER].installed() as launcher, pytest.MonkeyPatch.context() as patch:
        refuses = select.why_not_cuda
        patch.setattr(
            select, "why_not_cuda", lambda device, *size: "" if device.type == "cpu" else refuses(device, *size)
        )
        yield launcher


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    launcher = config.stash[_LAUNCHER]
    terminalreporter.write_line(launcher.table())
    if config.getoption("--ptx-json"):
        passed = terminalreporter.stats.get("passed", [])
        report = {
            "passed": len(passed),
            "skipped": len(terminalreporter.stats.get("skipped", [])),
            "planted_faults": sum("planted_fault" in test.keywords for test in passed),
            "executed": launcher.counts(),
        }
        config.getoption("--ptx-json").write_text(json.dumps(report))
