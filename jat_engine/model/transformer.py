"""Transformer of `JatModel`: the blocks of GPT-Neo in plain PyTorch, with the published parameter names.

Pre-LayerNorm blocks: x += out_proj(attention(ln_1(x))); x += c_proj(act(c_fc(ln_2(x)))); a LayerNorm at the end.
Scores are q . k, without 1 / sqrt(head_dim). "global" layers see all earlier tokens, "local" ones the newest
`window_size`. Learned positions are added to the input once, so a cached key keeps the position it was computed with.

Letters in shapes: B batch, T new tokens, S cached and new tokens, H hidden size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from ..config import ACTIVATIONS, JatConfig

_MAKE_ACTIVATION: dict[str, Callable[[], nn.Module]] = {
    "gelu_new": functools.partial(nn.GELU, approximate="tanh"),
    "gelu_pytorch_tanh": functools.partial(nn.GELU, approximate="tanh"),
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "tanh": nn.Tanh,
}
assert tuple(_MAKE_ACTIVATION) == ACTIVATIONS

_FEW_TOKENS = 256
"""Number of tokens up to which matrix products are faster on a CPU than torch's fused attention kernel."""

_QUERIES_AT_ONCE = 128
"""Number of queries per block in `_attend_in_blocks`."""


class KeyValueStore(Protocol):
    """Interface of a key-value cache, which transformers' `Cache` and `KeyValueCache` implement."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Append [B, heads, T, head_dim] to a layer, and return all its keys and values, [B, heads, >= S, head_dim]."""
        ...

    def get_seq_length(self) -> int:
        """Return the number of cached tokens."""
        ...


class KeyValueCache:
    """Keys and values of one sequence of tokens. Updates make new tensors and never write to cached ones.

    Attributes:
        layers: keys and values of each layer, [B, heads, S, head_dim].
    """

    def __init__(self, layers: list[tuple[Tensor, Tensor]] | None = None) -> None:
        self.layers = list(layers or [])

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Append [B, heads, T, head_dim] to a layer, and return all its keys and values, [B, heads, S, head_dim]."""
        if layer_idx == len(self.layers):
            self.layers.append((key_states, value_states))
        else:
            keys, values = self.layers[layer_idx]
            self.layers[layer_idx] = torch.cat((keys, key_states), 2), torch.cat((values, value_states), 2)
        return self.layers[layer_idx]

    def get_seq_length(self) -> int:
        """Return the number of cached tokens."""
        return self.layers[0][0].shape[2] if self.layers else 0

    def select(self, start: int, end: int) -> KeyValueCache:
        """Return a copy with the tokens start, ..., end - 1 only."""
        return KeyValueCache(
            [(keys[:, :, start:end].clone(), values[:, :, start:end].clone()) for keys, values in self.layers]
        )


@dataclass(frozen=True)
class VisibleKeys:
    """Attention mask of the layers of one kind.

    Attributes:
        allowed: bool [1 or B, 1, T, S], True where a query may attend to a key.
        window: number of tokens that a query sees, including itself.
        only_causal: there are no cached and no padded tokens, so `allowed` follows from order and window alone.
    """

    allowed: Tensor
    window: int
    only_causal: bool

    @classmethod
    def of(
        cls, num_cached: int, num_new: int, window: int | None, padding: Tensor | None, device: torch.device
    ) -> VisibleKeys:
        """Build the mask of `num_new` tokens after `num_cached`.

        Args:
            num_cached: number of cached tokens, S - T.
            num_new: number of new tokens, T.
            window: number of tokens that a query sees, including itself; None for all.
            padding: [B, S], 0 at masked keys, which do not count in a window; None if all are valid.
            device: device of the mask.
        """
        total = num_cached + num_new
        if window is None:
            window = total
        distance = torch.arange(num_cached, total, device=device)[:, None] - torch.arange(total, device=device)
        allowed = ((distance >= 0) & (distance < window))[None, None]
        if padding is not None:
            count, is_valid = padding.long().cumsum(-1), padding.bool()
            valid_distance = count[:, num_cached:, None] - count[:, None, :]
            # The window of a padded query is the published one, over all tokens.
            in_window = torch.where(is_valid[:, num_cached:, None], valid_distance, distance) < window
            valid = ((distance >= 0) & in_window & is_valid[:, None, :])[:, None]
            # A padded query may see no valid key. It sees the earlier padding then, because its hidden state must not
            # be NaN, but no later token, because it predicts the next one.
            allowed = valid | (allowed & ~valid.any(-1, keepdim=True))
        return cls(allowed, window, only_causal=padding is None and num_cached == 0)


class SelfAttention(nn.Module):
    """Causal attention over all earlier tokens, or over a window of them.

    With a cache, or if the attention weights are returned, scores are computed in float32 as in the published model
    (`_attend`). Training uses faster ways to the same result: fused kernels, or matrix products over blocks of queries.
    """

    def __init__(self, config: JatConfig, layer_idx: int) -> None:
        super().__init__()
        hidden_size = config.hidden_size
        self.layer_idx = layer_idx
        self.num_heads = config.num_heads
        self.attention_dropout = float(config.attention_dropout)
        self.resid_dropout = nn.Dropout(float(config.resid_dropout))
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.out_proj = nn.Linear(hidden_size, hidden_size, bias=True)

    def forward(
        self, x: Tensor, visible: VisibleKeys, cache: KeyValueStore | None, *, plain: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output [B, T, H], and with `plain` or a cache also the weights [B, heads, T, S], else None."""
        query, key, value = (
            projection(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, heads, T, head_dim]
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        dropout = self.attention_dropout if self.training else 0.0

        weights = None
        if cache is not None or plain:
            if cache is not None:
                num_keys = visible.allowed.shape[-1]
                key, value = cache.update(key, value, self.layer_idx)
                key, value = key[:, :, :num_keys], value[:, :, :num_keys]  # a static cache returns all of its slots
            attended, weights = _attend(query, key, value, visible, dropout)
        else:
            attended = _attend_fast(query, key, value, visible, dropout)

        out: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return self.resid_dropout(out), weights


def _attend(query: Tensor, key: Tensor, value: Tensor, visible: VisibleKeys, dropout: float) -> tuple[Tensor, Tensor]:
    """Return softmax(Q K^T over visible keys) V, and the weights. Scores and softmax are computed in float32."""
    scores = query.float() @ key.float().transpose(-1, -2)
    scores = scores.masked_fill(~visible.allowed, torch.finfo(scores.dtype).min)
    weights = F.dropout(F.softmax(scores, dim=-1).to(value.dtype), dropout)
    return weights @ value, weights


def _attend_fast(query: Tensor, key: Tensor, value: Tensor, visible: VisibleKeys, dropout: float) -> Tensor:
    """Return the result of `_attend`, up to rounding, by the fastest way for training."""
    num_tokens = query.shape[2]
    # torch's fused kernel for CPUs computes bfloat16 gradients in float32, and is faster for long sequences only.
    prefers_products = query.device.type == "cpu" and (query.dtype == torch.bfloat16 or num_tokens <= _FEW_TOKENS)
    if visible.only_causal and not dropout and prefers_products:
        return _attend_in_blocks(query, key, value, visible)
    if visible.only_causal and num_tokens <= visible.window:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=dropout, scale=1.0)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=visible.allowed, dropout_p=dropout, scale=1.0)


