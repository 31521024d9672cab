"""How far results are from float32, beside the published computation in bfloat16."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import golden
import numpy as np
import torch

from jat_engine import JatEngine, JatModel, JatProcessor
from jat_engine.bench.workload import SPACES, step_arguments

from .workload import force_action, small_checkpoint

STEPS, WINDOW = 60, 32


def relative_error(actual: Any, expected: Any) -> float:
    """Norm of the difference over the norm of what was expected, over all steps."""
    return golden.relative_error(np.concatenate(actual), np.concatenate(expected))


def agents(folder: Path) -> dict[str, Any]:
    """Name -> a function of the window that opens a session."""
    made: dict[str, Any] = {}
    processor = JatProcessor.from_pretrained(folder)
    half = JatModel.from_pretrained(folder, dtype=torch.bfloat16)
    made["JatModel bfloat16"] = lambda window: _ModelAgent(half, processor, window)
    for backend, dtypes in (("cpu", ("float32", "bfloat16", "int8")), ("torch", ("float32", "bfloat16", "int8"))):
        for dtype in dtypes:
            engine = JatEngine.from_pretrained(folder, device="cpu", dtype=dtype, backend=backend)
            made[f"JatEngine {backend} {dtype}"] = engine.open_session
    return made


class _ModelAgent:
    """A session of `JatModel` with an engine session's interface."""

    def __init__(self, model: JatModel, processor: JatProcessor, window: int | None) -> None:
        self.session, self._processor, self._window = model.open_session(), processor, window

    def get_next_action(self, **arguments: Any) -> Any:
        return self.session.get_next_action(self._processor, context_window=self._window, **arguments)


def follow(agent: Any, arguments: list[dict[str, Any]], actions: list[Any] | None) -> tuple[list[Any], list[Any]]:
    """Predictions and greedy actions; each step goes on with the given action."""
    predictions, chosen = [], []
    for step, kwargs in enumerate(arguments):
        action, prediction = agent.get_next_action(**{**kwargs, "deterministic": True}, return_prediction=True)
        predictions.append(prediction)
        chosen.append(action)
        if actions is not None:
            force_action(getattr(agent, "session", agent), actions[step])
    return predictions, chosen


def tiny() -> list[dict[str, Any]]:
    """All recorded episodes of the published implementation, each step given the recorded action."""
    folder = golden.write_checkpoint(Path(tempfile.mkdtemp()))
    rows = []
    for name, open_agent in agents(folder).items():
        predictions, expected, agreed = [], [], []
        for episode in golden.EPISODES:
            arguments = [
                {**episode.observation(t), "action_space": episode.space, "reward": episode.reward(t)}
                for t in range(episode.steps)
            ]
            recorded = episode.actions or [p.tolist() for p in episode.predictions]
            got, chosen = follow(open_agent(episode.context_window), arguments, recorded)
            predictions += got
            expected += episode.predictions
            if episode.actions is not None:
                agreed += [a == int(np.argmax(p)) for a, p in zip(chosen, episode.predictions, strict=True)]
        rows.append(_row("recorded episodes (tiny)", name, relative_error(predictions, expected), agreed))
    return rows


def full_size() -> list[dict[str, Any]]:
    """The published size with random weights, each step given the float32 reference's action."""
    folder = small_checkpoint()
    processor = JatProcessor.from_pretrained(folder)
    model = JatModel.from_pretrained(folder)
    arguments = {kind: [step_arguments(kind, step) for step in range(STEPS)] for kind in SPACES}
    expected = {kind: follow(_ModelAgent(model, processor, WINDOW), arguments[kind], None) for kind in SPACES}
    del model
    rows = []
    for name, open_agent in agents(folder).items():
        predictions, reference, agreed = [], [], []
        for kind in SPACES:
            got, chosen = follow(open_agent(WINDOW), arguments[kind], expected[kind][1])
            predictions += got
            reference += expected[kind][0]
            if kind != "continuous":
                agreed += [a == b for a, b in zip(chosen, expected[kind][1], strict=True)]
        rows.append(_row("small, random weights", name, relative_error(predictions, reference), agreed))
    return rows


def _row(weights: str, name: str, error: float, agreed: list[bool]) -> dict[str, Any]:
    return {
        "weights": weights,
        "agent": name,
        "relative error": error,
        "greedy actions that agree": float(np.mean(agreed)),
        "of": len(agreed),
    }


def run() -> list[dict[str, Any]]:
    return tiny() + full_size()
