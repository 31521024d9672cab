"""The ways to compute a step that are held against each other, by name, and one agent of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jat_engine import AgentSession, JatEngine, JatProcessor


@dataclass(frozen=True)
class Variant:
    """`options`: of the engine; None for what is no engine. `limit`: relative error of predictions to be expected."""

    dtype: str
    options: dict[str, Any] | None
    limit: float
    needs_gpu: bool = True


_GRAPHS = {"backend": "cuda", "one_launch": False}
_ONE_LAUNCH = {"backend": "cuda", "one_launch": True}

PATHS: dict[str, Variant] = {
    "JatModel bfloat16": Variant("bfloat16", None, 0.06, needs_gpu=False),
    "compiled torch bfloat16": Variant("bfloat16", None, 0.06),
    "torch float32": Variant("float32", {"backend": "torch"}, 1e-4, needs_gpu=False),
    "torch bfloat16": Variant("bfloat16", {"backend": "torch"}, 0.04),
    "graphs float32": Variant("float32", _GRAPHS, 1e-4, needs_gpu=False),
    "graphs bfloat16": Variant("bfloat16", _GRAPHS, 0.04),
    "graphs float16": Variant("float16", _GRAPHS, 0.01),
    "graphs int8": Variant("int8", _GRAPHS, 0.12),
    "one launch bfloat16": Variant("bfloat16", _ONE_LAUNCH, 0.04),
    "one launch bfloat16, fixed order": Variant("bfloat16", {**_ONE_LAUNCH, "fixed_order": True}, 0.04),
}
"""Without a GPU "graphs float32" means the Triton kernels in the interpreter (TRITON_INTERPRET=1)."""


def is_one_launch(name: str) -> bool:
    return name.startswith("one launch")


def file_name(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")


class Agents:
    """Agents of one path over one checkpoint."""

    def __init__(self, name: str, folder: Path, device: str, **options: Any) -> None:
        path = PATHS[name]
        self.name, self.engine = name, None
        self._processor: Any = None
        if path.options is not None:
            self.engine = JatEngine.from_pretrained(folder, device=device, dtype=path.dtype, **path.options, **options)
            if self.fallen_back:
                raise RuntimeError(f"the one-launch step is not in use: {self.fallen_back}")
        else:
            from .compiled_peer import load_model

            self._model = load_model(folder, getattr(torch, path.dtype), device)
            self._processor = JatProcessor.from_pretrained(folder)

    @property
    def fallen_back(self) -> str:
        """Why a one-launch path takes the graphs instead; "" if it does not."""
        if self.engine is None or not is_one_launch(self.name):
            return ""
        return str(getattr(self.engine._backend, "one_launch_reason", "this engine has none"))

    def open(self, window: int | None) -> Any:
        """A new agent: `get_next_action(**arguments)`."""
        if self.engine is not None:
            return self.engine.open_session(window)
        if self.name.startswith("compiled"):
            from .compiled_peer import compiled_agent

            return compiled_agent(self._model, self._processor, window)
        return _ModelAgent(self._model, self._processor, window)

    def _geometry(self) -> dict[str, int] | None:
        """How the one-launch step lies on the GPU, where it is used."""
        step = getattr(self.engine._backend, "_one_launch", None)
        return None if step is None else step.geometry

    @property
    def facts(self) -> dict[str, Any]:
        """What an engine says of itself."""
        if self.engine is None:
            return {}
        choice = self.engine.choice
        return {
            "backend": choice.backend,
            "dtype": choice.dtype,
            "reason": choice.reason,
            "weight_bytes": self.engine.weight_bytes,
            "memory": getattr(self.engine, "memory", None),
            "one_launch_reason": self.engine.one_launch_reason,
            "one_launch": self._geometry(),
        }


class _ModelAgent:
    """A session of `JatModel` with an engine session's interface."""

    def __init__(self, model: Any, processor: Any, window: int | None) -> None:
        self.session, self._processor, self._window = model.open_session(), processor, window

    def get_next_action(self, **arguments: Any) -> Any:
        return self.session.get_next_action(self._processor, context_window=self._window, **arguments)

    def close(self) -> None:
        self.session.reset()


def force_action(agent: Any, action: Any) -> None:
    """Let the next step follow on `action` instead of the one that was chosen, so that runs stay comparable."""
    if isinstance(agent, _ModelAgent):
        agent.session.force_action(action)
    elif isinstance(agent, AgentSession):
        agent.force_action(action)
    else:
        agent.action = action if isinstance(action, int) else np.asarray(action, np.float32)