def _attend_in_blocks(query: Tensor, key: Tensor, value: Tensor, visible: VisibleKeys) -> Tensor:
    """Compute attention for one block of queries at a time, over only those keys that the block can see."""
    shape, num_tokens = query.shape, query.shape[2]
    query, key, value = (x.flatten(0, 1) for x in (query, key, value))  # [B heads, T, head_dim]
    allowed = visible.allowed[0]
    mask = torch.zeros_like(allowed, dtype=query.dtype).masked_fill(~allowed, -torch.inf)

    attended = []
    with torch.autocast(query.device.type, enabled=False):  # autocast would make softmax return float32
        for start in range(0, num_tokens, _QUERIES_AT_ONCE):
            end, first = min(start + _QUERIES_AT_ONCE, num_tokens), max(0, start - visible.window + 1)
            bias = mask[:, start:end, first:end].expand(len(query), -1, -1)
            scores = torch.baddbmm(bias, query[:, start:end], key[:, first:end].transpose(1, 2))
            attended.append(torch.bmm(F.softmax(scores, dim=-1), value[:, first:end]))
    return torch.cat(attended, dim=1).view(shape)


class Attention(nn.Module):
    """Container that gives the parameters of `SelfAttention` their published names, `attn.attention.*`."""

    def __init__(self, config: JatConfig, layer_idx: int) -> None:
        super().__init__()
        self.attention = SelfAttention(config, layer_idx)


