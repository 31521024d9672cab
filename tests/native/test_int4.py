"""Weights in 4 bits: rounding, and products with them, compared with float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

_cpu = pytest.importorskip("jat_engine._cpu", reason="the native module is not built")

HIDDEN, ROWS = 96, 40


def weights(columns: int, rows: int = ROWS) -> np.ndarray:
    rng = np.random.default_rng(columns)
    return rng.standard_normal((rows, columns)).astype(np.float32) * rng.uniform(0.01, 3, (rows, 1)).astype(np.float32)


def values(codes: np.ndarray, scales: np.ndarray, minima: np.ndarray, row_scales: np.ndarray) -> np.ndarray:
    """Return the weights [rows, columns] that the codes stand for, in float64."""
    columns = codes.shape[1]
    wide_scales, wide_minima = (
        np.repeat(x, _cpu.INT4_COLUMNS, axis=1)[:, :columns].astype(np.float64) for x in (scales, minima)
    )
    whole = wide_scales * codes - _cpu.INT4_MINIMUM_UNIT * wide_minima
    return row_scales[:, None].astype(np.float64) * whole


def model(instruction_set: str = "auto") -> Any:
    made = _cpu.Model(HIDDEN, 4, "bfloat16", np.zeros((16, HIDDEN), np.float32), 1, 100, instruction_set)
    norms = {f"norm{i}_{part}": np.ones(HIDDEN, np.float32) for i in (1, 2) for part in ("weight", "bias")}
    shapes = {"qkv": (3, 1), "out_proj": (1, 1), "mlp_in": (4, 1), "mlp_out": (1, 4)}
    layers = {name: _cpu.Linear("int4", rows * HIDDEN, inner * HIDDEN, False) for name, (rows, inner) in shapes.items()}
    made.add_layer(**norms, **layers, window=8)
    made.set_final_norm(np.ones(HIDDEN, np.float32), np.zeros(HIDDEN, np.float32))
    return made


@pytest.mark.parametrize("columns", [1, 31, 32, 33, 96, 100])
def test_rounding_is_to_the_nearest_of_16_values(columns: int) -> None:
    weight = weights(columns)
    codes, scales, minima, row_scales = _cpu.round_int4(weight)
    assert codes.max() <= 15
    step = np.repeat(scales, 32, axis=1)[:, :columns] * row_scales[:, None]
    error = np.abs(values(codes, scales, minima, row_scales) - weight)
    inside = (codes > 0) & (codes < 15)  # others may be clipped
    assert (error[inside] <= 0.5001 * step[inside]).all()
    assert np.sqrt((error**2).sum() / (weight**2).sum()) < 0.1


def test_the_chosen_clip_is_no_worse_than_the_whole_range() -> None:
    weight = weights(32)
    weight[:, 5] *= 8  # one far from the others
    _, _, _, row_scales = _cpu.round_int4(weight)
    fitted = _cpu.fit_int4(weight, row_scales)
    low, high = np.minimum(weight.min(axis=1), 0), np.maximum(weight.max(axis=1), 0)
    whole = np.rint((high - low) / 15 / row_scales), np.rint(-low / 16 / row_scales)

    def squared_error(scales: np.ndarray, minima: np.ndarray) -> np.ndarray:
        step, offset = (scales * row_scales)[:, None], (16.0 * minima * row_scales)[:, None]
        codes = np.clip(np.rint((weight + offset) / step), 0, 15)
        return ((codes * step - offset - weight) ** 2).sum(axis=1)

    clipped, unclipped = squared_error(*(x.astype(np.float64) for x in fitted)), squared_error(*whole)
    assert (clipped <= unclipped * 1.0001).all()
    assert clipped.sum() < 0.99 * unclipped.sum()


@pytest.mark.parametrize("row", [np.zeros(64), np.full(64, 1e-38), np.full(64, 3e38), -np.full(64, 3e38)])
def test_extreme_rows_stay_finite(row: np.ndarray) -> None:
    weight = np.stack([row, np.linspace(-1, 1, 64)]).astype(np.float32)
    codes, scales, minima, row_scales = _cpu.round_int4(weight)
    assert np.abs(values(codes, scales, minima, row_scales) - weight).max() <= 0.07 * np.abs(weight).max()
    assert np.isfinite(row_scales).all()


@pytest.mark.parametrize("instruction_set", _cpu.instruction_sets())
@pytest.mark.parametrize("columns", [7, 32, 64, 100, 3072])
def test_product(columns: int, instruction_set: str) -> None:
    weight, bias = weights(columns), np.random.default_rng(1).standard_normal(ROWS).astype(np.float32)
    rounded = _cpu.round_int4(weight)
    packed, from_codes = (_cpu.Linear("int4", ROWS, columns, True) for _ in range(2))
    packed.pack_rows(0, weight)
    for first in range(0, ROWS, 16):
        from_codes.pack_codes(first, *(np.ascontiguousarray(x[first : first + 16]) for x in rounded))
    x = np.random.default_rng(2).standard_normal(columns).astype(np.float32)
    scale = np.abs(x).max() / np.float32(127)
    expected = values(*rounded) @ (np.rint(x / scale).astype(np.float64) * scale) + bias

    results = []
    for linear in (packed, from_codes):
        linear.set_bias(bias)
        results.append(model(instruction_set).embed(linear, x)[:ROWS])
    assert np.array_equal(*results)
    assert np.abs(results[0] - expected).max() <= 1e-5 * np.abs(expected).max()


def test_largest_sums_do_not_overflow() -> None:
    """All codes 15 and all activations 127 are the most that a group can add up to."""
    ones = np.ones((32, 4096), np.float32)
    for instruction_set in _cpu.instruction_sets():
        linear = _cpu.Linear("int4", 32, 4096, False)
        linear.pack_rows(0, ones)
        for sign in (1, -1):
            got = model(instruction_set).embed(linear, sign * ones[0])[:32]
            assert np.allclose(got, sign * 4096, rtol=1e-2)


def test_bytes_per_weight() -> None:
    assert _cpu.Linear("int4", 768, 768, False).num_bytes * 8 / 768**2 == 4.5 + 32 / 768


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": np.full((2, 64), 16, np.uint8)}, "codes: expected at most 15, got 16"),
        ({"codes": np.zeros((2, 63), np.uint8)}, r"codes: expected \[count, 64\]"),
        ({"first": 39}, "codes: expected rows within the layer's 40, got 2 from 39 on"),
        ({"scales": np.zeros((2, 3), np.uint8)}, "scales: expected 4 numbers, got 6"),
        ({"minima": np.zeros((2, 1), np.uint8)}, "minima: expected 4 numbers, got 2"),
        ({"row_scales": np.zeros(3, np.float32)}, "row_scales: expected 2 numbers, got 3"),
    ],
)
def test_misuse(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "first": 0,
        "codes": np.zeros((2, 64), np.uint8),
        "scales": np.zeros((2, 2), np.uint8),
        "minima": np.zeros((2, 2), np.uint8),
        "row_scales": np.zeros(2, np.float32),
    }
    with pytest.raises(ValueError, match=message):
        _cpu.Linear("int4", ROWS, 64, False).pack_codes(**{**given, **change})
    with pytest.raises(ValueError, match="codes: expected a layer of int4"):
        _cpu.Linear("int8", ROWS, 64, False).pack_codes(**given)
