"""`JatModel`, the model in plain PyTorch. It is trained, and it is the reference for engines.

A time step is two tokens: observation, then action. The hidden state at an observation predicts the action, and the one
at an action predicts the next observation. Inputs, outputs and losses are those of the published model
(arXiv 2402.09844).

Letters in shapes: B batch, L time steps, S text tokens, T all tokens (text and image patches), H hidden size,
X size of an observation, A size of an action.
"""

from __future__ import annotations

import inspect
import os
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, DynamicCache, GenerationConfig, PreTrainedModel

from ..checkpoint.quantized import read_quantization
from ..checkpoint.reader import find_weight_files
from ..checkpoint.weights import CheckpointWeights
from ..checkpoint_files import find_file, resolve, take_hub_options
from ..config import JatConfig, parse_dtype, read_config
from ..errors import CheckpointError, InputError
from ..keywords import refuse_unknown
from .generation import JatGenerationMixin
from .losses import cross_entropy_loss, mse_loss
from .modules import DiscreteEncoder, ImageDecoder, ImageEncoder, PatchEncoder, PerStep, cyclic_expand, discrete_decoder
from .options import check_options, unknown_option
from .output import JatOutput
from .session import ModelEpisode, ModelSession
from .transformer import JatTransformer, KeyValueStore


