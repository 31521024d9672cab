"""One step beside plain torch when an engine is made: a GPU, driver or compiler that computes otherwise shows."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...observation import ActionSpace, Observations
from ..base import Group, LastStep
from .packing import Layer, Matrix
from .weights import CudaWeights

_CONTEXT = 20  # more than a page
_MOST_PREDICTIONS = 32
_BOUNDS = {"float32": 1e-3}
_BOUND = 0.25  # half precisions stay at about 0.02


def make_group(weights: CudaWeights, cache: Tensor) -> Group:
    """Return a step of three continuous tokens behind some cached ones, whose keys and values are filled at random.

    cache: [layers, num_pages, 2, heads, 16, head_dim].
    """
    pages = min(cache.shape[1], 2)
    context = min(_CONTEXT, 16 * pages - 3, weights.config.max_position_embeddings - 3)
    random = np.random.default_rng(0)
    for number in range(pages):
        values = random.standard_normal(cache[:, number].shape, np.float32) * np.float32(0.5)
        cache[:, number] = torch.from_numpy(values).to(cache)

    before, action, now = (random.standard_normal(size).astype(np.float32) for size in (5, 2, 5))
    field = "continuous_observation"
    observations = [Observations("continuous", [v[:4]], None, [float(v[4])], field) for v in (before, now)]
    size = min(_MOST_PREDICTIONS, weights.config.max_continuous_size)
    return Group(
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
        weights.continuous_bias + torch.from_numpy(values).to(weights.device) @ weights.continuous_encoder(values.size)
        for values in tokens
    ]
    context = int(group.context_lens[0])
    x = torch.stack(rows) + weights.positions[context : context + len(rows)]
    for layer, pages in zip(weights.layers, cache, strict=True):
        x = _layer(weights, layer, pages, x, context)
    hidden = F.layer_norm(x[-1], x.shape[-1:], *weights.final_norm)
    head, bias = weights.head(group.space)
    prediction = head @ hidden if bias is None else head @ hidden + bias
    scale = head.norm(dim=1) * hidden.norm() / hidden.numel() ** 0.5
    return prediction.cpu().numpy(), scale.cpu().numpy()


def _layer(weights: CudaWeights, layer: Layer, pages: Tensor, x: Tensor, context: int) -> Tensor:
    heads = weights.config.num_heads
    normed = F.layer_norm(x, x.shape[-1:], *layer.norm1)
    q, k, v = (normed @ _float(layer.qkv).T).unflatten(1, (3, heads, -1)).unbind(1)  # [T, heads, head_dim]
    # [num_pages, 2, heads, 16, head_dim] -> [heads, keys, head_dim]
    cached = pages[:2].float().permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, :context]
    k, v = (torch.cat((old, new.transpose(0, 1)), dim=1) for old, new in zip(cached, (k, v), strict=True))
    age = torch.arange(context, context + len(x), device=x.device)[:, None] - torch.arange(k.shape[1], device=x.device)
    hidden_keys = (age < 0) | (age >= layer.window)
    scores = torch.einsum("thd,hkd->htk", q, k).masked_fill(hidden_keys, -torch.inf)
    attended = torch.einsum("htk,hkd->thd", scores.softmax(-1), v).flatten(1)
    x = x + attended @ _float(layer.out).T + layer.out_bias
    normed = F.layer_norm(x, x.shape[-1:], *layer.norm2)
    inner = F.gelu(normed @ _float(layer.fc).T + layer.fc_bias, approximate="tanh")
    return x + inner @ (_float(layer.proj, transposed=True)) + layer.proj_bias


def _float(matrix: Matrix, transposed: bool = False) -> Tensor:
    weight = matrix.weight.float()
    if matrix.scale is None:
        return weight
    return weight * (matrix.scale if transposed else matrix.scale[:, None])


def disagreement(weights: CudaWeights, prediction: np.ndarray, expected: tuple[np.ndarray, np.ndarray]) -> str:
    """ "" if a prediction is what plain torch computes, but for rounding; else what is wrong with it."""
    values, scale = expected
    error = float((np.abs(prediction - values) / np.maximum(scale, 1e-30)).max())
    if error <= _BOUNDS.get(weights.dtype, _BOUND):  # not for NaN
        return ""
    return f"its kernels do not compute what plain torch does: off by {error:.2g} of what a prediction typically is"
