"""Time each Triton kernel by itself at the published size: microseconds, bytes, share of a copy's rate; and images.

A kernel is launched on as many different copies of its weights or pages as exceed the L2 cache, in one CUDA graph, and
the time divided by the launches: no launch costs, cold weights, the tail of one kernel during the head of the next
only with programmatic dependent launch ("pdl").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jat_engine.backends.base import PAGE_SIZE
from jat_engine.backends.base import STEP_TOKENS as ROWS
from jat_engine.bench.bandwidth import copy_bandwidth, device_seconds

from .section import SectionRun, describe

SHAPES = ((1, "bfloat16"), (8, "bfloat16"), (1024, "bfloat16"), (16, "bfloat16"), (64, "bfloat16"), (1, "int8"))
"""Sessions and dtype, in the order of worth."""
FRAMES = (1, 1024, 16, 64)
INTEGERS = (1, 4, 16, 64, 1024)
"""Observations of integers."""
CONTEXT_LEN = 508
COLD_BYTES = 200 << 20


@dataclass
class Case:
    """A kernel with what it works on.

    Attributes:
        name: of the kernel.
        launch: launches on the copy of a number.
        copies: how many there are.
        num_bytes: moved by one launch.
        each_step: launches in a step.
    """

    name: str
    launch: Callable[..., None]
    copies: int
    num_bytes: int
    each_step: int


def run(section: SectionRun) -> None:
    from jat_engine import JatConfig

    config = JatConfig.from_preset("small")
    bandwidth = copy_bandwidth(torch.device("cuda"))
    section.record("copy bandwidth GB/s", bandwidth / 1e9)
    rows: list[dict[str, Any]] = []
    for sessions, dtype in SHAPES:
        for case in cases(config, sessions, dtype, torch.device("cuda"), CONTEXT_LEN):
            if section.time_left() < 6:
                return
            _record(section, rows, case, sessions, dtype, bandwidth)
        if (sessions, dtype) == SHAPES[0]:
            for count in INTEGERS:
                _record(section, rows, integers(config, count, torch.device("cuda")), count, dtype, bandwidth)
        if (sessions, dtype) == SHAPES[2]:
            for frames in FRAMES:
                _record(section, rows, images(config, frames, torch.device("cuda")), frames, "bfloat16", bandwidth)


def _record(
    section: SectionRun, rows: list[dict[str, Any]], case: Case, sessions: int, dtype: str, bandwidth: float
) -> None:
    row: dict[str, Any] = {"kernel": case.name, "sessions": sessions, "dtype": dtype}
    try:
        row["us"], row["us with pdl"] = measure(case, pdl=False), measure(case, pdl=True)
        row["us a step"] = row["us with pdl"] * case.each_step
        row["MB"] = case.num_bytes / 1e6
        row["GB/s"] = case.num_bytes / row["us with pdl"] / 1e3
        row["share of copy"] = row["GB/s"] * 1e9 / bandwidth
        row["copies"] = case.copies
    except Exception as error:
        row["error"] = describe(error, 3)
    rows.append(row)
    section.record("kernels", rows)
    torch.cuda.empty_cache()


def measure(case: Case, *, pdl: bool) -> float:
    """Return the microseconds of a launch, of many in one graph; with or without programmatic dependent launch."""
    for index in range(case.copies):
        case.launch(index, pdl=pdl)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for index in range(case.copies):
            case.launch(index, pdl=pdl)
    seconds = device_seconds(graph.replay, 60, torch.device("cuda"))
    return float(np.median(seconds)) * 1e6 / case.copies


def images(config: Any, frames: int, device: torch.device) -> Case:
    """Return the image encoder of so many frames, in bfloat16."""
    from jat_engine.kernels.image_encoder import encode_images, make_image_scratch, pack_image_weights
    from jat_engine.model.modules import ImageEncoder

    count = 8 if device.type == "cuda" else 1
    state = {name: value.to(device) for name, value in ImageEncoder(config.hidden_size).state_dict().items()}
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    weights = [pack_image_weights(state, dtype, dtype) for _ in range(count)]
    scratch = make_image_scratch(frames, weights[0])
    pixels = torch.randint(0, 256, (frames, 84, 84, 4), dtype=torch.uint8, device=device)
    rows = torch.zeros(frames, config.hidden_size, device=device)
    targets = rows.data_ptr() + rows.stride(0) * rows.element_size() * torch.arange(frames, device=device)
    return Case(
        "encode_images",
        lambda i, pdl, keep=rows: encode_images(pixels, targets, weights[i], scratch, pdl=pdl),
        count,
        weights[0].num_bytes + pixels.nbytes + rows.nbytes,
        1,
    )


def integers(config: Any, count: int, device: torch.device) -> Case:
    """Return the encoder of so many observations of integers, in bfloat16."""
    from jat_engine.backends.cuda.packing import pad_features
    from jat_engine.kernels.discrete_encoder import encode_discrete

    hidden, length, features, vocab = config.hidden_size, config.max_discrete_value, config.hidden_size // 50, 50257
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    table, weight = pad_features(torch.randn(vocab, features), torch.randn(hidden - 1, length * features) * 0.02)
    table = table.to(device, dtype)
    weights = [weight.to(device, dtype) for _ in range(_copies(2 * weight.numel()) if device.type == "cuda" else 1)]
    bias = torch.zeros(hidden - 1, device=device)
    tokens = torch.randint(0, vocab, (count, length), dtype=torch.int32, device=device)
    rewards, rows = torch.zeros(count, device=device), torch.zeros(count, hidden, device=device)
    targets = rows.data_ptr() + rows.stride(0) * rows.element_size() * torch.arange(count, device=device)
    return Case(
        "encode_discrete",
        lambda i, pdl, keep=rows: encode_discrete(tokens, rewards, targets, table, weights[i], None, bias, pdl=pdl),
        len(weights),
        weights[0].nbytes + tokens.nbytes + tokens.numel() * table[0].nbytes + rows.nbytes,
        1,
    )


def _copies(num_bytes: int, least: int = 12) -> int:
    return max(least, min(96, math.ceil(COLD_BYTES / num_bytes)))


def cases(config: Any, sessions: int, dtype: str, device: torch.device, context_len: int) -> Iterator[Case]:
    """Yield all kernels of a step of `sessions` full windows, three rows each."""
    from jat_engine.kernels.attention import paged_attention
    from jat_engine.kernels.embedding import embed
    from jat_engine.kernels.head import head
    from jat_engine.kernels.linear import linear_residual, norm_linear, norm_qkv
    from jat_engine.kernels.tiles import num_partials

    hidden, heads, layers = config.hidden_size, config.num_heads, config.num_layers
    head_dim, rows = hidden // heads, sessions * ROWS
    weight_dtype = getattr(torch, dtype)
    activation = torch.float32 if dtype == "float32" else torch.bfloat16
    kv_dtype = activation
    if device.type == "cpu":
        activation = torch.float32  # the interpreter's products
    on: dict[str, Any] = {"device": device}

    def weights(outputs: int, inputs: int, scales: int) -> tuple[list[Tensor], list[Tensor | None], int]:
        size = outputs * inputs * weight_dtype.itemsize
        count = _copies(size) if device.type == "cuda" else 2
        if dtype == "int8":
            made = [torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8, **on) for _ in range(count)]
            scale = torch.full((scales,), 1e-3, **on)
            return made, [scale] * count, size + 4 * scales
        made = [(torch.randn(outputs, inputs, **on) * 0.02).to(weight_dtype) for _ in range(count)]
        return made, [None] * count, size

    x = torch.randn(rows, hidden, **on)
    ones, zeros = torch.ones(hidden, **on), torch.zeros(hidden, **on)
    attended = torch.randn(rows, hidden, **on).to(activation)
    inner = torch.zeros(rows, 4 * hidden, dtype=activation, **on)
    inner_bias = torch.zeros(4 * hidden, **on)
    x_bytes = 4 * rows * hidden
    normed = torch.zeros(rows, hidden, dtype=activation, **on)

    # Pages of one layer; every session has its own, in a shuffled order.
    per_session = -(-(context_len + ROWS) // PAGE_SIZE)
    num_pages = sessions * per_session
    layer_bytes = num_pages * 2 * hidden * PAGE_SIZE * kv_dtype.itemsize
    count = _copies(layer_bytes, 4) if device.type == "cuda" else 1
    pages = [(torch.randn(num_pages, 2, heads, PAGE_SIZE, head_dim, **on) * 0.3).to(kv_dtype) for _ in range(count)]
    order = torch.from_numpy(np.random.default_rng(0).permutation(num_pages).astype(np.int32))
    table = order.view(sessions, per_session).to(device)
    query_start = torch.arange(0, rows + 1, ROWS, dtype=torch.int32, **on)
    context_lens = torch.full((sessions,), context_len, dtype=torch.int32, **on)
    start_offsets = torch.zeros(sessions, dtype=torch.int32, **on)
    positions = torch.arange(context_len, context_len + ROWS).repeat(sessions)
    slots = (table.cpu().repeat_interleave(ROWS, 0).gather(1, (positions // PAGE_SIZE)[:, None])[:, 0]).long()
    slot_mapping = (slots * PAGE_SIZE + positions % PAGE_SIZE).to(device, torch.int32)
    q = torch.randn(rows, hidden, **on) * 0.3

    made, scale, size = weights(3 * hidden, hidden, 3 * hidden)
    yield Case(
        "norm_qkv",
        lambda i, pdl, w=made, s=scale: norm_qkv(
            x, ones, zeros, w[i], s[i], q, pages[i % len(pages)], slot_mapping, normed=normed, pdl=pdl
        ),
        len(made),
        size + 2 * x_bytes + 2 * rows * hidden * kv_dtype.itemsize,
        layers,
    )

    for kind, window in (("global", config.max_position_embeddings), ("local", config.window_size)):
        seen = min(context_len + ROWS, window)
        yield Case(
            f"paged_attention, {kind}",
            lambda i, pdl, w=window: paged_attention(
                q,
                pages[i % len(pages)],
                table,
                query_start,
                context_lens,
                start_offsets,
                w,
                attended,
                max_queries=ROWS,
                pdl=pdl,
            ),
            len(pages),
            sessions * seen * 2 * hidden * kv_dtype.itemsize + 2 * x_bytes,
            sum(a == kind for a in config.attention_layers),
        )

    def unadded(inputs: int) -> Tensor | None:
        parts = num_partials(rows, hidden, inputs, weight_dtype)
        return torch.zeros(parts, rows, hidden, **on) if parts > 1 else None

    partial, (made, scale, size) = unadded(hidden), weights(hidden, hidden, hidden)
    yield Case(
        "linear_residual, out_proj",
        lambda i, pdl, w=made, s=scale, p=partial: linear_residual(attended, w[i], s[i], zeros, x, partial=p, pdl=pdl),
        len(made),
        size + 3 * x_bytes,
        layers,
    )

    made, scale, size = weights(4 * hidden, hidden, 4 * hidden)
    yield Case(
        "norm_linear, fc",
        lambda i, pdl, w=made, s=scale: norm_linear(
            x, ones, zeros, w[i], s[i], inner_bias, inner, gelu=True, normed=normed, pdl=pdl
        ),
        len(made),
        size + x_bytes + inner.nbytes,
        layers,
    )
    partial, (made, scale, size) = unadded(4 * hidden), weights(hidden, 4 * hidden, hidden)
    yield Case(
        "linear_residual, proj",
        lambda i, pdl, w=made, s=scale, p=partial: linear_residual(inner, w[i], s[i], zeros, x, partial=p, pdl=pdl),
        len(made),
        size + 2 * x_bytes + inner.nbytes,
        layers,
    )

    encoder = torch.randn(28, hidden, **on)
    sources = torch.full((rows,), encoder.data_ptr(), dtype=torch.int64, **on)
    sizes = torch.full((rows,), 28, dtype=torch.int32, **on)
    starts = torch.arange(0, 28 * rows, 28, dtype=torch.int32, **on)
    values = torch.randn(28 * rows, **on)
    table_of_positions = torch.randn(config.max_position_embeddings, hidden, **on)
    at = positions.clamp(max=config.max_position_embeddings - 1).to(device, torch.int32)
    yield Case(
        "embed",
        lambda i, pdl, keep=encoder: embed(x, sources, sizes, starts, values, zeros, table_of_positions, at, pdl=pdl),
        12 if device.type == "cuda" else 1,
        encoder.nbytes + 2 * x_bytes,
        1,
    )
    size = 18
    rows_of_head = torch.randn(size, hidden, **on)
    capacity = 32
    addresses = torch.full((sessions,), rows_of_head.data_ptr(), dtype=torch.int64, **on)
    none = torch.zeros(sessions, dtype=torch.int64, **on)
    numbers = [torch.zeros(sessions, dtype=torch.int32, **on) for _ in range(3)]
    noise, out = torch.zeros(sessions, capacity, **on), torch.zeros(sessions, capacity, **on)
    head_sizes = torch.full((sessions,), size, dtype=torch.int32, **on)
    yield Case(
        "head",
        lambda i, pdl, keep=rows_of_head: head(
            x, ones, zeros, query_start, addresses, none, head_sizes, noise, numbers[0], out, *numbers[1:], pdl=pdl
        ),
        12 if device.type == "cuda" else 1,
        rows_of_head.nbytes + 4 * sessions * hidden,
        1,
    )
