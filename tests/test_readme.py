"""The README's example runs from reset to close; changed are the checkpoint's name, the device and the window."""

from __future__ import annotations

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
    changes = {
        '"jat-project/jat"': repr(str(tiny_folder)),
        '"cuda"': '"cpu"',
        '"human"': '"rgb_array"',  # a window shows every raw frame at the speed of the game
    }
    for published, here in changes.items():
        assert example.count(published) == 1
        example = example.replace(published, here)
    example += "\nprint('return', info['episode']['r'], 'steps', info['episode']['l'])\n"
    result = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    match = re.search(r"return (\S+) steps (\d+)", result.stdout)
    assert match, result.stdout
    assert -21 <= float(match[1]) <= 21  # a whole game of Pong
    assert int(match[2]) > 1000  # in raw frames


def test_engine_examples(tiny_folder: Path) -> None:
    """The engine's three snippets, around them real environments of three domains."""
    pytest.importorskip("minigrid", reason="needs the babyai extra")
    pytest.importorskip("metaworld", reason="needs the metaworld extra")
    pytest.importorskip("mujoco", reason="needs the mujoco extra")
    _, drop_in, sessions, arrays = re.findall(r"```python\n(.*?)```", README, re.S)
    assert drop_in.count('"jat-project/jat"') == 1
    code = f"""
from jat_engine.envs import make
env = make("babyai-go-to-local")
observation, _ = env.reset(seed=0)
reward = None
{drop_in.replace('"jat-project/jat"', repr(str(tiny_folder)))}
print(env.action_space.contains(action))
envs = [make(name) for name in ("babyai-open", "metaworld-reach", "babyai-go-to")]
observations = [env.reset(seed=1)[0] for env in envs]
rewards = None
{sessions}
print(*(type(action).__name__ for action in actions), *(session.num_cached_tokens for session in sessions))

import gymnasium
import numpy as np
vector = gymnasium.vector.SyncVectorEnv([lambda: gymnasium.make("Hopper-v5")] * 4)
observations, _ = vector.reset(seed=0)
space, rewards, done = vector.single_action_space, None, np.array([True, False, False, True])
{arrays.replace("1024", "4").replace("256", "9")}
print(actions.shape, batch.num_cached_tokens)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["True", "int", "list", "int", "0", "0", "0", "(4,", "3)", "[0", "0", "0", "0]"]
