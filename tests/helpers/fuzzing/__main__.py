"""Run targets with atheris: `python -m helpers.fuzzing --seconds 60`, or one with options of libFuzzer.

python -m helpers.fuzzing --seconds 60             # all targets in this time together
python -m helpers.fuzzing messages -runs=100000    # one, with new inputs in build/fuzz/messages
python -m helpers.fuzzing messages FILE            # run an input again
python -m helpers.fuzzing messages -merge=1 NEW_CORPUS FOLDER...  # keep the inputs that add coverage
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable

from helpers import ROOT
from helpers.fuzzing import CORPUS, TARGETS

WORK = ROOT / "build/fuzz"
"""Folder for new inputs, and for inputs that cause a finding."""

SHARES = {"messages": 0.4, "conversations": 0.6}
"""Share of the time for each target."""

_MOST_BYTES = {"messages": 1 << 15, "conversations": 1 << 16}
"""Most bytes of an input."""


def main(arguments: list[str]) -> int:
    """Run one target, or all, and return the exit code."""
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed (it is for Linux on x86-64): only the corpus is run, by the tests")
        return 0
    if arguments[:1] == ["--seconds"] and len(arguments) == 2:
        return run_all(float(arguments[1]))
    if not arguments or arguments[0] not in TARGETS:
        print(__doc__)
        return 2
    run_one(arguments[0], arguments[1:])
    return 0


def run_all(seconds: float) -> int:
    """Run each target in a process of its own; it ends at the first finding."""
    for target in TARGETS:
        limit = max(int(seconds * SHARES[target]), 1)
        command = [sys.executable, "-m", "helpers.fuzzing", target, f"-max_total_time={limit}", "-verbosity=0"]
        with tempfile.TemporaryDirectory() as folder:  # libFuzzer ends its process without removing what it has made
            code = subprocess.run(command, env=os.environ | {"TMPDIR": folder}).returncode
        if code:
            return code
    return 0


def run_one(target: str, options: list[str]) -> None:
    """Run a target with options of libFuzzer, until they end it or there is a finding. Does not return."""
    import atheris

    quiet = contextlib.redirect_stderr(io.StringIO())  # a line for each module
    with quiet, atheris.instrument_imports(include=["jat_engine"]):
        import jat_engine.action_options  # with what it imports: the checks of observations
    import jat_engine.engine.engine  # noqa: F401  # without instruments, which would only make it slow

    with quiet, atheris.instrument_imports(include=["jat_engine"]):
        from helpers.fuzzing import conversations, messages

    found = WORK / target
    found.mkdir(parents=True, exist_ok=True)
    if all(option.startswith("-") and not option.startswith("-merge") for option in options):
        options = [*options, str(found), str(CORPUS / target)]
    defaults = [f"-max_len={_MOST_BYTES[target]}", f"-artifact_prefix={WORK}/{target}-", "-timeout=300"]
    defaults += ["-rss_limit_mb=4096", "-print_final_stats=1"]
    stack = contextlib.ExitStack()
    run: Callable[[bytes], None]
    if target == "messages":
        run, change = messages.run, messages.change
    else:
        run, change = stack.enter_context(conversations.open_target()).run, conversations.change

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        numbers = random.Random(seed)
        if numbers.random() < 0.25:
            return bytes(atheris.Mutate(data, most))
        changed = change(data, numbers)
        return changed if len(changed) <= most else bytes(atheris.Mutate(data, most))

    with stack:
        command = f"{sys.executable} -m helpers.fuzzing {target}"  # for the processes of a merge
        atheris.Setup([command, *defaults, *options], run, custom_mutator=mutate)
        atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
