"""Time whole episodes in real simulators, with trained weights: a step, the simulator's included."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium.error import DependencyNotInstalled

from ... import JatEngine, JatModel, JatProcessor
from ...checkpoint_files import JAT_MINI
from ...envs import get_task, make
from ...errors import InputError
from ...evaluation import run_episode
from ..peers import REFERENCE
from ..results import make_row
from ..runner import Contender, Context, take_turns
from ..workload import check_model

SUITE = "eval"

EPISODES = {
    "atari-pong": 40,
    "babyai-go-to-obj": 40,
    "metaworld-drawer-open": 40,
    "mujoco-reacher": 40,
}
"""Task -> most steps of an episode; one of each domain that jat-mini plays."""

_TOLERANCE = 1e-2
"""Of an action's value; rounding grows in a simulator. Discrete actions must be the same."""


def run(context: Context) -> None:
    """Measure the first trained model of the options, jat-mini where there are presets alone."""
    options = context.options
    model = next((name for name in options.models if check_model(name) is not None), JAT_MINI)
    agents: dict[str, tuple[Any, Any]] = {
        REFERENCE: (
            JatModel.from_pretrained(model, dtype="float32").to(options.device),
            JatProcessor.from_pretrained(model),
        )
    }
    for dtype in options.dtypes:
        agents[f"JatEngine {dtype}"] = JatEngine.from_pretrained(model, device=options.device, dtype=dtype), None

    for task, steps in EPISODES.items():
        context.note(f"eval: {task} ...")
        try:
            env = make(task, clip_reward=False) if task.startswith("atari") else make(task)
        except (ImportError, DependencyNotInstalled, ValueError) as error:
            context.results.skipped[f"eval of {task}"] = str(error).splitlines()[0]
            continue
        with contextlib.closing(env):
            try:
                measure_task(context, agents, model, task, steps, env)
            except InputError as error:  # the model is too small for this task's observations
                context.results.skipped[f"eval of {task}"] = str(error)
        context.save()


def measure_task(
    context: Context, agents: dict[str, tuple[Any, Any]], model: str, task: str, steps: int, env: Any
) -> None:
    """Let all agents play one episode of a task, in turns; their actions are compared in float32.

    Args:
        agents: by name, each with its processor, or None.
        steps: at most, of the episode.
    """

    def play(name: str) -> Any:
        agent, processor = agents[name]
        return run_episode(agent, processor, env, task=get_task(task), seed=0, deterministic=True, max_steps=steps)

    lengths: dict[str, int] = {}
    actions = {}
    for name in agents:
        with recorded(agents[name][0]) as taken:
            lengths[name] = play(name).length
        actions[name] = taken

    contenders = {name: Contender(lambda _, name=name: name, play) for name in agents}  # type: ignore[misc]
    options = context.options
    rounds = take_turns(contenders, min(options.num_iters, 6), num_warmup=min(options.num_iters_warmup, 1))
    seconds = {name: [[v / lengths[name] for v in values] for values in found] for name, found in rounds.items()}

    alone = simulator_alone(env, steps)
    case: dict[str, str | int] = {"model": model, "task": task, "steps": steps}
    for name, values in seconds.items():
        is_float32 = name.endswith("float32") and name != REFERENCE  # rounding leads to other episodes: not compared
        row = make_row(
            SUITE,
            case,
            name,
            values,
            reference=seconds[REFERENCE] if is_float32 else None,
            error=difference(actions[name], actions[REFERENCE]) if is_float32 else None,
            tolerance=_TOLERANCE if is_float32 else None,
        )
        row.facts["steps/s"] = 1 / row.p50
        row.facts["simulator alone ms"] = alone * 1e3
        context.results.rows.append(row)


@contextlib.contextmanager
def recorded(agent: Any) -> Iterator[list[Any]]:
    """Give a list of the actions that the agent takes within the block."""
    taken: list[Any] = []
    original = agent.get_next_action

    def get_next_action(*args: Any, **kwargs: Any) -> Any:
        taken.append(original(*args, **kwargs))
        return taken[-1]

    agent.get_next_action = get_next_action
    try:
        yield taken
    finally:
        del agent.get_next_action


def difference(first: list[Any], second: list[Any]) -> float:
    """Return the largest difference of two episodes' actions; infinite if one is longer."""
    if len(first) != len(second):
        return float("inf")
    return float(np.abs(np.subtract(first, second)).max())


def simulator_alone(env: Any, steps: int) -> float:
    """Return the seconds of a step with random actions, of the simulator alone."""
    env.reset(seed=0)
    env.action_space.seed(0)
    seconds = []
    for _ in range(steps):
        action = env.action_space.sample()
        begin = time.perf_counter()
        _, _, terminated, truncated, _ = env.step(action)
        seconds.append(time.perf_counter() - begin)
        if terminated or truncated:
            env.reset()
    return float(np.median(seconds))