class JatModel(PreTrainedModel, JatGenerationMixin):
    """JAT agent: `forward` computes losses, `get_next_action` acts, `generate` writes text.

    The model has its own attention: `attn_implementation="eager"` and "sdpa" are accepted and change nothing. With
    `transformer.plain_attention = True`, training uses the published computation of attention, too.

    Example:
        >>> model, processor = JatModel.from_pretrained("jat-mini"), JatProcessor.from_pretrained("jat-mini")
        >>> model.reset_rl()
        >>> observation, _ = env.reset()
        >>> action = model.get_next_action(processor, **observation, action_space=env.action_space)
    """

    config_class = JatConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True

    # Class attributes that `PreTrainedModel` reads. They are all here; a test checks that it still has them.
    _no_split_modules = ["JatBlock"]  # noqa: RUF012 (declared without ClassVar there)
    _skip_keys_device_placement = ["cache", "past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_context_parallel = False  # local layers would see all tokens

    def __init__(self, config: JatConfig) -> None:
        super().__init__(config)
        hidden_size = config.hidden_size
        self.transformer = JatTransformer(config)
        self.vit_encoder = PatchEncoder(config)
        self.continuous_encoder = nn.Linear(config.max_continuous_size, hidden_size)
        self.multi_discrete_encoder = DiscreteEncoder(config)
        self.image_encoder = PerStep(ImageEncoder(hidden_size))
        self.single_discrete_decoder = nn.Linear(hidden_size, config.vocab_size, bias=False)
        self.continuous_decoder = nn.Linear(hidden_size, config.max_continuous_size)
        self.multi_discrete_decoder = discrete_decoder(config)
        self.image_decoder = PerStep(ImageDecoder(hidden_size))
        self._drop_in = ModelEpisode()
        self.post_init()

    # ---- loading -------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *model_args: Any, config: Any = None, **kwargs: Any
    ) -> Any:
        """Load the model of a checkpoint.

        Only safetensors files are read. Every parameter must be present, have the configured shape and be finite. Of a
        quantised checkpoint (`jat-engine quantize`) the model has the weights that the codes stand for, in float32.

        Args:
            pretrained_model_name_or_path: a folder, a repository id on the hub, or "jat-mini".
            *model_args: passed on to transformers.
            config: a `JatConfig`, or the path of one, to use instead of the checkpoint's.
            **kwargs: transformers' options (`dtype`, `device_map`, `revision`, `cache_dir`, `token`, `subfolder`,
                `variant`, ...) and fields of the configuration to replace. `trust_remote_code` is accepted and
                ignored: code in a checkpoint is never run.

        Returns:
            The `JatModel`, in eval mode. With `output_loading_info=True` also transformers' loading information.

        Raises:
            CheckpointError: a file is missing or wrong; the message names the file and the parameter.
            InputError: `dtype` is not a floating-point type, or an option is unknown or not possible here.

        Example:
            >>> model = JatModel.from_pretrained("jat-mini", dtype=torch.float32)
        """
        kwargs.pop("trust_remote_code", None)  # also keeps `custom_generate` code of a repository from being loaded
        if pretrained_model_name_or_path is None:
            return super().from_pretrained(None, *model_args, config=config, **kwargs)

        hub, variant = take_hub_options(kwargs), kwargs.pop("variant", None)
        source = resolve(pretrained_model_name_or_path, hub.get("subfolder"))
        if kwargs.pop("use_safetensors", None) is False:
            raise CheckpointError("use_safetensors: expected True, got False; only safetensors files are read")
        kwargs.pop("weights_only", None)
        older = kwargs.pop("torch_dtype", None)
        dtype = kwargs.pop("dtype", None) or older
        if dtype not in (None, "auto"):  # "auto" is the type of the file, as without the option
            try:
                kwargs["dtype"] = getattr(torch, parse_dtype(dtype))
            except ValueError as error:
                raise InputError(f"dtype: {str(error).replace('one of', 'auto or one of')}") from None

        if config is not None and not isinstance(config, JatConfig | str | os.PathLike):
            raise CheckpointError(f"config: expected a JatConfig or a path, got {type(config).__name__}")
        if not isinstance(config, JatConfig):
            config = read_config(source if config is None else config, hub, kwargs)
        check_options(kwargs)
        files = find_weight_files(source, variant, hub)
        weights = CheckpointWeights(files, config, read_quantization(source, hub)).all_stored()

        try:
            loaded = super().from_pretrained(None, *model_args, config=config, state_dict=weights, **kwargs)
        except TypeError as error:
            raise unknown_option(error, kwargs) or error from None
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.config.name_or_path = str(pretrained_model_name_or_path)

        generation_config = find_file(source, "generation_config.json", hub)
        if generation_config is not None:
            try:
                model.generation_config = GenerationConfig.from_pretrained(generation_config.parent)
            except Exception as error:  # transformers' checks of fields raise many classes
                raise CheckpointError(f"{generation_config}: {error}") from error
        return loaded

    # ---- embeddings ----------------------------------------------------------------------------------------------

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the embedding of tokens, discrete actions and discrete observations."""
        return self.transformer.wte

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding. `single_discrete_decoder` is a separate matrix and stays."""
        self.transformer.wte = cast(nn.Embedding, value)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Change the number of tokens: of the embedding, of the decoder that predicts tokens, and `config.vocab_size`.

        Args:
            new_num_tokens: the new number; None changes nothing.
            pad_to_multiple_of: round the number up to a multiple of this.
            mean_resizing: of the embedding: draw new rows around the mean of the others. New rows of the decoder are
                that mean.

        Returns:
            The embedding.
        """
        embedding = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        old, count = self.single_discrete_decoder, embedding.num_embeddings
        if old.out_features != count:
            new = nn.Linear(old.in_features, count, bias=False, device=old.weight.device, dtype=old.weight.dtype)
            kept = min(count, old.out_features)
            with torch.no_grad():
                new.weight[:kept] = old.weight[:kept]
                new.weight[kept:] = old.weight.float().mean(dim=0).to(old.weight.dtype)
            new.weight.requires_grad = old.weight.requires_grad
            self.single_discrete_decoder = new
        self.config.vocab_size = count
        return embedding

    def embed_text(
        self, input_ids: Tensor | None, pixel_values: Tensor | None, attention_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Embed image patches, then text tokens.

        Args:
            input_ids: [B, S], int64; None if there is no text.
            pixel_values: [B, 3, image_size, image_size]; None if there is no image.
            attention_mask: [B, S], 1 at valid tokens; None if all are valid.

        Returns:
            Embeddings [B, T, H], and the mask [B, T] over patches and text, or None if `attention_mask` is None.
        """
        embeds = []
        if pixel_values is not None:
            embeds.append(self.vit_encoder(pixel_values.to(self.dtype)))
        if input_ids is not None:
            embeds.append(self.transformer.wte(input_ids))
        if pixel_values is not None and input_ids is not None and attention_mask is not None:
            attention_mask = F.pad(attention_mask, (embeds[0].shape[1], 0), value=1)
        return torch.cat(embeds, dim=1), attention_mask

    def embed_rl(
        self,
        continuous_observations: Tensor | None,
        discrete_observations: Tensor | None,
        image_observations: Tensor | None,
        continuous_actions: Tensor | None,
        discrete_actions: Tensor | None,
        rewards: Tensor | None,
    ) -> Tensor:
        """Embed observations and actions and interleave them: observation, action, observation, ...

        Arguments are as in `forward`.

        Returns:
            [B, 2 * L, H].

        Raises:
            ValueError: rewards, observations or actions are missing, or too wide.
        """
        if rewards is None:
            raise ValueError("rewards: expected a tensor [batch, steps] with the observations, got None")
        reward = rewards.to(self.dtype).unsqueeze(-1)  # [B, L, 1]

        if continuous_observations is not None:
            values = torch.cat((continuous_observations.to(self.dtype), reward), dim=-1)
            observations = self.continuous_encoder(cyclic_expand(values, self.config.max_continuous_size))
        elif discrete_observations is not None:
            features = self.multi_discrete_encoder(discrete_observations, self.transformer.wte)
            observations = torch.cat((features, reward), dim=-1)
        elif image_observations is not None:
            observations = self.image_encoder(image_observations.to(self.dtype))
        else:
            raise ValueError(
                "observations: expected one of continuous_observations, discrete_observations, image_observations"
            )

        if continuous_actions is not None:
            values = cyclic_expand(continuous_actions.to(self.dtype), self.config.max_continuous_size)
            actions = self.continuous_encoder(values)
        elif discrete_actions is not None:
            actions = self.transformer.wte(discrete_actions)
        else:
            raise ValueError("actions: expected continuous_actions or discrete_actions, got neither")
        return torch.stack((observations, actions), dim=2).flatten(1, 2)

    # ---- forward -------------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        continuous_observations: Tensor | None = None,
        discrete_observations: Tensor | None = None,
        image_observations: Tensor | None = None,
        continuous_actions: Tensor | None = None,
        discrete_actions: Tensor | None = None,
        rewards: Tensor | None = None,
        past_key_values: KeyValueStore | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        return_loss: bool = True,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        loss_weight: Tensor | None = None,
        action_inputs: Tensor | None = None,
        loss_only: bool = False,
        cache: KeyValueStore | None = None,
    ) -> JatOutput | tuple[Any, ...]:
        """Run the model on text (`input_ids`, `pixel_values`) or on RL sequences (observations, actions, rewards).

        Args:
            input_ids: [B, S], int64.
            pixel_values: [B, 3, image_size, image_size], normalised as by `JatProcessor`.
            continuous_observations: [B, L, X], X < max_continuous_size.
            discrete_observations: [B, L, max_discrete_value], int64.
            image_observations: [B, L, 4, 84, 84], in [-1, 1].
            continuous_actions: [B, L, A], A <= max_continuous_size.
            discrete_actions: [B, L], int64.
            rewards: [B, L]; required with observations.
            past_key_values: older name of `cache`.
            attention_mask: [B, L] over steps, or [B, S] over text tokens; 1 at valid ones.
            token_type_ids: [B, T], int64; their embeddings are added to the inputs.
            position_ids: [1 or B, T], int64; by default the positions after the cached tokens. In text with masked
                tokens before valid ones, as in prompts padded at the left, valid tokens alone are counted.
            return_loss: also compute the losses.
            use_cache: return a cache, a new one if none is given. By default `config.use_cache`; False in training.
            output_attentions: also return the attention weights of each layer.
            output_hidden_states: also return the hidden states of each layer.
            return_dict: return a `JatOutput` rather than a tuple. By default `config.return_dict`.
            loss_weight: [B, L], weights of the steps in the losses.
            action_inputs: same shape and type as the actions; embedded instead of them. Losses still compare with the
                actions.
            loss_only: compute losses only, and decode only what they need; for training. Expects masked steps of RL at
                the end of each sequence. The losses are the same, and predictions are None.
            cache: keys and values of earlier tokens. Those of the new tokens are appended.

        Returns:
            A `JatOutput`, or a tuple of its fields that are not None.

        Raises:
            ValueError: an input is missing or has a wrong size, or there are more tokens than
                `max_position_embeddings`.
        """
        is_text = input_ids is not None or pixel_values is not None
        if is_text:
            inputs_embeds, token_mask = self.embed_text(input_ids, pixel_values, attention_mask)
        else:
            inputs_embeds = self.embed_rl(
                continuous_observations,
                discrete_observations,
                image_observations,
                continuous_actions if continuous_actions is None or action_inputs is None else action_inputs,
                discrete_actions if discrete_actions is None or action_inputs is None else action_inputs,
                rewards,
            )
            token_mask = attention_mask.repeat_interleave(2, dim=1) if attention_mask is not None else None

        if token_type_ids is not None:
            inputs_embeds = inputs_embeds + self.transformer.wte(token_type_ids)
        cache = self._choose_cache(cache, past_key_values, use_cache, loss_only)
        self._check_length(inputs_embeds.shape[1], cache)
        is_masked_before = is_text and token_mask is not None and bool((token_mask[:, 1:] > token_mask[:, :-1]).any())
        if is_masked_before and position_ids is None:
            assert token_mask is not None  # is_masked_before
            position_ids = (token_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -inputs_embeds.shape[1] :]

        outputs = self.transformer(
            inputs_embeds=inputs_embeds,
            cache=cache,
            # In training nothing attends to masked tokens, since they come at the end.
            attention_mask=None if loss_only and not is_masked_before else token_mask,
            position_ids=position_ids,
            output_attentions=self.config.output_attentions if output_attentions is None else output_attentions,
            output_hidden_states=(
                self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
            ),
        )
        hidden = outputs.last_hidden_state

        if is_text:
            result = self._text_output(hidden, input_ids, token_mask, return_loss, loss_only)
        elif loss_only:
            result = self._rl_losses(
                hidden,
                continuous_observations,
                image_observations,
                continuous_actions,
                discrete_actions,
                rewards,
                attention_mask,
                loss_weight,
            )
        else:
            result = self._rl_output(
                hidden,
                continuous_observations,
                image_observations,
                continuous_actions,
                discrete_actions,
                rewards,
                attention_mask,
                return_loss,
                loss_weight,
            )

        result.cache = cast(Cache, cache)
        result.hidden_states = outputs.hidden_states
        result.attentions = outputs.attentions
        if return_dict is None:
            return_dict = self.config.return_dict
        return result if return_dict else result.to_tuple()

    def _choose_cache(
        self,
        cache: KeyValueStore | None,
        past_key_values: KeyValueStore | None,
        use_cache: bool | None,
        loss_only: bool,
    ) -> KeyValueStore | None:
        """Return the cache to use according to the arguments of `forward`: the given one, a new one, or None."""
        if cache is not None and past_key_values is not None and cache is not past_key_values:
            raise ValueError("cache: expected one cache, got another one as past_key_values; pass one of the two")
        cache = past_key_values if cache is None else cache
        if use_cache is None:
            use_cache = cache is not None or (self.config.use_cache and not loss_only and not self.training)
        if (use_cache or cache is not None) and self.training and self.transformer.recomputes_activations:
            raise ValueError(
                "use_cache: expected False in training with gradient checkpointing, which computes layers twice, got a "
                "cache or True; call model.eval() or leave use_cache out"
            )
        return DynamicCache() if use_cache and cache is None else cache

    def _check_length(self, num_new: int, cache: KeyValueStore | None) -> None:
        total = num_new + (int(cache.get_seq_length()) if cache is not None else 0)
        if total > self.config.max_position_embeddings:
            raise ValueError(
                f"sequence length: expected at most max_position_embeddings={self.config.max_position_embeddings} "
                f"tokens, got {total}; truncate the input or generate fewer tokens"
            )

    def _text_output(
        self,
        hidden: Tensor,
        input_ids: Tensor | None,
        token_mask: Tensor | None,
        return_loss: bool,
        loss_only: bool,
    ) -> JatOutput:
        if loss_only and input_ids is not None:  # decode only the positions whose next token is valid
            num_text = input_ids.shape[1]
            valid = torch.ones_like(input_ids) if token_mask is None else token_mask[:, -num_text:]
            before = (valid[:, 1:] * valid[:, :-1]).bool()
            logits = self.single_discrete_decoder(hidden[:, -num_text:-1][before].unsqueeze(0))
            return JatOutput(loss=cross_entropy_loss(logits, input_ids[:, 1:][before].unsqueeze(0), None, None))

        logits = self.single_discrete_decoder(hidden)
        loss = None
        if return_loss:
            if input_ids is None:
                raise ValueError("input_ids: expected text for the loss, got None; pass return_loss=False")
            num_text = input_ids.shape[1]
            shifted = logits[:, -num_text:-1]  # the position before each token predicts it
            target = input_ids[:, 1:]
            mask = None
            if token_mask is not None:  # padding at the left does not predict the first token
                mask = token_mask[:, -num_text:][:, 1:] * token_mask[:, -num_text:][:, :-1]
            loss = cross_entropy_loss(shifted, target, mask, None)
        return JatOutput(loss=loss, logits=logits)

    def _rl_output(
        self,
        hidden: Tensor,
        continuous_observations: Tensor | None,
        image_observations: Tensor | None,
        continuous_actions: Tensor | None,
        discrete_actions: Tensor | None,
        rewards: Tensor | None,
        mask: Tensor | None,
        return_loss: bool,
        loss_weight: Tensor | None,
    ) -> JatOutput:
        at_observation, at_action = hidden[:, ::2], hidden[:, 1::2]
        size = self.config.max_continuous_size
        loss = observation_loss = action_loss = pred_observations = pred_actions = None

        # Observations: the token of action t predicts observation t + 1. Discrete ones are not predicted (published).
        target = None
        if self.config.observation_loss_coef != 0:
            if continuous_observations is not None:
                assert rewards is not None  # embed_rl has checked
                target = cyclic_expand(torch.cat((continuous_observations, rewards.unsqueeze(-1)), dim=-1), size)
                predicted = self.continuous_decoder(at_action)
                pred_observations = predicted[..., : continuous_observations.shape[-1]]
            elif image_observations is not None:
                target = image_observations
                predicted = pred_observations = self.image_decoder(at_action)

        if return_loss:
            observation_loss = hidden.new_zeros((), dtype=torch.float32)
            if target is not None:
                next_mask = mask[:, 1:] if mask is not None else None
                next_weight = loss_weight[:, 1:] if loss_weight is not None else None
                observation_loss = mse_loss(predicted[:, :-1], target[:, 1:], next_mask, next_weight)

        # Actions: the token of observation t predicts action t.
        if continuous_actions is not None:
            predicted = self.continuous_decoder(at_observation)
            pred_actions = predicted[..., : continuous_actions.shape[-1]]
            if return_loss:
                action_loss = mse_loss(predicted, cyclic_expand(continuous_actions, size), mask, loss_weight)
        elif discrete_actions is not None:
            pred_actions = self.single_discrete_decoder(at_observation)
            if return_loss:
                action_loss = cross_entropy_loss(pred_actions, discrete_actions, mask, loss_weight)

        if return_loss:
            assert observation_loss is not None  # set above
            assert action_loss is not None  # embed_rl has checked that there are actions
            loss = self.config.observation_loss_coef * observation_loss + self.config.action_loss_coef * action_loss
        return JatOutput(
            loss=loss,
            observation_loss=observation_loss,
            action_loss=action_loss,
            pred_observations=pred_observations,
            pred_actions=pred_actions,
        )

    def _rl_losses(
        self,
        hidden: Tensor,
        continuous_observations: Tensor | None,
        image_observations: Tensor | None,
        continuous_actions: Tensor | None,
        discrete_actions: Tensor | None,
        rewards: Tensor | None,
        mask: Tensor | None,
        loss_weight: Tensor | None,
    ) -> JatOutput:
        """Return the losses of `_rl_output` without its predictions. Only valid steps are decoded."""
        at_observation, at_action = hidden[:, ::2], hidden[:, 1::2]
        size = self.config.max_continuous_size
        valid = mask.bool() if mask is not None else torch.ones_like(at_action[..., 0], dtype=torch.bool)  # [B, L]

        def select(x: Tensor | None, where: Tensor) -> Tensor | None:
            return None if x is None else x[where].unsqueeze(0)  # [1, valid steps, ...]

        observation_loss = hidden.new_zeros((), dtype=torch.float32)
        if self.config.observation_loss_coef != 0:
            next_valid = valid[:, 1:]
            next_weight = loss_weight[:, 1:] if loss_weight is not None else None
            if continuous_observations is not None:
                assert rewards is not None  # embed_rl has checked
                values = torch.cat((continuous_observations, rewards.unsqueeze(-1)), dim=-1)[:, 1:]
                predicted = self.continuous_decoder(at_action[:, :-1])
                observation_loss = mse_loss(predicted, cyclic_expand(values, size), next_valid, next_weight)
            elif image_observations is not None:
                predicted = self.image_decoder(select(at_action[:, :-1], next_valid))
                target = select(image_observations[:, 1:], next_valid)
                assert target is not None
                observation_loss = mse_loss(predicted, target, None, select(next_weight, next_valid))

        if continuous_actions is not None:
            target = cyclic_expand(continuous_actions, size)
            action_loss = mse_loss(self.continuous_decoder(at_observation), target, valid, loss_weight)
        else:
            assert discrete_actions is not None  # embed_rl has checked that there are actions
            logits = self.single_discrete_decoder(select(at_observation, valid))
            target = discrete_actions[valid].unsqueeze(0)
            action_loss = cross_entropy_loss(logits, target, None, select(loss_weight, valid))

        loss = self.config.observation_loss_coef * observation_loss + self.config.action_loss_coef * action_loss
        return JatOutput(loss=loss, observation_loss=observation_loss, action_loss=action_loss)

    # ---- acting --------------------------------------------------------------------------------------------------

    def open_session(self) -> ModelSession:
        """Return a new agent that acts with this model. Sessions are independent: each has its own episode."""
        return ModelSession(self)

    def reset_rl(self) -> None:
        """Start a new episode of the agent that `get_next_action` plays."""
        self._drop_in = ModelEpisode()

    def get_next_action(
        self,
        processor: Any,
        continuous_observation: Any = None,
        discrete_observation: Any = None,
        text_observation: str | None = None,
        image_observation: Any = None,
        action_space: Any = None,
        reward: float | None = None,
        deterministic: bool = False,
        context_window: int | None = None,
        return_prediction: bool = False,
        *,
        action_mask: Any = None,
        temperature: float | None = None,
        top_k: int | None = None,
        action_clip: str | None = None,
        **unknown: Any,
    ) -> Any:
        """Choose the action for one observation, with the call of the published package.

        The model keeps one agent for this call; `reset_rl` starts its next episode. Arguments, results and errors are
        those of `ModelSession.get_next_action`, except that a reward in an episode's first step is used, as published.

        Example:
            >>> model.reset_rl()
            >>> action = model.get_next_action(processor, **observation, reward=None, action_space=env.action_space)
        """
        if unknown:
            names = inspect.signature(self.get_next_action).parameters
            refuse_unknown(unknown, [name for name in names if name != "unknown"], "an argument of get_next_action")
        session = ModelSession(self, self._drop_in, uses_first_reward=True)
        return session.get_next_action(
            processor,
            continuous_observation=continuous_observation,
            discrete_observation=discrete_observation,
            text_observation=text_observation,
            image_observation=image_observation,
            action_space=action_space,
            reward=reward,
            deterministic=deterministic,
            context_window=context_window,
            return_prediction=return_prediction,
            action_mask=action_mask,
            temperature=temperature,
            top_k=top_k,
            action_clip=action_clip,
        )
