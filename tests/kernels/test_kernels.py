"""Embedding, linear, head and discrete-encoder kernels against plain torch in float64."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from helpers.kernel_cases import (
    CACHE_DTYPES,
    DEVICE,
    FLOAT32,
    HALVES,
    HAS_GPU,
    INT8,
    WEIGHT_DTYPES,
    Random,
    addresses,
    agrees,
    coarsest,
    int32,
    poisoned,
)

from jat_engine.backends.cuda.packing import pad_features
from jat_engine.kernels import discrete_encoder, embedding, head, linear
from jat_engine.kernels.launch import PAGE_SIZE, compute_dtype
from jat_engine.kernels.norm import layer_norm
from jat_engine.reference import layer_norm as layer_norm_reference

pytestmark = [pytest.mark.gpu] if HAS_GPU else []

_PAGES = 9


@pytest.mark.parametrize("hidden", [64, 160])
def test_embedding(hidden: int) -> None:
    """Finished rows, encoders of 1, 63 and 377 inputs, and padding rows in the middle and at the end."""
    random = Random()
    encoders = [random.normal(size, hidden) for size in (1, 63, 377)]
    finished = random.normal(hidden)
    sources = [encoders[0], None, finished, encoders[2], encoders[1], None]
    sizes = int32(1, 0, 0, 377, 63, 5)
    starts = int32(440, 10**9, 10**9, 63, 0, 10**9)
    values, bias, table = random.normal(441), random.normal(hidden), random.normal(40, hidden)
    positions = int32(0, 10**6, 39, 7, 8, 10**6)
    pointers = addresses(*sources)
    out = poisoned(6, hidden)
    embedding.embed(out, pointers, sizes, starts, values, bias, table, positions)
    memory = {int(pointer): s.double() for pointer, s in zip(pointers, sources, strict=True) if s is not None}
    agrees(
        out,
        lambda *floats: embedding.embed_reference(pointers.tolist(), memory, starts, *floats, positions),
        values,
        bias,
        table,
        dtype=torch.float32,
    )
    assert (out[[1, 5]] == 0).all()


@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize(
    ("rows", "hidden", "outputs"),
    [(1, 64, 256), (3, 160, 72), (16, 48, 40), (17, 64, 600), (70, 272, 130), (130, 128, 256), (300, 64, 130)],
)
@pytest.mark.parametrize("gelu", [False, True])
def test_norm_linear(dtype: torch.dtype, rows: int, hidden: int, outputs: int, gelu: bool) -> None:
    """Normalise within the product and, as the engine does with many rows, by a separate launch."""
    random = Random()
    x, norm_weight, norm_bias = random.normal(rows, hidden), random.normal(hidden), random.normal(hidden)
    x += 30  # the variance is that of centred values
    weight, scale = random.weight(dtype, outputs, hidden)
    bias = random.normal(outputs) if gelu else None
    out = poisoned(rows, outputs, dtype=compute_dtype(dtype))
    normed = poisoned(rows, hidden, dtype=compute_dtype(dtype))
    linear.norm_linear(x, norm_weight, norm_bias, weight, scale, bias, out, gelu=gelu, normed=normed)
    x -= x.mean(1, keepdim=True)  # LayerNorm removes it, and half precisions could not hold it
    agrees(out, linear.norm_linear_reference, x, norm_weight, norm_bias, weight, scale, bias, gelu, dtype=dtype)


@pytest.mark.parametrize(("rows", "hidden"), [(1, 64), (5, 160), (33, 1100), (1026, 48)])
def test_layer_norm(rows: int, hidden: int) -> None:
    random = Random()
    x, weight, bias = random.normal(rows, hidden) + 30, random.normal(hidden), random.normal(hidden)
    out = poisoned(rows, hidden)
    layer_norm(x, weight, bias, out)
    agrees(out, layer_norm_reference, x, weight, bias, dtype=torch.float32)


@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize("cache", CACHE_DTYPES)
@pytest.mark.parametrize(("rows", "heads", "head_dim"), [(1, 4, 16), (3, 2, 80), (19, 3, 64), (130, 2, 64)])
def test_norm_qkv(dtype: torch.dtype, cache: torch.dtype, rows: int, heads: int, head_dim: int) -> None:
    """Keys and values are written to their slots and nowhere else; slot -1 writes nothing."""
    random = Random()
    hidden = heads * head_dim
    x, norm_weight, norm_bias = random.normal(rows, hidden), random.normal(hidden), random.normal(hidden)
    weight, scale = random.weight(dtype, 3 * hidden, hidden)
    last = _PAGES * PAGE_SIZE - 1
    slots = torch.cat([int32(last), random.permutation(last)])[:rows]
    if rows > 1:
        slots[1] = -1
    q, kv_layer = poisoned(rows, hidden), poisoned(_PAGES, 2, heads, PAGE_SIZE, head_dim, dtype=cache)
    normed = poisoned(rows, hidden, dtype=compute_dtype(dtype))
    linear.norm_qkv(x, norm_weight, norm_bias, weight, scale, q, kv_layer, slots, normed=normed)

    def q_and_kept(*tensors: torch.Tensor) -> torch.Tensor:
        *inputs, scales = tensors
        empty = poisoned(_PAGES, 2, heads, PAGE_SIZE, head_dim, dtype=torch.float64)
        q, pages = linear.norm_qkv_reference(*inputs, scales, empty, slots)
        return torch.cat([q.flatten().double(), pages[~pages.isnan()]])

    written = ~poisoned_like_reference(slots, heads, head_dim)
    assert (kv_layer.isnan() == ~written).all()
    got = torch.cat([q.flatten().double(), kv_layer[written].double()])
    agrees(got, q_and_kept, x, norm_weight, norm_bias, weight, scale, dtype=coarsest(dtype, cache))


def poisoned_like_reference(slots: torch.Tensor, heads: int, head_dim: int) -> torch.Tensor:
    """Return True for each element of [_PAGES, 2, heads, PAGE_SIZE, head_dim] that no row of `slots` writes."""
    free = torch.ones(_PAGES, PAGE_SIZE, dtype=torch.bool, device=DEVICE)
    kept = slots[slots >= 0].long()
    free[kept // PAGE_SIZE, kept % PAGE_SIZE] = False
    return free[:, None, None, :, None].expand(_PAGES, 2, heads, PAGE_SIZE, head_dim)


@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize(
    ("rows", "inputs", "hidden"), [(1, 256, 64), (3, 72, 160), (16, 48, 40), (33, 300, 64), (260, 128, 128)]
)
def test_linear_residual(dtype: torch.dtype, rows: int, inputs: int, hidden: int) -> None:
    random = Random()
    a = random.normal(rows, inputs, dtype=compute_dtype(dtype))
    weight, scale = random.weight(dtype, hidden, inputs)
    bias, x = random.normal(hidden), random.normal(rows, hidden)
    out = x.clone()
    linear.linear_residual(a, weight, scale, bias, out)
    agrees(out, linear.linear_residual_reference, a, weight, scale, bias, x, dtype=dtype)


@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize(
    ("rows", "inputs", "hidden"), [(17, 256, 64), (70, 3072, 40), (130, 3072, 128), (130, 768, 96), (300, 1088, 64)]
)
def test_sums_that_are_added_later(dtype: torch.dtype, rows: int, inputs: int, hidden: int) -> None:
    """Programs that share inputs leave x alone; the next layer adds their sums, also where x is normalised."""
    parts = linear.num_partials(rows, hidden, inputs, dtype)
    if parts == 1:
        pytest.skip("programs do not share inputs of this size")
    random = Random()
    a = random.normal(rows, inputs, dtype=compute_dtype(dtype))
    weight, scale = random.weight(dtype, hidden, inputs)
    bias, x = random.normal(hidden), random.normal(rows, hidden)
    out, partial = x.clone(), poisoned(parts, rows, hidden)
    linear.linear_residual(a, weight, scale, bias, out, partial=partial)
    assert (out == x).all()

    ones, zeros = torch.ones(hidden, device=DEVICE), torch.zeros(hidden, device=DEVICE)
    normed, inner = poisoned(rows, hidden, dtype=compute_dtype(dtype)), poisoned(rows, 8, dtype=compute_dtype(dtype))
    next_weight, next_scale = random.weight(dtype, 8, hidden)
    linear.norm_linear(
        out, ones, zeros, next_weight, next_scale, None, inner, gelu=False, normed=normed, partial=partial
    )
    agrees(out, linear.linear_residual_reference, a, weight, scale, bias, x, dtype=dtype)
    ordered = x + partial[0]
    for part in partial[1:]:
        ordered += part
    assert (out == ordered).all()  # in order, so it repeats bit by bit
    agrees(inner, linear.norm_linear_reference, out, ones, zeros, next_weight, next_scale, None, False, dtype=dtype)


def test_partial_sums_need_room_for_all_parts() -> None:
    random = Random()
    x, norm = random.normal(17, 64), random.normal(64)
    with pytest.raises(
        ValueError, match=r"partial: expected shape \(.*, 17, 64\), got \(9, 17, 64\)|where `num_partials` is 1"
    ):
        linear.linear_residual(x, random.normal(64, 64), None, norm, x, partial=poisoned(9, 17, 64))


@pytest.mark.parametrize("capacity", [19, 377, 700])
def test_head(capacity: int) -> None:
    """Sessions with and without bias and noise, padding in the middle and at the end.

    Sizes are 1 output and as many as there is room for.
    """
    random = Random(capacity)
    hidden = 160
    sizes = [1, capacity, 0, 18, capacity - 1, 0]
    query_start = int32(0, 3, 4, 4, 6, 7, 7)
    heads = [(random.normal(n, hidden, scale=0.1), random.normal(n) if i % 2 else None) for i, n in enumerate(sizes)]
    x, norm_weight, norm_bias = random.normal(9, hidden), random.normal(hidden), random.normal(hidden)
    log_noise, has_noise = random.normal(6, capacity, scale=3), int32(1, 1, 1, 0, 1, 0)
    log_noise[3] = torch.nan  # not read
    out, choice, finite = poisoned(6, capacity), int32(*[-7] * 6), int32(*[-7] * 6)
    partial = random.normal(2, 9, hidden)  # of x, not added yet
    head.head(
        x - partial[0] - partial[1], norm_weight, norm_bias, query_start, addresses(*[weight for weight, _ in heads]),
        addresses(*[bias for _, bias in heads]), int32(*sizes), log_noise, has_noise, out, choice, finite,
        partial=partial,
    )  # fmt: skip
    expected = head.head_reference(
        x.double(), norm_weight.double(), norm_bias.double(), query_start, heads, log_noise, has_noise
    )
    for session, answer in enumerate(expected):
        if answer is None:
            assert out[session].isnan().all()
            assert (choice[session], finite[session]) == (-7, -7)
            continue
        values, best, is_finite = answer
        torch.testing.assert_close(out[session, : sizes[session]].double(), values, rtol=1e-5, atol=1e-5)
        assert out[session, sizes[session] :].isnan().all()
        assert (choice[session], finite[session]) == (best, is_finite)


@pytest.mark.parametrize("capacity", [40, 600])
@pytest.mark.parametrize(
    ("biases", "choice", "finite"),
    [
        ({7: 5.0, 33: 5.0, 39: 5.0}, 7, 1),  # equals: the lowest
        ({7: float("nan"), 33: 5.0}, 33, 0),
        ({7: float("inf")}, 7, 0),
        ({n: float("nan") for n in range(40)}, 0, 0),
        ({39: 1e-3}, 39, 1),
    ],
    ids=["equal", "NaN", "infinity", "all NaN", "last"],
)
def test_head_choice(capacity: int, biases: dict[int, float], choice: int, finite: int) -> None:
    bias = torch.zeros(40, device=DEVICE)
    for n, value in biases.items():
        bias[n] = value
    weight, ones = torch.zeros(40, 64, device=DEVICE), torch.ones(64, device=DEVICE)
    got = int32(-7), int32(-7)
    head.head(
        Random().normal(1, 64), ones, ones, int32(0, 1), addresses(weight), addresses(bias), int32(40),
        poisoned(1, capacity), int32(0), poisoned(1, capacity), *got,
    )  # fmt: skip
    assert (int(got[0]), int(got[1])) == (choice, finite)


@pytest.mark.parametrize("dtype", [FLOAT32, INT8, *HALVES])
@pytest.mark.parametrize(("hidden", "features", "count"), [(64, 16, 3), (160, 32, 12), (64, 16, 18), (48, 16, 70)])
def test_discrete_encoder(dtype: torch.dtype, hidden: int, features: int, count: int) -> None:
    """Two of the observations are padding; their tokens are out of range."""
    random = Random()
    length = 212
    tokens = random.integers(0, 500, count, length)
    table = random.normal(500, features, dtype=compute_dtype(dtype))
    rewards, bias = random.normal(count), random.normal(hidden - 1)
    weight, scale = random.weight(dtype, hidden - 1, length * features)
    rows = poisoned(count, hidden)
    padding = [1, count - 1]
    targets = addresses(*[None if d in padding else rows[d] for d in range(count)])
    tokens[padding] = 2**30
    discrete_encoder.encode_discrete(tokens, rewards, targets, table, weight, scale, bias)
    used = torch.tensor([d not in padding for d in range(count)], device=DEVICE)
    assert rows[~used].isnan().all()
    assert (rows[used, -1] == rewards[used]).all()
    reference = discrete_encoder.encode_discrete_reference
    agrees(rows[used], reference, tokens[used], rewards[used], table, weight, scale, bias, dtype=dtype)


def test_padded_features_encode_the_same() -> None:
    """Two features a token are padded to 16; without that they are refused."""
    random = Random()
    tokens, rewards = random.integers(0, 9, 3, 5), random.normal(3)
    table, weight, bias = random.normal(9, 2), random.normal(31, 10), random.normal(31)
    rows = poisoned(3, 32)
    targets = addresses(*rows)
    with pytest.raises(ValueError, match=r"table: expected 16, 32, 64, .*, got 2"):
        discrete_encoder.encode_discrete(tokens, rewards, targets, table, weight, None, bias)
    padded = [t.contiguous() for t in pad_features(table, weight)]
    discrete_encoder.encode_discrete(tokens, rewards, targets, *padded, None, bias)
    reference = discrete_encoder.encode_discrete_reference
    agrees(rows, reference, tokens, rewards, table, weight, None, bias, dtype=torch.float32)


def test_wrappers_name_what_is_wrong() -> None:
    """Wrong shapes, dtypes and strides are refused before a launch, and arguments stay unchanged."""
    random = Random()
    x, norm, weight, out = random.normal(2, 64), random.normal(64), random.normal(32, 64), poisoned(2, 32)

    def run(**changes: torch.Tensor | None) -> None:
        arguments = {
            "x": x,
            "norm_weight": norm,
            "norm_bias": norm,
            "weight": weight,
            "scale": None,
            "bias": None,
            "out": out,
            "normed": poisoned(2, 64),
        }
        linear.norm_linear(**{**arguments, **changes}, gelu=False)

    for changes, message in [
        ({"norm_bias": norm[:63]}, r"norm_bias: expected shape \(64,\), got \(63,\)"),
        ({"x": x.double()}, "x: expected float32, got float64"),
        ({"weight": random.normal(64, 32).T}, "weight: expected a contiguous tensor"),
        ({"weight": weight.to(torch.int8)}, "scale: expected one per output for int8 weights"),
        ({"scale": norm[:32]}, "scale: expected one per output for int8 weights and none otherwise"),
        ({"normed": poisoned(3, 64)}, r"normed: expected shape \(2, 64\), got \(3, 64\)"),
        ({"out": poisoned(2, 33)}, r"out: expected shape \(2, 32\), got \(2, 33\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            run(**changes)
    assert out.isnan().all()
    run()
    assert out.isfinite().all()


@pytest.mark.parametrize("dtype", HALVES)
def test_tiles_of_many_rows(dtype: torch.dtype) -> None:
    """More rows than any bucket of small tiles has, the last block of rows cut short."""
    random = Random()
    a, weight = random.normal(1030, 192, dtype=dtype), random.normal(320, 192, dtype=dtype)
    bias, x = random.normal(320), random.normal(1030, 320)
    out = x.clone()
    linear.linear_residual(a, weight, None, bias, out)
    agrees(out, linear.linear_residual_reference, a, weight, None, bias, x, dtype=dtype)
