"""Generation of text with `JatModel`: what transformers' `generate` is told of prompts with padding and images."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor
from torch.nn import functional as F
from transformers import Cache, GenerationMixin, StaticCache

from ..config import JatConfig


class JatGenerationMixin(GenerationMixin):
    """`generate` for prompts of text, and of an image before the text; prompts of a batch may have padding."""

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        use_cache: bool | None = None,
        is_first_iteration: bool = False,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return the inputs of the next forward pass: the tokens that are not cached yet, and at first the image.

        transformers' `generate` calls this before each pass.

        Args:
            input_ids: [B, S], tokens of the text.
            next_sequence_length: number of tokens to compute, counted from the end; None for all.
            past_key_values: older name of `cache`.
            attention_mask: [B, S'] over all tokens of the text, including cached ones that `input_ids` lacks; None if
                all are valid.
            pixel_values: [B, 3, image_size, image_size], the image before the text.
            use_cache: passed on to `forward`.
            is_first_iteration: the tokens are the prompt, or a part of it.
            cache: keys and values of the tokens computed so far, including the image patches.
            **kwargs: accepted and ignored.

        Raises:
            ValueError: the prompt has an image, and the cache is static.
        """
        cache = past_key_values if cache is None else cache
        num_cached = int(cache.get_seq_length()) if cache is not None else 0
        num_patches = cast(JatConfig, cast(Any, self).config).num_image_tokens if pixel_values is not None else 0
        if num_patches and isinstance(cache, StaticCache):
            raise ValueError(
                "cache_implementation: expected a cache that grows together with pixel_values, got a static one, which "
                "is made without room for the image's patches; leave cache_implementation out"
            )

        if next_sequence_length is not None:
            if is_first_iteration and num_cached:  # transformers counted it without the patches in the cache
                next_sequence_length += num_patches
            input_ids = input_ids[:, -next_sequence_length:]
        inputs = {"input_ids": input_ids, "cache": cache, "use_cache": use_cache, "return_loss": False}
        if not num_cached:
            inputs["pixel_values"] = pixel_values

        if attention_mask is not None and not bool(attention_mask.all()):
            # Masked tokens are skipped by positions too, so that each row equals its lone run.
            whole = F.pad(attention_mask, (num_patches, 0), value=1)
            inputs["position_ids"] = (whole.long().cumsum(-1) - 1).clamp(min=0)[:, num_cached:]
            inputs["attention_mask"] = whole if num_cached else attention_mask  # `forward` adds the patches
        return inputs

    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Continue texts, by transformers' `generate`; prompts may be padded at either end.

        Prompts with padding at the right are moved to the right end first, since new tokens come after the last one.

        Args:
            inputs: [B, S], tokens of the prompts; also as `input_ids`.
            *args: passed on to transformers.
            **kwargs: transformers' options, `attention_mask` [B, S] and `pixel_values` among them.

        Returns:
            [B, S + new tokens], or what the options ask for.

        Raises:
            ValueError: the tokens need more than `max_position_embeddings` positions, or an option is wrong.
        """
        name = "input_ids" if inputs is None else "inputs"
        ids, mask = kwargs.get("input_ids", inputs), kwargs.get("attention_mask")
        if ids is not None and mask is not None and ids.shape == mask.shape and not bool(mask[:, -1].all()):
            order = mask.long().argsort(dim=-1, stable=True)  # masked tokens first
            ids, kwargs["attention_mask"] = ids.gather(1, order), mask.gather(1, order)
            if name == "input_ids":
                kwargs["input_ids"] = ids
            else:
                inputs = ids
        return super().generate(inputs, *args, **kwargs)
