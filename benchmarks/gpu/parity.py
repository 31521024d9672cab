"""How far every path is from float64, on the recorded episodes and on the published size, before anything is timed.

A path is a process of its own: what crashes or hangs is known by name, and later sections leave it out. The reference
is the same step in float64 by plain torch (compiled_peer.DenseStep, eager), itself held against the recorded answers.
Every step goes on with the reference's (or the recorded) action. The published size: 160 steps, windows of 300 tokens,
so that the local window (256) and dropping the oldest both take part.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from jat_engine.bench.workload import SPACES, step_arguments

from .context import Context, describe
from .paths import PATHS, Agents, file_name, force_action, is_one_launch
from .process import Process, python_module
from .workload import golden, small_checkpoint, tiny_checkpoint

STEPS, WINDOW = 160, 300
COMPILED_WINDOW = 256
"""The latency section's: each window is compiled anew, and this one is in the caches since the build section."""

INTERPRETED = ("continuous_cw2",), 6
"""Episodes and their first steps for the Triton interpreter, which takes most of a second for a step."""


def run(context: Context) -> None:
    folder = context.folder / "parity"
    folder.mkdir(exist_ok=True)
    context.write(folder / "context.json")
    context.guard("reference, float64", lambda: _reference(context, folder))
    names = [name for name, path in PATHS.items() if context.has_gpu or not path.needs_gpu]
    context.record("not run", {n: "needs a GPU" for n in PATHS if n not in names})
    if context.quick:
        names = [name for name in names if not name.startswith("compiled")]
    found: dict[str, Any] = {}

    def play(name: str) -> None:
        command = python_module("parity", str(folder / "context.json"), name)
        environment = {} if context.has_gpu else {"TRITON_INTERPRET": "1"}
        seconds = min(context.time_left() - 2, 100)
        done = Process(command, folder / f"{file_name(name)}.log", environment).wait(seconds)
        try:
            row = json.loads((folder / f"{file_name(name)}.json").read_text())
        except (OSError, ValueError):
            row = {}
        if done.code is None:
            row["error"] = f"{done.tail}\ndid not end within {seconds:.0f} s"
        elif done.code != 0 and "error" not in row:
            row["error"] = f"{done.tail}\nexit status {done.code}"
        row["seconds"] = round(done.seconds, 1)
        row["limit"] = PATHS[name].limit
        row["within"] = _is_within(row, PATHS[name].limit)
        found[name] = row
        so_far = {name: found[name] for name in names if name in found}
        context.record("paths", so_far)
        # A peer that takes too long to compile here may still find its compiled step in the cache later.
        failed = {name: row["error"] for name, row in so_far.items() if "error" in row}
        context.record("failed", {name: error for name, error in failed.items() if not name.startswith("compiled")})

    # One-launch steps wait for all of their blocks: they share the GPU with nobody.
    together = [name for name in names if not is_one_launch(name)]
    with ThreadPoolExecutor(5 if context.has_gpu else 2) as pool:
        list(pool.map(play, together))
    for name in names:
        if is_one_launch(name):
            play(name)


def _is_within(row: dict[str, Any], limit: float) -> bool:
    errors = [row[part]["relative error"] for part in ("tiny", "small") if part in row]
    return "error" not in row and bool(errors) and all(error <= limit for error in errors)


# ---- the reference -------------------------------------------------------------------------------------------------


def _reference(context: Context, folder: Path) -> dict[str, Any]:
    """Predictions and actions of the published size are left in reference.npz."""
    import torch

    from .compiled_peer import DenseAgent, JatProcessor, float64_agent, load_model

    tiny = tiny_checkpoint(context.folder)
    model, processor = load_model(tiny, torch.float64, context.device), JatProcessor.from_pretrained(tiny)
    predictions, expected = [], []
    for episode in golden().EPISODES:
        got, _ = _follow_episode(DenseAgent(model, processor, episode.context_window), episode)
        predictions += got
        expected += episode.predictions
    result: dict[str, Any] = {"relative error to the recorded answers (float32)": _error(predictions, expected)}
    if not context.quick:
        arrays = {}
        small = small_checkpoint(context.folder)
        agent = float64_agent(small, WINDOW, context.device)
        for kind in SPACES:
            agent.reset()
            arrays[kind] = _predictions(agent, kind)
        agent = DenseAgent(agent.module.model, JatProcessor.from_pretrained(small), COMPILED_WINDOW)
        arrays["compiled"] = _predictions(agent, "continuous")
        np.savez(folder / "reference.npz", **arrays)
        result["spread of predictions"] = {kind: float(array.std()) for kind, array in arrays.items()}
    return result


