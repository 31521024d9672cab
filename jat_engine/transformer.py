"""Transformers' GPT-Neo with fewer passes over memory, for training: the same numbers, up to rounding, in less time.

Its own attention computes scores, fills in masks, adds further masks and takes the softmax one after the other, each
over [B, heads, T, T] in float32. It stays in use wherever keys are cached or weights are asked for.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPTNeoModel
from transformers.models.gpt_neo import modeling_gpt_neo

from .config import JatConfig

_SHORT = 256
"""Tokens up to which products are faster on a CPU than torch's fused kernel."""

_QUERIES = 128
"""Queries in one product; the future of the last of them is not computed."""


class JatTransformer(GPTNeoModel):
    """GPT-Neo, with `FusedSelfAttention` unless eager attention is asked for."""

    # transformers' flash attention for GPT-Neo does not apply the local window.
    _supports_flash_attn = False
    _supports_sdpa = True

    def __init__(self, config: JatConfig) -> None:
        super().__init__(config)
        if config.activation_function == "gelu_new":
            for block in self.h:  # the same function in one operation instead of seven
                cast(Any, block).mlp.act = nn.GELU(approximate="tanh")


class FusedSelfAttention(modeling_gpt_neo.GPTNeoSelfAttention):
    """Takes the masks that transformers makes for "sdpa": boolean [B, 1, T, T], or None if nothing is masked but the
    future."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        layer_past: Any = None,
        use_cache: bool = False,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if layer_past is not None or output_attentions:
            if attention_mask is not None and attention_mask.dtype == torch.bool:
                lowest = torch.finfo(torch.float32).min
                attention_mask = torch.zeros_like(attention_mask, dtype=torch.float32).masked_fill(
                    ~attention_mask, lowest
                )
            eager: tuple[Tensor, Tensor | None] = super().forward(
                hidden_states, attention_mask, layer_past, use_cache, output_attentions, **kwargs
            )
            return eager
        query, key, value = (
            self._split_heads(projection(hidden_states), self.num_heads, self.head_dim)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        length = query.shape[2]
        allowed = self.bias[:, :, :length, :length]  # [1, 1, T, T]: the past, of local layers the window of it
        dropout = float(self.attn_dropout.p) if self.training else 0.0
        # No 1 / sqrt(head_dim): GPT-Neo omits it.
        if attention_mask is None and not dropout and query.device.type == "cpu" and _few(query):
            window = self.config.window_size if self.attention_type == "local" else length
            attended = _products(query, key, value, allowed, window)
        elif attention_mask is None and (self.attention_type == "global" or length <= self.config.window_size):
            attended = F.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=dropout, scale=1.0)
        else:
            mask = allowed if attention_mask is None else allowed & attention_mask
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=1.0)
        merged = self._merge_heads(attended, self.num_heads, self.head_dim)
        return self.resid_dropout(self.out_proj(merged)), None


def _few(query: Tensor) -> bool:
    """Whether products are faster than torch's fused kernel, which computes its gradient in float32."""
    return query.dtype == torch.bfloat16 or query.shape[2] <= _SHORT


def _products(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor, window: int) -> Tensor:
    """softmax(Q K^T, where allowed) V, for some queries at a time and the keys that the first to the last of them see.

    Args:
        query, key, value: [B, heads, T, head_dim].
        allowed: [1, 1, T, T].
        window: a query sees no key that is so many or more tokens before it.
    """
    shape, length = query.shape, query.shape[2]
    query, key, value = (x.flatten(0, 1) for x in (query, key, value))
    mask = torch.zeros_like(allowed[0], dtype=query.dtype).masked_fill(~allowed[0], -torch.inf)
    attended = []
    with torch.autocast(query.device.type, enabled=False):  # it would have the softmax write float32
        for start in range(0, length, _QUERIES):
            end, first = min(start + _QUERIES, length), max(0, start - window + 1)
            bias = mask[:, start:end, first:end].expand(len(query), -1, -1)
            scores = torch.baddbmm(bias, query[:, start:end], key[:, first:end].transpose(1, 2))
            attended.append(torch.bmm(F.softmax(scores, dim=-1), value[:, first:end]))
    return torch.cat(attended, dim=1).view(shape)


# How transformers knows implementations by the name it gives them. GPT-Neo has none of this name.
modeling_gpt_neo.GPT_NEO_ATTENTION_CLASSES["sdpa"] = FusedSelfAttention
