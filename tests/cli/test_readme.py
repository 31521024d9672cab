"""The examples in the documents run. Only the checkpoint's name, device, window and duration are replaced."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT

PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
README, AGENTS = (ROOT / "README.md").read_text(), (ROOT / "docs/agents.md").read_text()


def run(code: str) -> str:
    """Run a program in a process of its own and return what it prints."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_readme_example() -> None:
    """It prints what the README shows, up to the rounding of the processor's dtype."""
    pytest.importorskip("mujoco", reason="needs the mujoco extra")
    (example,) = PYTHON.findall(README)
    shown = README.partition(example)[2].split("```")[2]
    assert np.abs(np.subtract(json.loads(run(example)), json.loads(shown))).max() < 0.02


def test_evaluation_example() -> None:
    pytest.importorskip("mujoco", reason="needs the mujoco extra")
    (example,) = PYTHON.findall((ROOT / "docs/evaluation.md").read_text())
    returns = json.loads(run(example).partition("]")[0] + "]")
    assert len(returns) == 3
    assert min(returns) > -15, "the random policy's return is -43"


def test_published_example(tiny_folder: Path) -> None:
    pytest.importorskip("ale_py", reason="needs the atari extra")
    pytest.importorskip("cv2", reason="needs the atari extra")
    example = next(block for block in PYTHON.findall(AGENTS) if "atari-pong" in block)
    changes = {
        '"jat-project/jat"': repr(str(tiny_folder)),
        '"cuda"': '"cpu"',
        '"human"': '"rgb_array"',  # a window shows every raw frame at the speed of the game
    }
    for published, here in changes.items():
        assert example.count(published) == 1
        example = example.replace(published, here)
    printed = run(example + "\nprint('return', info['episode']['r'], 'steps', info['episode']['l'])\n")
    match = re.search(r"return (\S+) steps (\d+)", printed)
    assert match, printed
    assert -21 <= float(match[1]) <= 21  # a whole game of Pong
    assert int(match[2]) > 1000  # in raw frames


def test_engine_examples(tiny_folder: Path) -> None:
    """Run the snippets of the engine in real environments."""
    pytest.importorskip("minigrid", reason="needs the babyai extra")
    pytest.importorskip("metaworld", reason="needs the metaworld extra")
    pytest.importorskip("mujoco", reason="needs the mujoco extra")
    _, drop_in, choice, sessions, *_ = PYTHON.findall(AGENTS)
    run(choice)
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
"""
    assert run(code).split() == ["True", "int", "list", "int", "0", "0", "0"]


def test_examples_of_vector_environments() -> None:
    """Those of Gymnasium and of Stable-Baselines3, with the return that the page states."""
    pytest.importorskip("minigrid", reason="needs the babyai extra")
    pytest.importorskip("metaworld", reason="needs the metaworld extra")
    pytest.importorskip("stable_baselines3", reason="needs the sb3 extra")
    *_, vector, stable_baselines, _ = PYTHON.findall(AGENTS)
    assert run(f"{vector}\nprint(actions.shape, policy.closed, vector_env.closed)").split() == ["(8,)", "True", "True"]
    mean = re.search(r"mean return is (\d+) with them", AGENTS)
    assert mean
    printed = re.match(r"(\d+) ± ", run(stable_baselines))
    assert printed
    assert abs(int(printed[1]) - int(mean[1])) < 20, "up to the rounding of the processor's dtype"


FAILING_ARM = """
class Arm(Arm):
    'A sensor fails in every fifth step and once for good; an episode takes eight steps; once a sensor is missing.'
    steps = 0

    def step(self, action):
        assert space.contains(np.asarray(action, np.float32)), action
        observation, reward, _ = super().step(action)
        Arm.steps += 1
        if Arm.steps % 5 == 3 or Arm.steps >= 30:
            observation[4] = np.nan
        return observation[:10] if Arm.steps == 20 else observation, reward, Arm.steps % 8 == 0 and Arm.steps < 30
"""


@pytest.mark.parametrize("fails", [False, True], ids=["as it is", "with failures"])
def test_control_loop(fails: bool) -> None:
    """Run the page's program for half a second, as it is and with an arm whose failures it must handle."""
    pytest.importorskip("gymnasium", reason="needs the mujoco extra")
    program, affinity = PYTHON.findall((ROOT / "docs/control_loop.md").read_text())
    changes = {"HZ, SECONDS = 100, 10": "HZ, SECONDS = 100, 0.5"}
    if fails:
        changes["arm = Arm()"] = FAILING_ARM + "arm = Arm()"
    for written, here in changes.items():
        assert program.count(written) == 1
        program = program.replace(written, here)

    code = affinity + program + "print(loop.stats.steps, engine.stats.calls)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    if fails:
        assert result.returncode == 1, result.stderr
        assert result.stderr.strip() == "no action for too long: the arm is stopped"
        assert "step 3: continuous_observation: expected finite float32 values, got nan at 4" in result.stdout
        assert "step 20: continuous_observation: expected 11 values as before in this episode, got 10" in result.stdout
        assert "step 40: " in result.stdout
        assert "step 41: " not in result.stdout, "ten failures in a row are borne"
    else:
        assert result.returncode == 0, result.stderr
        assert result.stdout.splitlines()[-1] == "50 50"
