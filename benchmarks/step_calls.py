"""Print the Python calls of single steps as JSON: for each step, a list of [depth, file, function].

    CHECKOUT/.venv/bin/python benchmarks/step_calls.py CHECKOUT cpu|cuda

`code_counts.py` runs this with the interpreter of the checkout that it counts. It uses nothing but what every version
of the package has: `JatEngine.from_pretrained`, `get_next_action`, and what makes a tiny checkpoint.
"""

from __future__ import annotations

import json
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

PACKAGE = "jat_engine"
Calls = list[tuple[int, str, str]]


def trace(root: Path, backend: str) -> list[Calls]:
    """Run steps in this process and return for each its calls: (depth, file below `jat_engine`, function)."""
    sys.path.insert(0, str(root))
    import jat_engine

    package = Path(jat_engine.__file__).resolve().parent
    if package != (root / PACKAGE).resolve():
        raise SystemExit(f"{sys.executable}: expected {PACKAGE} of {root}, got that of {package.parent}")
    space = type("Box", (types.SimpleNamespace,), {})(shape=(4,))
    observation = [0.1 * number for number in range(8)]
    with tempfile.TemporaryDirectory() as folder:
        if backend == "cpu":
            engine = jat_engine.JatEngine.from_pretrained("jat-mini", device="cpu", backend="cpu")
            fill, steps = 48, 16
        else:
            config = jat_engine.JatConfig(hidden_size=64, num_layers=2, num_heads=2)
            jat_engine.JatModel(config).save_pretrained(folder)
            jat_engine.JatProcessor.byte_level(config).save_pretrained(folder)
            options = {"persistent": False, "max_cached_tokens": 1024, "dtype": "float32"}
            engine = jat_engine.JatEngine.from_pretrained(folder, device="cpu", backend="cuda", **options)
            fill, steps = 6, 3

        def step() -> None:
            engine.get_next_action(continuous_observation=observation, action_space=space, reward=0.5, context_window=8)

        engine.reset_rl()
        for _ in range(fill):
            step()
        return [_calls(step, package) for _ in range(steps)]


def _calls(step: Callable[[], None], package: Path) -> Calls:
    calls: Calls = []
    files: dict[str, str | None] = {}
    frames: list[types.FrameType] = []  # kept, so that a generator that goes on is known again
    depth = 0

    def place(filename: str) -> str | None:
        if filename not in files:
            path = Path(filename)
            inside = path.is_relative_to(package) and path.relative_to(package).parts[0] != "kernels"
            files[filename] = str(path.relative_to(package)) if inside else None
        return files[filename]

    def profile(frame: types.FrameType, event: str, _: Any) -> None:
        nonlocal depth
        file = place(frame.f_code.co_filename)
        name = frame.f_code.co_name
        if file is None or (name.startswith("<") and name != "<lambda>"):
            return
        if event == "call":
            if not any(frame is known for known in frames):
                frames.append(frame)
                calls.append((depth, file, frame.f_code.co_qualname))
            depth += 1
        elif event == "return":
            depth -= 1

    sys.setprofile(profile)
    try:
        step()
    finally:
        sys.setprofile(None)
    return calls


if __name__ == "__main__":
    print(json.dumps(trace(Path(sys.argv[1]).resolve(), sys.argv[2])))
