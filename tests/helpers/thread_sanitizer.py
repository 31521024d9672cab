"""Run programs that were compiled for ThreadSanitizer, or Python with such a module."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

from helpers import cuda_emulator, environment


def run(command: Sequence[str], preload: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a command. It exits with 66 if a race was found, which stderr describes as a "data race".

    Args:
        preload: load the sanitizer before a program that does not contain it, such as Python.
    """
    variables = environment() | {"TSAN_OPTIONS": "ignore_noninstrumented_modules=1 halt_on_error=0 exitcode=66"}
    if preload:
        variables["LD_PRELOAD"] = cuda_emulator.sanitizer_library()
    # The sanitizer wants its address ranges free, which randomised addresses may not leave.
    prefix = ["setarch", "-R"] if shutil.which("setarch") else []
    return subprocess.run([*prefix, *command], capture_output=True, text=True, env=variables, timeout=300)