class MLP(nn.Module):
    """MLP of a block: c_proj(act(c_fc(x))), [B, T, H] -> [B, T, H]."""

    def __init__(self, config: JatConfig) -> None:
        super().__init__()
        inner_size = config.intermediate_size or 4 * config.hidden_size
        self.c_fc = nn.Linear(config.hidden_size, inner_size)
        self.c_proj = nn.Linear(inner_size, config.hidden_size)
        self.act = _MAKE_ACTIVATION[config.activation_function]()
        self.dropout = nn.Dropout(float(config.resid_dropout))

    def forward(self, x: Tensor) -> Tensor:
        """Return c_proj(act(c_fc(x))), [B, T, H]."""
        out: Tensor = self.dropout(self.c_proj(self.act(self.c_fc(x))))
        return out


class JatBlock(GradientCheckpointingLayer):
    """One layer: attention, then MLP. With gradient checkpointing, the backward pass computes it a second time."""

    def __init__(self, config: JatConfig, layer_idx: int) -> None:
        super().__init__()
        self.is_local = config.attention_layers[layer_idx] == "local"
        self.ln_1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.attn = Attention(config, layer_idx)
        self.ln_2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, visible: VisibleKeys, cache: KeyValueStore | None = None, plain: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Return the hidden states [B, T, H] after this layer, and its attention weights or None."""
        attended, weights = self.attn.attention(self.ln_1(x), visible, cache, plain=plain)
        x = attended + x
        x = x + self.mlp(self.ln_2(x))
        return x, weights


@dataclass(frozen=True)
class TransformerOutput:
    """Output of `JatTransformer`.

    Attributes:
        last_hidden_state: [B, T, H], after the last LayerNorm.
        hidden_states: the input of each layer, then `last_hidden_state`; only on request.
        attentions: the attention weights of each layer, [B, heads, T, S]; only on request.
    """

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


class JatTransformer(nn.Module):
    """Embeddings and blocks of `JatModel`.

    Attributes:
        plain_attention: compute attention as in the published model, also in training. The faster ways give the same
            result up to rounding; set it to compare with them.
    """

    def __init__(self, config: JatConfig) -> None:
        super().__init__()
        self.window_size = config.window_size
        self.plain_attention = False
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.wpe = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.drop = nn.Dropout(float(config.embed_dropout))
        self.h = nn.ModuleList([JatBlock(config, layer_idx) for layer_idx in range(config.num_layers)])
        self.ln_f = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)

    @property
    def recomputes_activations(self) -> bool:
        """True if the backward pass computes the activations of any layer again (gradient checkpointing)."""
        return any(block.gradient_checkpointing for block in self.h)

    def forward(
        self,
        inputs_embeds: Tensor,
        *,
        cache: KeyValueStore | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> TransformerOutput:
        """Run all layers on the embeddings of new tokens.

        Args:
            inputs_embeds: [B, T, H].
            cache: keys and values of earlier tokens; those of the new tokens are appended.
            attention_mask: [B, S], 1 at valid tokens, over cached and new ones; None if all are valid.
            position_ids: [1 or B, T]; by default the positions after the cached tokens.
            output_attentions: also return the attention weights of each layer.
            output_hidden_states: also return the hidden states of each layer.

        Raises:
            ValueError: `attention_mask` is not of shape [B, S].
        """
        batch_size, num_new, _ = inputs_embeds.shape
        num_cached = int(cache.get_seq_length()) if cache is not None else 0
        device = inputs_embeds.device
        padding = _check_padding(attention_mask, batch_size, num_cached + num_new)
        visible = {
            is_local: VisibleKeys.of(num_cached, num_new, self.window_size if is_local else None, padding, device)
            for is_local in (False, True)
        }

        if position_ids is None:
            position_ids = torch.arange(num_cached, num_cached + num_new, device=device)[None]
        x = self.drop(inputs_embeds + self.wpe(position_ids))

        plain = output_attentions or self.plain_attention
        hidden_states, attentions = [], []
        for block in self.h:
            hidden_states.append(x)
            x, weights = block(x, visible[cast(JatBlock, block).is_local], cache=cache, plain=plain)
            attentions.append(weights)
        x = self.ln_f(x)
        return TransformerOutput(
            x,
            (*hidden_states, x) if output_hidden_states else None,
            tuple(attentions) if output_attentions else None,
        )


def _check_padding(attention_mask: Tensor | None, batch_size: int, num_tokens: int) -> Tensor | None:
    """Check the shape of a mask, and return it, or None if it masks nothing, which allows the faster ways."""
    if attention_mask is None:
        return None
    if tuple(attention_mask.shape) != (batch_size, num_tokens):
        raise ValueError(
            f"attention_mask: expected shape [{batch_size}, {num_tokens}], 1 at valid tokens and cached ones included, "
            f"got {list(attention_mask.shape)}"
        )
    return None if bool(attention_mask.all()) else attention_mask
