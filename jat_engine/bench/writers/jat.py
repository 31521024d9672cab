"""Run `JatEngine` and `JatModel` as writers, through their public `generate_stream` and `generate`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ... import JatEngine, JatModel


class ForcedTokens:
    """Keep the logits of each step, and let the continuation be the given one. A logits processor."""

    def __init__(self, forced: np.ndarray) -> None:
        """Begin with the first token. forced: int64 [B, n]."""
        self.logits: list[np.ndarray] = []
        self._forced = torch.from_numpy(forced)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        tokens = self._forced[:, len(self.logits)].to(scores.device)
        self.logits.append(scores.float().cpu().numpy())
        return torch.full_like(scores, -torch.inf).scatter(1, tokens[:, None], 0.0)


class EngineWriter:
    """Run `JatEngine`, on the backend that "auto" takes."""

    name = "JatEngine"
    has_weights = True

    def __init__(self, engine: JatEngine) -> None:
        self.engine = engine
        self.dtype = engine.choice.dtype

    @classmethod
    def load(cls, folder: Path, dtype: str, device: str, **options: Any) -> EngineWriter:
        return cls(JatEngine.from_pretrained(folder, device=device, dtype=dtype, **options))

    def write(self, prompts: np.ndarray, num_new: int, on_step: Callable[[], object]) -> np.ndarray:
        steps: list[list[int]] = [[] for _ in prompts]
        stream = self.engine.generate_stream(
            input_ids=prompts, do_sample=False, max_new_tokens=num_new, eos_token_id=[]
        )
        num_known = 0
        for event in stream:
            assert event.token is not None, event.error
            steps[event.index].append(event.token)
            # Prompts end in different steps, so that some texts are ahead of others.
            if min(map(len, steps)) > num_known:
                num_known += 1
                on_step()
        return np.array(steps)

    def predict(self, prompts: np.ndarray, forced: np.ndarray) -> np.ndarray:
        found = []
        for prompt, tokens in zip(prompts, forced, strict=True):
            processor = ForcedTokens(tokens[None])
            self.engine.generate(
                input_ids=prompt[None], do_sample=False, max_new_tokens=len(tokens), logits_processor=[processor]
            )
            found.append(np.concatenate(processor.logits))
        return np.stack(found)

    def close(self) -> None:
        self.engine.close()


class ModelWriter:
    """Run `JatModel.generate`: transformers' generation on the published computation."""

    name = "JatModel"
    has_weights = True

    def __init__(self, model: JatModel) -> None:
        self.model: Any = model.eval()
        self.model.generation_config.eos_token_id = None  # a continuation has no end
        self.dtype = str(model.dtype).removeprefix("torch.")

    @classmethod
    def load(cls, folder: Path, dtype: str, device: str) -> ModelWriter:
        return cls(JatModel.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device))

    def write(self, prompts: np.ndarray, num_new: int, on_step: Callable[[], object]) -> np.ndarray:
        def after_step(input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
            on_step()
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

        return self._generate(prompts, num_new, stopping_criteria=[after_step])

    def predict(self, prompts: np.ndarray, forced: np.ndarray) -> np.ndarray:
        processor = ForcedTokens(forced)
        self._generate(prompts, forced.shape[1], logits_processor=[processor])
        return np.stack(processor.logits, axis=1)

    def close(self) -> None:
        del self.model

    def _generate(self, prompts: np.ndarray, num_new: int, **options: Any) -> np.ndarray:
        ids = torch.from_numpy(prompts).to(self.model.device)
        mask = torch.ones_like(ids)
        written = self.model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=num_new, **options)
        found: np.ndarray = written[:, prompts.shape[1] :].cpu().numpy()
        return found
