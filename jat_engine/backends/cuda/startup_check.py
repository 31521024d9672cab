"""Startup check: compare steps on each CUDA path with plain PyTorch, to catch a faulty GPU, driver or compiler.

Each graph computes such a step when it is captured, with all agents that it takes: other sizes are other kernels, and a
fault may be one of late rows only. A few agents are different, all others are copies of them, so that the check needs
few pages of the KV cache and a small reference. Its pages are its own: it may run while agents use theirs.
"""

from __future__ import annotations

from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from ...config import FRAME_SHAPE
from ...observation import ActionSpace, Observations
from ...reference import attention, block, encode_continuous, key_ages, layer_norm, linear
from ..base import PAGE_SIZE, STEP_TOKENS, Group, LastStep
from . import encoders, parts
from .kv_pages import KVPages, fill
from .packing import Matrix
from .weights import CudaWeights

NUM_DIFFERENT = 7
"""Agents that differ. Agent i is a copy of agent i % 7, and writes the same keys and values to the same slots. Tiles
are powers of two, so a kernel that takes the rows of another tile takes those of another agent."""

NUM_PAGES = 1 + NUM_DIFFERENT
"""Pages of the check: one that its agents share, and one for each that differs."""

_NUM_ENCODED = 3
"""Images, or rows of integers, that differ."""

_CONTEXT = PAGE_SIZE + 4  # more than a page
_MOST_PREDICTIONS = 32
_BOUNDS = {"float32": 1e-3}
_BOUND = 0.25  # half precisions stay at about 0.02


class StartupCheck:
    """Steps to be computed, and what plain torch computes for them in float64."""

    def __init__(self, weights: CudaWeights, cache: KVPages) -> None:
        """Fill the pages of the check.

        Args:
            weights: of the engine.
            cache: its last `NUM_PAGES` pages belong to the check.
        """
        self._weights = weights
        self._cache = cache
        first = cache.num_pages - NUM_PAGES
        self._pages = np.arange(first, first + NUM_PAGES, dtype=np.int32)
        fill(cache, self._pages)

    def group(self, num_agents: int) -> Group:
        """Return a step in which each agent feeds three continuous tokens behind cached ones."""
        own = _repeated(self._pages[1:], num_agents)
        page_table = np.stack((np.full_like(own, self._pages[0]), own), axis=1)
        context = min(_CONTEXT, self._weights.config.max_position_embeddings - STEP_TOKENS)
        return make_group(self._weights, page_table, context)

    def images(self, num_agents: int) -> Group:
        """Return a first step with images."""
        frames = np.random.default_rng(1).integers(0, 256, (_NUM_ENCODED, *FRAME_SHAPE), dtype=np.uint8)
        frames = _repeated(frames, num_agents)
        return self._first_step(Observations("image", frames, None, [0.0] * num_agents, "image_observation"))

    def integers(self, num_agents: int) -> Group:
        """Return a first step with integers."""
        random, config = np.random.default_rng(2), self._weights.config
        values = random.integers(0, config.vocab_size, (_NUM_ENCODED, config.max_discrete_value))
        rewards = random.standard_normal(_NUM_ENCODED).astype(np.float32)
        values, rewards = _repeated(values, num_agents), _repeated(rewards, num_agents)
        return self._first_step(Observations("discrete", values, None, rewards, "discrete_observation"))

    def _first_step(self, observations: Observations) -> Group:
        count = len(observations.values)
        zeros = [0] * count
        pages = list(_repeated(self._pages[1 : 1 + _NUM_ENCODED], count)[:, None])
        space = ActionSpace("continuous", 1)
        return Group(count, observations, None, space, None, zeros, zeros, [PAGE_SIZE - 1] * count, pages, None)

    def disagreement(self, predictions: np.ndarray) -> str:
        """Return "" if the predictions of `group` [N, A] are torch's but for rounding, else what is wrong with them."""
        expected, scale = (_repeated(rows, len(predictions)) for rows in self._expected)
        return self._judge(predictions, expected, scale)

    def encoder_disagreement(self, group: Group, embeddings: Tensor) -> str:
        """Return the same for embeddings [N, H] of `images` or `integers`."""
        different = parts.split([group], _NUM_ENCODED)[0][0]
        expected = _repeated(encoders.encode(self._weights, different).cpu().numpy(), group.num_agents)
        return self._judge(embeddings.cpu().numpy(), expected, np.sqrt((expected**2).mean(axis=1, keepdims=True)))

    @cached_property
    def _expected(self) -> tuple[np.ndarray, np.ndarray]:
        return reference(self._weights, self._cache, self.group(NUM_DIFFERENT))

    def _judge(self, values: np.ndarray, expected: np.ndarray, scale: np.ndarray) -> str:
        return judge(values, expected, scale, error_bound(self._weights, self._cache))


def error_bound(weights: CudaWeights, cache: KVPages) -> float:
    """Return by how much a result may be off, relative to what it typically is."""
    # The reference does not quantise the new tokens.
    return _BOUNDS.get(weights.dtype, _BOUND) if cache.scales is None else _BOUND


