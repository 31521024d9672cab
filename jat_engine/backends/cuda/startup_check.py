"""Startup check: compare one step on each CUDA path with plain PyTorch, to catch a faulty GPU, driver or compiler."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from ...observation import ActionSpace, Observations
from ...reference import attention, block, encode_continuous, key_ages, layer_norm, linear
from ..base import PAGE_SIZE, STEP_TOKENS, Group, LastStep
from .packing import Matrix
from .weights import CudaWeights

_CONTEXT = 20  # more than a page
_MAX_PAGES = 2
_MOST_PREDICTIONS = 32
_BOUNDS = {"float32": 1e-3}
_BOUND = 0.25  # half precisions stay at about 0.02


def make_group(weights: CudaWeights, cache: Tensor) -> Group:
    """Return a step of three continuous tokens behind some cached ones, whose keys and values are filled at random.

    cache: [layers, num_pages, 2, heads, 16, head_dim].
    """
    pages = min(cache.shape[1], _MAX_PAGES)
    context = min(_CONTEXT, PAGE_SIZE * pages - STEP_TOKENS, weights.config.max_position_embeddings - STEP_TOKENS)
    random = np.random.default_rng(0)
    for number in range(pages):
        values = random.standard_normal(cache[:, number].shape, np.float32) * np.float32(0.5)
        cache[:, number] = torch.from_numpy(values).to(cache)

    before, action, now = (random.standard_normal(size).astype(np.float32) for size in (5, 2, 5))
    field = "continuous_observation"
    observations = [Observations("continuous", [v[:4]], None, [float(v[4])], field) for v in (before, now)]
    size = min(_MOST_PREDICTIONS, weights.config.max_continuous_size)
    return Group(
        num_agents=1,
        observations=observations[1],
        missions=None,
        space=ActionSpace("continuous", size),
        noise=None,
        num_again=[2],
        context_lens=[context],
        start_offsets=[0],
        page_table=[np.arange(pages, dtype=np.int32)],
        last=LastStep(observations[0], [before], ActionSpace("continuous", action.size), [action]),
    )


@torch.no_grad()
def reference(weights: CudaWeights, cache: Tensor, group: Group) -> tuple[np.ndarray, np.ndarray]:
    """Return the prediction of `make_group`'s step, float32 [A], and the typical size of a product of its head, [A]."""
    last, observations = group.last, group.observations
    assert last is not None, "the group feeds tokens again"
    now = np.append(observations.values[0], np.float32(observations.rewards[0]))
    tokens = [last.embeddings[0], last.actions[0], now]
    rows = [
        encode_continuous(
            torch.from_numpy(values).to(weights.device),
            weights.continuous_encoder(values.size),
            weights.continuous_bias,
        )
        for values in tokens
    ]
    context = int(group.context_lens[0])
    x_TH = torch.stack(rows) + weights.position_table[context : context + len(rows)]

    for layer, pages in zip(weights.layers, cache, strict=True):
        # [pages, 2, heads, 16, head_dim] -> keys and values [2, K, heads, head_dim], those of the context
        cached = pages[:_MAX_PAGES].float().permute(1, 0, 3, 2, 4).flatten(1, 2)[:, :context]
        x_TH = block(x_TH, layer, weights.config.num_heads, partial(_attend, cached, layer.window), _linear)

    hidden_H = layer_norm(x_TH[-1], *weights.final_norm)
    rows_AH, bias_A = weights.head(group.space)
    prediction_A = linear(hidden_H, rows_AH, bias_A)
    scale_A = rows_AH.norm(dim=1) * hidden_H.norm() / hidden_H.numel() ** 0.5
    return prediction_A.cpu().numpy(), scale_A.cpu().numpy()


def _attend(cached: Tensor, window: int, q_TND: Tensor, k_TND: Tensor, v_TND: Tensor) -> Tensor:
    k_KND, v_KND = torch.cat((cached, torch.stack((k_TND, v_TND))), dim=1)
    return attention(q_TND, k_KND, v_KND, key_ages(len(q_TND), len(k_KND), q_TND.device), window)


def _linear(x_TI: Tensor, matrix: Matrix, bias_O: Tensor | None) -> Tensor:
    return linear(x_TI, matrix.to_float(), bias_O)


def disagreement(weights: CudaWeights, prediction: np.ndarray, expected: tuple[np.ndarray, np.ndarray]) -> str:
    """Return "" if a prediction is what plain torch computes but for rounding, else what is wrong with it."""
    values, scale = expected
    error = float((np.abs(prediction - values) / np.maximum(scale, 1e-30)).max())
    if error <= _BOUNDS.get(weights.dtype, _BOUND):  # not for NaN
        return ""
    return f"its kernels do not compute what plain torch does: off by {error:.2g} of what a prediction typically is"
