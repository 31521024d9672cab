"""`ModelSession`: one agent that acts with `JatModel`, by the published computation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..config import JatConfig
from ..errors import SessionError
from ..observation import (
    ActionSpace,
    Limits,
    Observation,
    check_context_window,
    check_processor,
    check_same_episode,
    not_finite,
    parse_action_space,
    parse_observation,
)
from .transformer import JatTransformer, KeyValueCache

Action = int | list[float]


@dataclass(frozen=True)
class _Step:
    """The last step: it is fed again, with the action that was chosen, in the next one."""

    observation: Observation
    space: ActionSpace
    action: Action


class ModelSession:
    """One agent's episode: its key-value cache, its last observation and action. Bad input leaves it as it was.

    Each step feeds `[s_{t-1}, a_{t-1}, s_t, fake action]` (the first `[s_0, fake]`) at positions C, C + 1, ... after
    the C cached tokens, reads the prediction at s_t, and drops the last two tokens from the cache again. Once tokens
    have been dropped at the other end, s_{t-1} moves to another position: feeding it again is part of the answer.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._config = cast(JatConfig, model.config)
        self.reset()

    def reset(self) -> None:
        """Start a new episode."""
        self._cache = KeyValueCache()
        self._last: _Step | None = None

    @property
    def num_cached_tokens(self) -> int:
        return self._cache.get_seq_length()

    @torch.no_grad()
    def get_next_action(
        self,
        processor: Any,
        *,
        continuous_observation: Any = None,
        discrete_observation: Any = None,
        text_observation: str | None = None,
        image_observation: Any = None,
        action_space: Any = None,
        reward: float | None = None,
        deterministic: bool = False,
        context_window: int | None = None,
        return_prediction: bool = False,
    ) -> Any:
        """Choose the action for one observation.

        Args:
            processor: a `JatProcessor`.
            continuous_observation: X numbers.
            discrete_observation: max_discrete_value integers; 64 fewer with a `text_observation`.
            text_observation: the mission; truncated to 64 tokens.
            image_observation: uint8 [84, 84, 4], the four last frames.
            action_space: `gymnasium.spaces.Box` of shape (A,), or `Discrete(n)`.
            reward: of the previous action; None counts as 0. Image observations do not use it.
            deterministic: take the most likely of discrete actions instead of sampling (`torch.multinomial` with
                torch's global generator, one draw a step).
            context_window: how many of the newest tokens, two a step, the next step may look back on; at most and by
                default `max_position_embeddings - 4`.
            return_prediction: also return what the action was chosen from.

        Returns:
            The action: a list of A floats, never clipped, or an int. With `return_prediction`, `(action, prediction)`:
            float32 [A], the action vector, or float32 [n], the logits.

        Raises:
            InputError: a field is not what the model takes, or so large that the prediction is not finite.
            SessionError: the call does not fit the episode so far; `reset()` starts a new one.
        """
        check_processor(processor, is_needed=True)
        limits = Limits.of(self._config)
        observation = parse_observation(
            limits,
            continuous_observation=continuous_observation,
            discrete_observation=discrete_observation,
            text_observation=text_observation,
            image_observation=image_observation,
            reward=reward,
        )
        # It is fed again, and environments may reuse their arrays.
        observation = observation._replace(values=observation.values.copy())
        space = parse_action_space(limits, action_space)
        window = check_context_window(context_window)
        if self._last is not None:
            check_same_episode(self._last.observation, self._last.space, observation, space)

        if self._model.training and cast(JatTransformer, self._model.transformer).recomputes_activations:
            raise SessionError("model: expected eval mode to act, got training with gradient checkpointing (no cache)")

        inputs = self._inputs(processor, observation, space)
        cache = KeyValueCache(self._cache.layers)  # a failed step leaves the session's own as it was
        outputs = self._model(**inputs, cache=cache, return_loss=False, return_dict=True)
        prediction = outputs.pred_actions[0, -1, : space.size].float()
        if not torch.isfinite(prediction).all():
            raise not_finite(observation)

        action: Action
        if space.kind == "continuous":
            action = prediction.tolist()
        elif deterministic:
            action = int(prediction.argmax())
        else:
            action = int(torch.multinomial(prediction.softmax(dim=-1), num_samples=1))
        self._cache = self._kept(cache, window)
        self._last = _Step(observation, space, action)
        return (action, _to_numpy(prediction)) if return_prediction else action

    def force_action(self, action: Any) -> None:
        """Let the next step follow on `action` instead of the one that was chosen, so that runs stay comparable.

        Args:
            action: a choice, or A numbers, as the last step's action space has them.

        Raises:
            SessionError: before the first step of an episode.
        """
        if self._last is None:
            raise SessionError("force_action: expected a step before it, got a new episode")
        is_choice = self._last.space.kind == "discrete"
        taken: Action = int(action) if is_choice else np.asarray(action, np.float32).tolist()
        self._last = replace(self._last, action=taken)

    def _inputs(self, processor: Any, observation: Observation, space: ActionSpace) -> dict[str, Tensor]:
        """One batch of one sequence: the last step, if there is one, and this one with a fake action."""
        fake: Action = [0.0] * space.size if space.kind == "continuous" else 0
        steps = [(observation, fake)]
        if self._last is not None:
            steps.insert(0, (self._last.observation, self._last.action))
        fields: dict[str, Any] = {"rewards": [[o.reward for o, _ in steps]]}
        if observation.modality == "image":
            fields["image_observations"] = [[o.values for o, _ in steps]]
        elif observation.modality == "continuous":
            fields["continuous_observations"] = [[o.values.tolist() for o, _ in steps]]
        else:
            fields["discrete_observations"] = [[o.values.tolist() for o, _ in steps]]
            if observation.text is not None:
                fields["text_observations"] = [[o.text for o, _ in steps]]
        fields[f"{space.kind}_actions"] = [[action for _, action in steps]]
        inputs: dict[str, Tensor] = processor(**fields, return_tensors="pt").to(self._model.device)
        return inputs

    def _kept(self, cache: KeyValueCache, window: int | None) -> KeyValueCache:
        """Return all tokens but s_t and the fake action, and of those the newest that the limits allow."""
        limit = self._config.max_position_embeddings - 4
        if window is not None:
            limit = min(limit, window)
        end = cache.get_seq_length() - 2
        return cache.select(max(0, end - limit), end)


def _to_numpy(prediction: Tensor) -> np.ndarray:
    return prediction.cpu().numpy()
