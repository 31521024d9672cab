"""List every Triton kernel as the engine launches it at the published size: hidden 768, 12 heads of 64, MLP 3072."""

from __future__ import annotations

import torch
from torch import Tensor

from jat_engine.backends.base import STEP_TOKENS
from jat_engine.backends.cuda.text import MAX_TEXT_ROWS
from jat_engine.kernels import attention, discrete_encoder, embedding, head, image_encoder, linear
from jat_engine.kernels.launch import PAGE_SIZE, compute_dtype
from jat_engine.kernels.prompt_attention import MAX_PROMPT_QUERIES
from jat_engine.kernels.splits import Splits
from jat_engine.kernels.tiles import num_partials

from .triton_launches import Launch, recorded

HIDDEN, HEADS, HEAD_DIM, WINDOW, POSITIONS, VOCAB = 768, 12, 64, 256, 512, 50257
WEIGHT_DTYPES = (torch.bfloat16, torch.int8, torch.float16, torch.float32)
ROWS = {"one agent": STEP_TOKENS, "64 agents": 64 * STEP_TOKENS, "512 agents": 512 * STEP_TOKENS}


def _floats(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype)


def _int32(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.int32)


def _int64(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.int64)


def variants(weight_dtype: torch.dtype, rows: int, pdl: bool) -> list[Launch]:
    """Return every kernel of a step of rows / 3 agents, in order, and what a step of so many rows of texts has more."""
    sessions, compute = rows // STEP_TOKENS, compute_dtype(weight_dtype)
    cache_dtype = torch.bfloat16 if weight_dtype == torch.int8 else weight_dtype
    vector, x = _floats(HIDDEN), _floats(rows, HIDDEN)
    kv_layer = _floats(4, 2, HEADS, PAGE_SIZE, HEAD_DIM, dtype=cache_dtype)

    def weight(outputs: int, inputs: int) -> Tensor:
        return torch.empty(outputs, inputs, dtype=weight_dtype)

    def scale(outputs: int) -> Tensor | None:
        return _floats(outputs) if weight_dtype == torch.int8 else None

    def partial(inputs: int) -> Tensor | None:
        parts = num_partials(rows, HIDDEN, inputs, weight_dtype)
        return _floats(parts, rows, HIDDEN) if parts > 1 else None

    with recorded() as launches:
        embedding.embed(
            x, _int64(rows), _int32(rows), _int32(rows), _floats(4096), vector, _floats(POSITIONS, HIDDEN),
            _int32(rows), pdl=pdl,
        )  # fmt: skip
        normed = _floats(rows, HIDDEN, dtype=compute)
        linear.norm_qkv(
            x, vector, vector, weight(3 * HIDDEN, HIDDEN), scale(3 * HIDDEN), x, kv_layer, _int32(rows),
            normed=normed, pdl=pdl,
        )  # fmt: skip
        attended = _floats(rows, HIDDEN, dtype=compute)
        attention.paged_attention(
            x, kv_layer, _int32(sessions, POSITIONS // PAGE_SIZE + 1), _int32(sessions + 1), _int32(sessions),
            _int32(sessions), WINDOW, attended, max_queries=STEP_TOKENS, pdl=pdl,
        )  # fmt: skip
        # On sm_90 and newer, which have float8; there up to 64 agents also with split keys.
        for count in ((1, 4) if sessions <= 64 else (1,)) if pdl else ():
            splits = Splits(
                _floats(count, rows, HEADS, HEAD_DIM), _floats(count, rows, HEADS), _floats(count, rows, HEADS),
                _int32(sessions * HEADS),
            )  # fmt: skip
            attention.paged_attention(
                x, kv_layer.to(torch.float8_e4m3fn), _int32(sessions, POSITIONS // PAGE_SIZE + 1), _int32(sessions + 1),
                _int32(sessions), _int32(sessions), WINDOW, attended, max_queries=STEP_TOKENS, pdl=pdl,
                scales=torch.empty(4, HEADS, 2, PAGE_SIZE, dtype=torch.uint8), splits=splits if count > 1 else None,
                new_kv=_floats(-(-rows // PAGE_SIZE), 2, HEADS, PAGE_SIZE, HEAD_DIM, dtype=compute),
            )  # fmt: skip
        linear.linear_residual(
            attended, weight(HIDDEN, HIDDEN), scale(HIDDEN), vector, x, partial=partial(HIDDEN), pdl=pdl
        )
        inner = _floats(rows, 4 * HIDDEN, dtype=compute)
        linear.norm_linear(
            x, vector, vector, weight(4 * HIDDEN, HIDDEN), scale(4 * HIDDEN), _floats(4 * HIDDEN), inner,
            gelu=True, normed=normed, pdl=pdl,
        )  # fmt: skip
        linear.linear_residual(
            inner, weight(HIDDEN, 4 * HIDDEN), scale(HIDDEN), vector, x, partial=partial(4 * HIDDEN), pdl=pdl
        )
        for capacity in (32, 1024):
            head.head(
                x, vector, vector, _int32(sessions + 1), _int64(sessions), _int64(sessions), _int32(sessions),
                _floats(sessions, capacity), _int32(sessions), _floats(sessions, capacity), _int32(sessions),
                _int32(sessions), pdl=pdl,
            )  # fmt: skip
        discrete_encoder.encode_discrete(
            _int32(sessions, 212), _floats(sessions), _int64(sessions), _floats(512, 16, dtype=compute),
            weight(HIDDEN - 1, 212 * 16), scale(HIDDEN - 1), _floats(HIDDEN - 1), pdl=pdl,
        )  # fmt: skip
        if rows <= MAX_TEXT_ROWS:
            attention.paged_attention(
                x, kv_layer, _int32(sessions, POSITIONS // PAGE_SIZE + 1), _int32(sessions + 1), _int32(sessions),
                _int32(sessions), WINDOW, attended, max_queries=MAX_PROMPT_QUERIES, pdl=pdl,
            )  # fmt: skip
            linear.norm_linear(
                x, vector, vector, weight(VOCAB, HIDDEN), scale(VOCAB), None, _floats(rows, VOCAB),
                gelu=False, normed=normed, pdl=pdl,
            )  # fmt: skip
        images = _image_weights(weight, scale, compute)
        image_encoder.encode_images(
            torch.empty(sessions, 84, 84, 4, dtype=torch.uint8), _int64(sessions), images,
            image_encoder.make_image_scratch(sessions, images), pdl=pdl,
        )  # fmt: skip
    return launches


def _image_weights(weight, scale, compute) -> image_encoder.ImageWeights:  # type: ignore[no-untyped-def]
    stages = [
        image_encoder.Stage(
            _floats(9 * before, after, dtype=compute), _floats(after // 8, after), _floats(after, after // 8)
        )
        for before, after in ((4, 32), (32, 64), (64, 128))
    ]
    fc = weight(HIDDEN, 121 * 128)
    return image_encoder.ImageWeights((stages[0], stages[1], stages[2]), fc, scale(HIDDEN), _floats(HIDDEN))