def _predictions(agent: Any, kind: str) -> np.ndarray:
    steps = [agent.get_next_action(**step_arguments(kind, t), return_prediction=True) for t in range(STEPS)]
    return np.stack([prediction for _, prediction in steps])


def _follow_episode(agent: Any, episode: Any, steps: int | None = None) -> tuple[list[np.ndarray], list[bool]]:
    """Predictions of a recorded episode or its first steps, and whether greedy actions are the recorded ones' best."""
    predictions, agreed = [], []
    for t in range(episode.steps if steps is None else steps):
        action, prediction = agent.get_next_action(
            **episode.observation(t),
            action_space=episode.space,
            reward=episode.reward(t),
            deterministic=True,
            return_prediction=True,
        )
        predictions.append(prediction)
        recorded = episode.predictions[t]
        if episode.actions is not None:
            agreed.append(action == int(np.argmax(recorded)))
            force_action(agent, episode.actions[t])
        else:
            force_action(agent, recorded.tolist())
    return predictions, agreed


def _error(actual: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """Norm of the difference over the norm of what was expected, over all steps."""
    got, want = np.concatenate(actual).astype(np.float64), np.concatenate(expected).astype(np.float64)
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


# ---- one path, in its process --------------------------------------------------------------------------------------


def _tiny(context: Context, name: str) -> dict[str, Any]:
    chosen: tuple[str, ...] = ()
    steps = None
    if name.startswith("graphs") and not context.has_gpu:
        chosen, steps = INTERPRETED
    agents = Agents(name, tiny_checkpoint(context.folder), context.device)
    predictions, expected, agreed, episodes = [], [], [], 0
    for episode in golden().EPISODES:
        if chosen and episode.name not in chosen:
            continue
        agent = agents.open(episode.context_window)
        got, agree = _follow_episode(agent, episode, steps)
        if hasattr(agent, "close"):
            agent.close()
        predictions += got
        expected += episode.predictions[: len(got)]
        agreed += agree
        episodes += 1
    _check_path(agents)
    return _row(predictions, expected, agreed, episodes)


def _check_path(agents: Agents) -> None:
    if agents.fallen_back:
        raise RuntimeError(f"the one-launch step was given up: {agents.fallen_back}")


def _small(context: Context, name: str, folder: Path) -> dict[str, Any]:
    reference = np.load(folder / "reference.npz")
    agents = Agents(name, small_checkpoint(context.folder), context.device)
    if name.startswith("compiled"):
        got, want = _play(agents, "continuous", reference["compiled"], COMPILED_WINDOW)
        return _row(got, list(want), [], 1)
    predictions, expected, agreed = [], [], []
    by_kind = {}
    for kind in SPACES:
        got, want = _play(agents, kind, reference[kind])
        predictions += got
        expected += list(want)
        if kind != "continuous":
            agreed += [int(np.argmax(a)) == int(np.argmax(b)) for a, b in zip(got, want, strict=True)]
        by_kind[kind] = _error(got, list(want))
    _check_path(agents)
    row = {**_row(predictions, expected, agreed, len(SPACES)), "by kind": by_kind, "engine": agents.facts}
    if "fixed order" in name:
        again, _ = _play(agents, "continuous", reference["continuous"])
        first, _ = _play(agents, "continuous", reference["continuous"])
        row["two runs are bitwise equal"] = bool(all(np.array_equal(a, b) for a, b in zip(first, again, strict=True)))
    return row


def _play(
    agents: Agents, kind: str, reference: np.ndarray, window: int = WINDOW
) -> tuple[list[np.ndarray], np.ndarray]:
    agent = agents.open(window)
    predictions = []
    for t in range(STEPS):
        _, prediction = agent.get_next_action(**step_arguments(kind, t), return_prediction=True)
        predictions.append(prediction)
        force_action(agent, reference[t].tolist() if kind == "continuous" else int(reference[t].argmax()))
    if hasattr(agent, "close"):
        agent.close()
    return predictions, reference


def _row(predictions: Any, expected: Any, agreed: list[bool], episodes: int) -> dict[str, Any]:
    if not all(np.isfinite(p).all() for p in predictions):
        raise ValueError("a prediction is not finite")
    return {
        "relative error": _error(predictions, expected),
        "greedy actions that agree": float(np.mean(agreed)) if agreed else None,
        "of": len(agreed),
        "episodes": episodes,
        "steps": len(predictions),
    }


def main() -> int:
    path, name = sys.argv[1:]
    context = Context.read(Path(path))
    folder = context.folder / "parity"
    context.output = str(folder / f"{file_name(name)}.json")
    try:
        if not name.startswith("compiled"):
            context.record("tiny", _tiny(context, name))
        if not context.quick:
            context.record("small", _small(context, name, folder))
    except Exception as error:
        context.record("error", describe(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
