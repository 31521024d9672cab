"""The README's example runs as it stands, from reset to close, but for the checkpoint's name and the device."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_published_example(tiny_folder: Path) -> None:
    pytest.importorskip("ale_py", reason="needs the atari extra")
    pytest.importorskip("cv2", reason="needs the atari extra")
    example = next(block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "atari-pong" in block)
    for published, here in {'"jat-project/jat"': repr(str(tiny_folder)), '"cuda"': '"cpu"'}.items():
        assert example.count(published) == 1
        example = example.replace(published, here)
    example += "\nprint('return', info['episode']['r'], 'steps', info['episode']['l'])\n"
    result = subprocess.run(
        [sys.executable, "-c", example],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SDL_VIDEODRIVER": "dummy", "SDL_AUDIODRIVER": "dummy"},
    )
    assert result.returncode == 0, result.stderr
    match = re.search(r"return (\S+) steps (\d+)", result.stdout)
    assert match, result.stdout
    assert -21 <= float(match[1]) <= 21  # a whole game of Pong
    assert int(match[2]) > 1000  # in raw frames
