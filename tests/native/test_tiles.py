"""Products of a step are computed in tiles of tokens, whose sizes depend on the batch; results do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.engines import INSTRUCTION_SETS, NATIVE, native

from jat_engine.reference import quantize_int8

pytestmark = native

H, HEADS, MOST = 96, 3, 19
"""Three panels of rows; tiles have up to 8 tokens."""


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).normal(0, 0.2, shape).astype(np.float32)


def linear(dtype: str, rows: int, columns: int) -> Any:
    made = NATIVE.Linear(dtype, rows, columns, True)
    made.pack_rows(0, numbers(rows, columns))
    made.set_bias(numbers(rows))
    return made


def model(dtype: str, instruction_set: str) -> Any:
    made = NATIVE.Model(H, HEADS, "float32", numbers(8, H), 1, 50, instruction_set)
    layer = [numbers(H), numbers(H), linear(dtype, 3 * H, H), linear(dtype, H, H), numbers(H), numbers(H)]
    for _ in range(2):  # of the last layer only the last token is computed
        made.add_layer(*layer, linear(dtype, 4 * H, H), linear(dtype, H, 4 * H), 8)
    made.set_final_norm(numbers(H), numbers(H))
    return made


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_any_number_of_tokens(dtype: str, instruction_set: str) -> None:
    """A session's predictions are the same bits in every batch, wherever it is in it."""
    decoder, head, inputs = model(dtype, instruction_set), linear(dtype, 5, H), numbers(MOST, H)
    pool = np.zeros(MOST * decoder.page_bytes, np.uint8)

    def predict(sessions: list[int]) -> np.ndarray:
        count = len(sessions)
        tables = [np.array([session], np.int32) for session in sessions]
        tokens = [inputs[session] for session in sessions]
        heads = [head] * count
        predictions = decoder.decode(tokens, [1] * count, [0] * count, [0] * count, tables, pool, heads)
        return np.stack([values for values, _ in predictions])

    alone = np.concatenate([predict([session]) for session in range(MOST)])
    assert len(np.unique(alone, axis=0)) == MOST
    for count in range(2, MOST + 1):
        sessions = list(range(MOST - count, MOST))[::-1]
        np.testing.assert_array_equal(predict(sessions), alone[sessions])


def test_int8_is_packed_as_the_reference_rounds() -> None:
    """For every row the same scale and the same codes, also of weights half-way between two codes."""
    largest, x = np.abs(numbers(200, 1)), numbers(H)
    weight = np.concatenate([largest, largest * (np.arange(1, H, dtype=np.float32) + 0.5) / 127], axis=1)
    packed, from_codes = (NATIVE.Linear("int8", len(weight), H, False) for _ in range(2))
    packed.pack_rows(0, weight)
    from_codes.pack_bytes(0, *(part.numpy() for part in quantize_int8(torch.from_numpy(weight))))
    made = model("int8", "auto")
    assert np.array_equal(made.embed(packed, x), made.embed(from_codes, x))
