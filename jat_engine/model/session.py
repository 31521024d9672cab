"""`ModelSession`, one agent that acts with `JatModel` by the published computation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..action_options import ActionRule, parse_options
from ..config import JatConfig
from ..errors import InputError, SessionError
from ..observation import (
    ActionSpace,
    Limits,
    Observations,
    check_context_window,
    check_processor,
    check_same_episode,
    not_finite,
    parse_action,
    parse_action_space,
    parse_observation,
)
from .transformer import JatTransformer, KeyValueCache

Action = int | list[float]


@dataclass(frozen=True)
class _Step:
    """Last step of an episode. The next step feeds it again, with the action that was chosen."""

    observation: Observations
    space: ActionSpace
    action: Action


class ModelEpisode:
    """State of an agent's episode between two steps. It does not refer to the model.

    Attributes:
        state: the key-value cache and the last step, which a step replaces both at once.
    """

    def __init__(self) -> None:
        self.state: tuple[KeyValueCache, _Step | None] = KeyValueCache(), None


class ModelSession:
    """Episode of one agent: key-value cache, last observation and last action. Invalid input leaves it unchanged.

    Each step feeds `[s_{t-1}, a_{t-1}, s_t, placeholder]` (the first step `[s_0, placeholder]`) at positions
    C, C + 1, ... after the C cached tokens. It reads the prediction at s_t, then drops the last two tokens from the
    cache. s_{t-1} is fed again because its position changes once old tokens are dropped, and this changes the result.
    """

    def __init__(
        self, model: PreTrainedModel, episode: ModelEpisode | None = None, uses_first_reward: bool = False
    ) -> None:
        """Begin an episode, or continue one.

        Args:
            model: a `JatModel`.
            episode: to continue.
            uses_first_reward: use the reward that comes with an episode's first observation, as `JatModel`'s own
                `get_next_action` does; else it counts as 0, since nothing has been rewarded in the episode yet.
        """
        self._model = model
        self._config = cast(JatConfig, model.config)
        self._episode = episode or ModelEpisode()
        self._uses_first_reward = uses_first_reward

    def reset(self) -> None:
        """Start a new episode."""
        self._episode = ModelEpisode()

    @property
    def num_cached_tokens(self) -> int:
        """Number of tokens in the key-value cache."""
        return self._episode.state[0].get_seq_length()

    def force_action(self, action: Any) -> None:
        """Replace the action of the last step, which the next step feeds to the model.

        Use it if the environment executed another action than the one that `get_next_action` returned.

        Args:
            action: A finite numbers, or an int in [0, n), according to the action space of the last step.

        Raises:
            InputError: the action does not fit the action space.
            SessionError: the episode has no step yet.
        """
        kept, last = self._episode.state
        if last is None:
            raise SessionError("action: expected after a step, got it at the beginning of an episode")
        taken = parse_action(last.space, action)
        self._episode.state = kept, replace(last, action=taken if isinstance(taken, int) else taken.tolist())

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
        action_mask: Any = None,
        temperature: float | None = None,
        top_k: int | None = None,
        action_clip: str | None = None,
    ) -> Any:
        """Choose the action for one observation.

        Args:
            processor: a `JatProcessor`.
            continuous_observation: X numbers.
            discrete_observation: up to max_discrete_value integers, 64 fewer with a `text_observation`; padded with 0
                at the end.
            text_observation: the mission; truncated to 64 tokens.
            image_observation: uint8 [84, 84, 4], the last four frames.
            action_space: `gymnasium.spaces.Box` of shape (A,), or `Discrete(n)`.
            reward: reward of the previous action; None counts as 0. Not used with image observations, nor in an
                episode's first step.
            deterministic: choose the most likely discrete action instead of sampling one. Sampling draws once per step
                from `torch.multinomial` with torch's global generator.
            context_window: number of newest tokens, two per step, that the next step can see; at most and by default
                `max_position_embeddings - 4`.
            return_prediction: also return the model's prediction for the action.
            action_mask: bool [n], the allowed discrete actions; None allows all. An environment's mask of zeros and
                ones, such as `info["action_mask"]`, is taken as well.
            temperature: of sampling, from softmax(logits / temperature); None stands for 1, and 0 for `deterministic`.
            top_k: sample from this many most likely allowed actions; None for all.
            action_clip: "box" to clip continuous actions to the action space's `low` and `high`, which are then also
                those of the history; None for actions as predicted.

        Returns:
            The action: a list of A floats, not clipped unless `action_clip` is given, or an int. With
            `return_prediction`, `(action, prediction)`, where the prediction is float32 [A], the action vector, not
            clipped, or float32 [n], the logits of all actions.

        Raises:
            InputError: a field is invalid, or so large that the prediction is not finite.
            SessionError: the call does not fit the current episode; `reset()` starts a new one.
        """
        check_processor(processor, is_needed=True)
        options = parse_options(action_mask, temperature, top_k, action_clip)
        episode, state = self._episode, self._episode.state
        kept, last = state
        limits = Limits.of(self._config)
        given = {
            "continuous_observation": continuous_observation,
            "discrete_observation": discrete_observation,
            "text_observation": text_observation,
            "image_observation": image_observation,
        }
        observation = parse_observation(limits, given, reward)
        # A copy, because the next step feeds it again and environments may reuse their arrays.
        observation = replace(observation, values=[observation.values[0].copy()])
        if not last and not self._uses_first_reward:
            observation = replace(observation, rewards=[0.0])
        space = parse_action_space(limits, action_space)
        rule = ActionRule() if options is None else options.bind(space, action_space)
        window = check_context_window(context_window)
        if last is not None:
            check_same_episode(last.observation, last.space, observation, space)

        if self._model.training and cast(JatTransformer, self._model.transformer).recomputes_activations:
            raise SessionError("model: expected eval mode to act, got training with gradient checkpointing (no cache)")

        inputs = self._inputs(processor, last, observation, space)
        cache = KeyValueCache(kept.layers)  # a copy, so that a failed step does not change the session
        outputs = self._model(**inputs, cache=cache, return_loss=False, return_dict=True)
        prediction = outputs.pred_actions[0, -1, : space.size].float()
        if not torch.isfinite(prediction).all():
            raise not_finite(observation, [False])

        action: Action
        if space.kind == "continuous":
            action = prediction.tolist() if rule.bounds is None else rule.clip([_to_numpy(prediction)])[0].tolist()
        else:
            action = _choose(prediction, rule, deterministic or rule.is_greedy)
        if self._episode is not episode or episode.state is not state:
            raise SessionError(
                "session: expected one call at a time, got another within this step, such as a signal handler's; this "
                "step does not count"
            )
        episode.state = self._kept(cache, window), _Step(observation, space, action)
        return (action, _to_numpy(prediction)) if return_prediction else action

    def _inputs(
        self, processor: Any, last: _Step | None, observation: Observations, space: ActionSpace
    ) -> dict[str, Tensor]:
        """Return the model inputs of one sequence: the last step, if any, and this one with a placeholder action."""
        placeholder: Action = [0.0] * space.size if space.kind == "continuous" else 0
        steps = [(observation, placeholder)]
        if last is not None:
            steps.insert(0, (last.observation, last.action))

        fields: dict[str, Any] = {"rewards": [[o.rewards[0] for o, _ in steps]]}
        if observation.modality == "image":
            fields["image_observations"] = [[o.values[0] for o, _ in steps]]
        elif observation.modality == "continuous":
            fields["continuous_observations"] = [[o.values[0].tolist() for o, _ in steps]]
        else:
            fields["discrete_observations"] = [[o.values[0].tolist() for o, _ in steps]]
            if observation.texts is not None:
                fields["text_observations"] = [[o.texts[0] for o, _ in steps if o.texts is not None]]
        fields[f"{space.kind}_actions"] = [[action for _, action in steps]]
        inputs: dict[str, Tensor] = processor(**fields, return_tensors="pt")
        if observation.texts is not None:
            largest, vocab_size = int(inputs["discrete_observations"].max()), self._config.vocab_size
            if largest >= vocab_size:
                raise InputError(
                    f"text_observation: expected tokens below vocab_size={vocab_size}, got {largest}; the tokenizer is "
                    "not the model's"
                )
        return {name: tensor.to(self._model.device) for name, tensor in inputs.items()}

    def _kept(self, cache: KeyValueCache, window: int | None) -> KeyValueCache:
        """Return the cache for the next step: without s_t and the placeholder, cut to the newest allowed tokens."""
        limit = self._config.max_context_tokens
        if window is not None:
            limit = min(limit, window)
        end = cache.get_seq_length() - 2
        return cache.select(max(0, end - limit), end)


def _to_numpy(prediction: Tensor) -> np.ndarray:
    return prediction.cpu().numpy()


def _choose(logits: Tensor, rule: ActionRule, deterministic: bool) -> int:
    """Return one of n choices, the most likely or a sample, among those that a rule allows. logits: float32 [n]."""
    if rule.allowed is not None:
        logits = logits.masked_fill(~torch.from_numpy(rule.allowed[0]).to(logits.device), -torch.inf)
    if deterministic:
        return int(logits.argmax())
    if rule.top_k is not None:
        logits = logits.index_fill(0, logits.argsort(descending=True, stable=True)[rule.top_k :], -torch.inf)
    if rule.temperature != 1:
        logits = (logits - logits.max()) / rule.temperature  # finite at the most likely choice
    return int(torch.multinomial(logits.softmax(dim=-1), num_samples=1))
