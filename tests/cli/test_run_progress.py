"""Progress of a run: bars on a terminal, and which side limits the speed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jat_engine.cli.run_progress import summary
from jat_engine.runs.play import PlayTiming

EVAL = [sys.executable, "-m", "jat_engine.cli", "eval", "--model_name_or_path", "jat-mini", "--use_cpu"]


def test_bars_on_a_terminal(tmp_path: Path) -> None:
    import pty

    leader, follower = pty.openpty()
    command = [*EVAL, "--tasks", "mujoco-reacher", "mujoco-pendulum", "--num_episodes", "12", "--max_steps", "200"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "160"}
    with subprocess.Popen(
        [*command, "--num_workers", "0", "--num_envs", "1", "--output_dir", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=follower,
        env=environment,
    ) as process:
        os.close(follower)
        shown = b""
        while True:
            try:
                part = os.read(leader, 4096)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            shown += part
        assert process.stdout is not None
        out = process.stdout.read().decode()
    os.close(leader)
    assert process.returncode == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert "episodes ━" in text
    assert re.search(r"  mujoco-\w+ +[━╸╺ ]+ +\d+/12", text)
    assert "24 episodes, " in text
    assert "━" not in out.replace("─", ""), "results are on standard output, progress is not"


@pytest.mark.parametrize(("env_seconds", "agent_seconds", "limit"), [(8.0, 2.0, "environments"), (1.0, 9.0, "agent")])
def test_the_side_that_limits_the_speed(env_seconds: float, agent_seconds: float, limit: str) -> None:
    timing = PlayTiming(10, 1000, 100, 10.0, agent_seconds, env_seconds, hosts=1, num_envs=8)
    assert (timing.demand, timing.supply, timing.rate) == (1000 / env_seconds, 1000 / agent_seconds, 100.0)
    text = summary(timing)
    assert f"λ = {1000 / env_seconds:,.0f} steps/s" in text
    assert f"μ = {1000 / agent_seconds:,.0f} in batches of 10.0" in text
    assert f"the {limit} " in text
    assert text.endswith("the limit")
