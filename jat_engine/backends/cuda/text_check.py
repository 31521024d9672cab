"""Compare a step of texts with plain PyTorch in float64, as the startup check does with those of agents."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ...reference import attention, block, key_ages, layer_norm, linear
from ..base import PAGE_SIZE, TextRows
from .kv_pages import KVPages
from .packing import Matrix
from .startup_check import error_bound, judge, multiply
from .text_weights import TextWeights
from .weights import CudaWeights

_OUTPUTS_AT_ONCE = 4096


def text_disagreement(
    weights: CudaWeights,
    text_weights: TextWeights,
    cache: KVPages,
    texts: Sequence[TextRows],
    logits: Sequence[np.ndarray],
) -> str:
    """Return "" if a step's logits are torch's but for rounding, else what is wrong with them.

    Args:
        weights: of the engine.
        text_weights: of texts.
        cache: after the step.
        texts: of the step.
        logits: of each text, float32 [num_predicted, vocab].
    """
    found = np.concatenate(logits)
    expected, scale = (tensor.cpu().numpy() for tensor in _reference(weights, text_weights, cache, texts))
    if not np.isfinite(expected).all():  # such a text is refused elsewhere
        return ""
    # A step has millions of logits, of which the largest error of quantisation counts.
    return judge(found, expected, scale, (1 if cache.scales is None else 2) * error_bound(weights, cache))


@torch.no_grad()
def _reference(
    weights: CudaWeights, text_weights: TextWeights, cache: KVPages, texts: Sequence[TextRows]
) -> tuple[Tensor, Tensor]:
    """Compute a step, with cached keys and values of the rows before it alone.

    Returns:
        The logits and the typical size of a product of the head, both float64 [predictions, vocab].
    """
    device = weights.device
    rows = []
    for text in texts:
        tokens = torch.from_numpy(text.tokens).to(device)
        embeddings = text_weights.embedding[tokens]
        if text.patches is not None:
            embeddings = torch.cat((text.patches, embeddings))
        positions = weights.position_table[text.context_len : text.context_len + text.num_rows]
        rows.append(embeddings.double() + positions.double())
    x_TH = torch.cat(rows)

    for index, layer in enumerate(weights.layers):
        cached = [_cached(cache, index, text, device) for text in texts]
        doubled = layer.map(lambda matrix: matrix, Tensor.double)
        attend = partial(_attend, [text.num_rows for text in texts], cached, layer.window)
        x_TH = block(x_TH, doubled, weights.config.num_heads, attend, multiply)

    ends = np.cumsum([text.num_rows for text in texts])
    predicted = [i for end, text in zip(ends, texts, strict=True) for i in range(end - text.num_predicted, end)]
    norm_weight, norm_bias = weights.final_norm
    hidden_NH = layer_norm(x_TH[predicted], norm_weight.double(), norm_bias.double())
    logits, scales = [], []
    head = text_weights.head
    for begin in range(0, len(head.weight), _OUTPUTS_AT_ONCE):
        part = slice(begin, begin + _OUTPUTS_AT_ONCE)
        piece = Matrix(head.weight[part], None if head.scale is None else head.scale[part])
        rows_AH = piece.to_float().double()
        logits.append(linear(hidden_NH, rows_AH))
        scales.append(rows_AH.norm(dim=1) * hidden_NH.norm(dim=1, keepdim=True) / hidden_NH.shape[1] ** 0.5)
    return torch.cat(logits, dim=1), torch.cat(scales, dim=1)


def _cached(cache: KVPages, layer: int, text: TextRows, device: torch.device) -> Tensor:
    """Return keys and values of the rows before a text's step, float64 [2, K, heads, head_dim]."""
    pages = text.page_table[: -(-text.context_len // PAGE_SIZE)].astype(np.int64)
    found = cache.read(layer, torch.from_numpy(pages).to(device)).double()
    return found.permute(1, 0, 3, 2, 4).flatten(1, 2)[:, : text.context_len]


def _attend(
    counts: list[int], cached: list[Tensor], window: int, q_TND: Tensor, k_TND: Tensor, v_TND: Tensor
) -> Tensor:
    """Return the attention of each text over its own keys."""
    attended = []
    for own, q, k, v in zip(cached, q_TND.split(counts), k_TND.split(counts), v_TND.split(counts), strict=True):
        k_KND, v_KND = torch.cat((own, torch.stack((k, v))), dim=1)
        attended.append(attention(q, k_KND, v_KND, key_ages(len(q), len(k_KND), q.device), window))
    return torch.cat(attended)
