"""Run `JatEngine` and `JatModel` as peers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ... import JatEngine, JatModel, JatProcessor
from ...engine.batch import AgentBatch
from ...engine.session import AgentSession


class EnginePeer:
    """Run `JatEngine`, on the backend that "auto" takes."""

    name = "JatEngine"

    def __init__(self, engine: JatEngine) -> None:
        self.engine = engine
        self.dtype = engine.choice.dtype

    @classmethod
    def load(cls, folder: Path, dtype: str, device: str, **options: Any) -> EnginePeer:
        return cls(JatEngine.from_pretrained(folder, device=device, dtype=dtype, **options))

    def open(self, window: int | None) -> AgentSession:
        return self.engine.open_session(window, seed=0)

    def open_batch(self, num_agents: int, window: int, kind: str) -> AgentBatch:
        return self.engine.open_batch(num_agents, window, seed=0)

    def close(self) -> None:
        del self.engine


class ModelPeer:
    """Run `JatModel`, eager: the published computation on today's transformers."""

    name = "JatModel"

    def __init__(self, model: JatModel, processor: JatProcessor) -> None:
        self.model, self.processor = model.eval(), processor
        self.dtype = str(model.dtype).removeprefix("torch.")

    @classmethod
    def load(cls, folder: Path, dtype: str, device: str) -> ModelPeer:
        model = JatModel.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device)
        return cls(model, JatProcessor.from_pretrained(folder))

    def open(self, window: int | None) -> ModelAgent:
        return ModelAgent(self, window)

    def close(self) -> None:
        del self.model


class ModelAgent:
    """Give a session of `JatModel` the interface of an engine's session."""

    def __init__(self, peer: ModelPeer, window: int | None) -> None:
        self._session, self._processor, self._window = peer.model.open_session(), peer.processor, window

    def get_next_action(self, **arguments: Any) -> Any:
        return self._session.get_next_action(self._processor, context_window=self._window, **arguments)

    def force_action(self, action: Any) -> None:
        self._session.force_action(action)