def judge(values: np.ndarray, expected: np.ndarray, scale: np.ndarray, bound: float) -> str:
    """Return "" if results are right but for rounding, else what is wrong with them.

    Args:
        values: results of kernels.
        expected: of plain torch in float64.
        scale: what a result typically is.
        bound: see `error_bound`.
    """
    error = float((np.abs(values - expected) / np.maximum(scale, 1e-30)).max(initial=0.0))
    if error <= bound:  # not for NaN
        return ""
    return f"its kernels do not compute what plain torch does: off by {error:.2g} of what a result typically is"


def _repeated(rows: np.ndarray, count: int) -> np.ndarray:
    """Return `count` rows: those given, again and again."""
    return rows[np.arange(count) % len(rows)]


def make_group(weights: CudaWeights, page_table: np.ndarray, context: int) -> Group:
    """Return a step in which each agent feeds three continuous tokens; agents i and i + NUM_DIFFERENT the same.

    Args:
        weights: of the engine.
        page_table: [N, pages].
        context: cached tokens of each agent.
    """
    count = len(page_table)
    different = [np.random.default_rng(agent).standard_normal(12, np.float32) for agent in range(NUM_DIFFERENT)]
    numbers = _repeated(np.stack(different), count)
    before, now = (
        Observations("continuous", values[:, :4], None, values[:, 4], "continuous_observation")
        for values in (numbers[:, :5], numbers[:, 5:10])
    )
    last = LastStep(before, None, ActionSpace("continuous", 2), numbers[:, 10:])
    size = min(_MOST_PREDICTIONS, weights.config.max_continuous_size)
    again, contexts, offsets = (np.full(count, number) for number in (2, context, 0))
    return Group(count, now, None, ActionSpace("continuous", size), None, again, contexts, offsets, page_table, last)


@torch.no_grad()
def reference(weights: CudaWeights, cache: KVPages, group: Group) -> tuple[np.ndarray, np.ndarray]:
    """Compute `make_group`'s step in float64, whatever the process has set for products in float32.

    Returns:
        The predictions and the typical size of a product of the head, both float64 [N, A].
    """
    last, observations = group.last, group.observations
    assert last is not None, "the group feeds tokens again"
    before, now = (np.column_stack((seen.values, seen.rewards)) for seen in (last.observations, observations))
    context = int(group.context_lens[0])
    rows = []
    for agent in range(group.num_agents):
        for values in (before[agent], last.actions[agent], now[agent]):
            values_X = torch.from_numpy(values).to(weights.device).double()
            encoder_XH = weights.continuous_encoder(values.size).double()
            rows.append(encode_continuous(values_X, encoder_XH, weights.continuous_bias.double()))
    num_tokens = len(rows) // group.num_agents
    position_TH = weights.position_table[context : context + num_tokens].double()
    x_TH = torch.stack(rows) + position_TH.repeat(group.num_agents, 1)

    tables = torch.from_numpy(np.asarray(group.page_table)).long().to(weights.device)
    for index, layer in enumerate(weights.layers):
        # [N, pages, 2, heads, 16, head_dim] -> keys and values [N, 2, K, heads, head_dim], those of the context
        cached = cache.read(index, tables).double().permute(0, 2, 1, 4, 3, 5).flatten(2, 3)[:, :, :context]
        doubled = layer.map(lambda matrix: matrix, Tensor.double)
        x_TH = block(x_TH, doubled, weights.config.num_heads, partial(_attend, cached, layer.window), multiply)

    norm_weight, norm_bias = weights.final_norm
    hidden_NH = layer_norm(x_TH[num_tokens - 1 :: num_tokens], norm_weight.double(), norm_bias.double())
    rows_AH, bias_A = weights.head(group.space)
    prediction_NA = linear(hidden_NH, rows_AH.double(), None if bias_A is None else bias_A.double())
    scale_NA = rows_AH.double().norm(dim=1) * hidden_NH.norm(dim=1, keepdim=True) / hidden_NH.shape[1] ** 0.5
    return prediction_NA.cpu().numpy(), scale_NA.cpu().numpy()


def _attend(cached: Tensor, window: int, q_TND: Tensor, k_TND: Tensor, v_TND: Tensor) -> Tensor:
    """Return the attention of each agent over its own keys. cached: [agents, 2, K, heads, head_dim]."""
    tokens = len(q_TND) // len(cached)
    attended = []
    for own, *new in zip(cached, *(x_TND.split(tokens) for x_TND in (q_TND, k_TND, v_TND)), strict=True):
        q, k, v = new
        k_KND, v_KND = torch.cat((own, torch.stack((k, v))), dim=1)
        attended.append(attention(q, k_KND, v_KND, key_ages(tokens, len(k_KND), q.device), window))
    return torch.cat(attended)


def multiply(x_TI: Tensor, matrix: Matrix, bias_O: Tensor | None) -> Tensor:
    """Return x W^T + b, all in float64."""
    return linear(x_TI, matrix.to_float().double(), bias_O)
