"""Count the bytes and operations of an agent's step, and of a text's, from a configuration alone.

An agent's step reads the weights of the blocks once, whatever the number of agents, and every agent's keys and values.
What is left out is small: the continuous encoder, the embeddings and the rows of the head (a tenth of a megabyte each).
A text's step reads the whole head, too.
"""

from __future__ import annotations

import math

from ..backends.base import STEP_TOKENS
from ..checkpoint.weights import parameter_shapes
from ..config import JatConfig

WEIGHT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "int4": 4.5 / 8}
"""dtype -> bytes of a weight; in int4 with one byte each for scale and minimum of 32."""

ROW_BYTES = {"int8": 8, "int4": 4}
"""dtype -> bytes of a row besides its weights: a scale and, in int8, the sum that corrects for unsigned activations."""

CACHE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 2, "int4": 2}
"""dtype of the weights -> bytes of a number in the KV cache."""

_ENCODERS = {"babyai": "multi_discrete_encoder.4.weight", "atari": "image_encoder.module.fc.weight"}
"""Modality -> its encoder's large matrix; the continuous one is folded to the observation's size."""


def matrix_elements(config: JatConfig) -> int:
    """Return the number of weights in the matrices of all blocks."""
    hidden = config.hidden_size
    inner = config.intermediate_size or 4 * hidden
    return int(config.num_layers * (4 * hidden**2 + 2 * hidden * inner))


def matrix_bytes(config: JatConfig, dtype: str) -> int:
    """Return the bytes of the blocks' matrices, without what is small."""
    return int(matrix_elements(config) * WEIGHT_BYTES[dtype])


def block_bytes(config: JatConfig, dtype: str) -> int:
    """Return the bytes of the blocks' weights, with `ROW_BYTES`; norms and biases are float32."""
    hidden = config.hidden_size
    inner = config.intermediate_size or 4 * hidden
    vectors = 4 * (6 * hidden + inner)
    scales = ROW_BYTES.get(dtype, 0) * (5 * hidden + inner)
    return int(matrix_bytes(config, dtype) + config.num_layers * (vectors + scales))


def bits_a_weight(config: JatConfig, dtype: str) -> float:
    """Return the bits of a weight in the blocks' matrices, with what else the blocks read: scales, norms, biases."""
    return 8 * block_bytes(config, dtype) / matrix_elements(config)


def encoder_bytes(config: JatConfig, kind: str, dtype: str) -> int:
    """Return the bytes of the large matrix of an observation's encoder. kind: a key of `workload.SPACES`."""
    if kind not in _ENCODERS:
        return 0
    return int(math.prod(parameter_shapes(config)[_ENCODERS[kind]]) * WEIGHT_BYTES[dtype])


def seen_tokens(config: JatConfig, cached_tokens: int) -> int:
    """Return the cached tokens that a step's queries see, summed over the layers.

    Global layers see all of them. A local layer's first query sees itself and `window_size - 1` older ones.
    """
    local = min(cached_tokens, config.window_size - 1)
    return sum(local if kind == "local" else cached_tokens for kind in config.attention_layers)


def cache_bytes(config: JatConfig, cached_tokens: int, dtype: str) -> int:
    """Return the bytes of cached keys and values that a step of one agent reads. dtype: of the weights."""
    return int(seen_tokens(config, cached_tokens) * 2 * config.hidden_size * CACHE_BYTES[dtype])


def step_bytes(config: JatConfig, kind: str, dtype: str, cached_tokens: int, num_agents: int = 1) -> int:
    """Return the bytes that a step must read: weights once, keys and values for every agent.

    Args:
        kind: of the observations, a key of `workload.SPACES`.
        dtype: of the weights.
        cached_tokens: of each agent.
    """
    weights = block_bytes(config, dtype) + encoder_bytes(config, kind, dtype)
    return weights + num_agents * cache_bytes(config, cached_tokens, dtype)


def head_bytes(config: JatConfig, dtype: str) -> int:
    """Return the bytes of the head of texts, with `ROW_BYTES`."""
    return int(config.vocab_size * (config.hidden_size * WEIGHT_BYTES[dtype] + ROW_BYTES.get(dtype, 0)))


def text_step_bytes(config: JatConfig, dtype: str, cached_tokens: int, num_texts: int = 1) -> int:
    """Return the bytes that the next token of texts must read: blocks and head once, keys and values for every text.

    Args:
        config: of the model.
        dtype: of the weights.
        cached_tokens: of each text.
        num_texts: that are written together.
    """
    caches = num_texts * cache_bytes(config, cached_tokens, dtype)
    return block_bytes(config, dtype) + head_bytes(config, dtype) + caches


def prompt_operations(config: JatConfig, num_tokens: int, num_texts: int = 1) -> int:
    """Return the multiplications and additions up to the first token of texts; of the head for the last row alone.

    Args:
        config: of the model.
        num_tokens: of each prompt.
        num_texts: prompts.
    """
    products = 2 * num_tokens * matrix_elements(config)
    keys = sum(
        sum(min(row + 1, config.window_size) if kind == "local" else row + 1 for row in range(num_tokens))
        for kind in config.attention_layers
    )
    return num_texts * (products + 4 * config.hidden_size * keys + 2 * config.vocab_size * config.hidden_size)


def step_operations(config: JatConfig, cached_tokens: int, num_agents: int = 1, rows: int = STEP_TOKENS) -> int:
    """Return the multiplications and additions of a step's blocks: their matrices, and attention to cached tokens.

    Args:
        cached_tokens: of each agent.
        rows: tokens that are computed for each agent; by default those of a full window: s_{t-1}, a_{t-1}, s_t.
    """
    products = 2 * rows * matrix_elements(config)
    attention = 4 * rows * config.hidden_size * seen_tokens(config, cached_tokens)
    return num_agents * (products + attention)
