"""`JatOutput`: the output of `JatModel.forward`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput


@dataclass
class JatOutput(ModelOutput):
    """Output of `JatModel.forward`. Fields that do not apply are None.

    The cache has two names, both as attribute and as key: transformers calls it `cache` since version 5.24 and
    `past_key_values` before, and its `generate` uses the name of its version.

    Attributes:
        loss: scalar. RL: `observation_loss_coef * observation_loss + action_loss_coef * action_loss`.
            Text: cross entropy of the next token, at text positions.
        observation_loss, action_loss: scalars; RL only.
        pred_observations: [B, L, X] or [B, L, 4, 84, 84], the observations of steps 1..L; None for discrete ones.
        pred_actions: [B, L, A] values, or [B, L, vocab_size] logits, of steps 0..L-1.
        logits: [B, T, vocab_size]; text only.
        cache, past_key_values: transformers `Cache`; only with `use_cache`.
        hidden_states, attentions: tuples with one tensor per layer; only on request.
    """

    loss: Tensor | None = None
    observation_loss: Tensor | None = None
    action_loss: Tensor | None = None
    pred_observations: Tensor | None = None
    pred_actions: Tensor | None = None
    logits: Tensor | None = None
    cache: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None

    @property
    def past_key_values(self) -> Cache | None:
        """Older name of `cache`."""
        return self.cache

    @past_key_values.setter
    def past_key_values(self, value: Cache | None) -> None:
        self.cache = value

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(_cache_key(key))

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(_cache_key(key), value)

    def __contains__(self, key: Any) -> bool:
        return bool(super().__contains__(_cache_key(key)))

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the field of this name, `default` if it is None."""
        return super().get(_cache_key(key), default)


def _cache_key(key: Any) -> Any:
    return "cache" if isinstance(key, str) and key == "past_key_values" else key
