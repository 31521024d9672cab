"""Run `JatEngine` and `JatModel` as peers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from ... import JatEngine, JatModel, JatProcessor
from ...checkpoint.weights import parameter_shapes
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

    def open(self, window: int) -> EngineAgent:
        return EngineAgent(self.engine.open_session(window, seed=0))

    def open_batch(self, num_agents: int, window: int, kind: str) -> EngineBatch:
        return EngineBatch(self.engine.open_batch(num_agents, window, seed=0))

    def close(self) -> None:
        del self.engine

    def step_bytes(self, kind: str) -> int:
        """Return the bytes of weights that a step reads: the blocks, and the encoder's large layer."""
        config = self.engine.config
        shapes = parameter_shapes(config)
        blocks = config.num_layers * 12 * config.hidden_size**2
        encoder = 0 if kind == "continuous" else math.prod(shapes[_LARGEST[kind]])
        return int((blocks + encoder) * _WEIGHT_BYTES[self.dtype])

    def cache_bytes(self, window: int) -> int:
        """Return the bytes of keys and values that a step reads: local layers see at most their own window."""
        config = self.engine.config
        tokens = sum(min(window, config.window_size) if a == "local" else window for a in config.attention_layers)
        return int(tokens * 2 * config.hidden_size * (4 if self.dtype == "float32" else 2))


_WEIGHT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}

_LARGEST = {"babyai": "multi_discrete_encoder.4.weight", "atari": "image_encoder.module.fc.weight"}


class EngineBatch:
    def __init__(self, batch: AgentBatch) -> None:
        self._batch = batch

    def get_next_actions(self, arguments: dict[str, Any]) -> Any:
        return self._batch.get_next_actions(**arguments)

    def close(self) -> None:
        self._batch.close()


class EngineAgent:
    def __init__(self, session: AgentSession) -> None:
        self._session = session

    def get_next_action(self, **arguments: Any) -> Any:
        return self._session.get_next_action(**arguments)

    def force_action(self, action: Any) -> None:
        self._session.force_action(action)


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

    def open(self, window: int) -> ModelAgent:
        return ModelAgent(self, window)

    def close(self) -> None:
        del self.model


class ModelAgent:
    def __init__(self, peer: ModelPeer, window: int) -> None:
        self._session, self._processor, self._window = peer.model.open_session(), peer.processor, window

    def get_next_action(self, **arguments: Any) -> Any:
        return self._session.get_next_action(self._processor, context_window=self._window, **arguments)

    def force_action(self, action: Any) -> None:
        self._session.force_action(action)
