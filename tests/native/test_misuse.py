"""The native module checks sizes and order of calls itself: wrong arguments are errors, not crashes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers.engines import NATIVE, native

pytestmark = native

H, PAGES = 64, 4


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def linear(rows: int, columns: int) -> Any:
    return NATIVE.Linear("float32", rows, columns, False)


def model(is_complete: bool = True) -> Any:
    made = NATIVE.Model(H, 2, "float32", ones(8, H), 1, 50, "auto")
    layer: list[Any] = [ones(H), ones(H), linear(3 * H, H), linear(H, H), ones(H), ones(H)]
    made.add_layer(*layer, linear(4 * H, H), linear(H, 4 * H), 4)
    if is_complete:
        made.set_final_norm(ones(H), ones(H))
    return made


def decode(**changes: Any) -> Any:
    """Decode one token of one session, but for the changes."""
    made = changes.pop("model", None) or model()
    good = {
        "embeddings": [ones(H)],
        "num_new": [1],
        "context_lens": [0],
        "start_offsets": [0],
        "page_tables": [np.arange(1, dtype=np.int32)],
        "pool": np.zeros(PAGES * made.page_bytes, np.uint8),
        "heads": [linear(3, H)],
    }
    return made.decode(**{**good, **changes})


def encode_integers(count: int = 3, values: Any = 0, made: Any = None) -> Any:
    encoder = NATIVE.DiscreteEncoder(ones(5, 4), linear(H, 12))
    return encoder.encode(made or model(), [np.full(count, values, np.int64)], [None], [0.0])


def encode_frames(
    has_stage: bool = True, num_bytes: int = 8 * 8 * 4, columns: int = 4 * 4 * 16, made: Any = None
) -> Any:
    encoder = NATIVE.ImageEncoder()
    if has_stage:
        encoder.add_stage(8, ones(16, 4, 3, 3), ones(2, 16), ones(16, 2))
    encoder.set_linear(linear(H, columns))
    return encoder.encode(made or model(), [np.zeros(num_bytes, np.uint8)])


def quick_step(made: Any, encoder: Any, action_encoder: Any = None) -> Any:
    pool = np.zeros(PAGES * made.page_bytes, np.uint8)
    action_encoder = linear(H, 2) if action_encoder is None else action_encoder
    return NATIVE.QuickStep(made, encoder, action_encoder, linear(2, H), pool, 2, False)


def state_of(step: Any, action: Any, num_draws: int = 0) -> Any:
    cached = np.arange(1, dtype=np.int32), 0, 1
    return cached, 1, (None, [ones(H)], None, [action], step), num_draws, False


def image_encoder(size: int) -> Any:
    encoder = NATIVE.ImageEncoder()
    encoder.add_stage(size, ones(16, 4, 3, 3), ones(2, 16), ones(16, 2))
    encoder.set_linear(linear(H, (size // 2) ** 2 * 16))
    return encoder


def shrink_a_frame() -> Any:
    """Between `read` and `run` a caller's array becomes another: its memory may be gone."""
    step = quick_step(model(), image_encoder(512))
    frame = np.zeros((512, 512, 4), np.uint8)
    assert step.read(None, None, None, frame, None, None)
    frame.resize((1, 1, 1), refcheck=False)
    return step.run(state_of(step, ones(2)), None, None, 4)


def step_quickly(is_read: bool = True, columns: int = 3, **changes: Any) -> Any:
    """Take a step of one agent with continuous observations and actions, but for the changes."""
    made = model()
    pool, action = np.zeros(PAGES * made.page_bytes, np.uint8), linear(H, 2)
    step = NATIVE.QuickStep(made, linear(H, columns), action, linear(2, H), pool, 2, False)
    if is_read:
        assert step.read(ones(2), None, None, None, None, None)
    cached = changes.pop("table", np.arange(1, dtype=np.int32)), changes.pop("offset", 0), changes.pop("tokens", 1)
    last = None, changes.pop("embeddings", [ones(H)]), None, changes.pop("actions", [ones(2)]), step
    state = cached, changes.pop("num_again", 1), last, 0, False
    good = {"state": state, "mission": None, "noise": None, "window": 4}
    return step.run(*{**good, **changes}.values())


def test_right_arguments() -> None:
    action, values, state = step_quickly()
    assert action == values.tolist()
    assert len(state) == 5
    ((prediction, is_finite),) = decode()
    assert prediction.shape == (3,)
    assert is_finite
    assert [len(row) for row in encode_integers()] == [H]
    assert [len(row) for row in encode_frames()] == [H]
    assert model().embed(linear(H, 5), ones(5)).shape == (H,)
    for dtype in ("float32", "bfloat16", "int8"):
        assert all(NATIVE.dot_peak(dtype, 1, 1, name) > 0 for name in NATIVE.instruction_sets())


CASES: list[tuple[str, Callable[[], Any]]] = [
    ("model: expected set_final_norm", lambda: decode(model=model(False))),
    ("model: expected set_final_norm", lambda: encode_integers(made=model(False))),
    ("model: expected set_final_norm", lambda: encode_frames(made=model(False))),
    ("model: expected set_final_norm", lambda: model(False).embed(linear(H, 5), ones(5))),
    ("embeddings: expected 64 numbers", lambda: decode(embeddings=[ones(H - 1)])),
    ("embeddings: expected one for each", lambda: decode(embeddings=[])),
    ("num_new: expected 1 to", lambda: decode(num_new=[0])),
    ("num_new: expected at least one", lambda: decode(num_new=[])),
    ("context_lens: expected 0 to 7", lambda: decode(context_lens=[8])),
    ("context_lens: expected 0 to 7", lambda: decode(context_lens=[-1])),
    ("start_offsets: expected 0 to", lambda: decode(start_offsets=[16])),
    ("page_tables: expected at least 1", lambda: decode(page_tables=[np.empty(0, np.int32)])),
    ("page_tables: expected pages below 4", lambda: decode(page_tables=[np.array([PAGES], np.int32)])),
    ("page_tables: expected pages below 4", lambda: decode(page_tables=[np.array([-1], np.int32)])),
    ("page_tables: expected pages below 0", lambda: decode(pool=np.zeros(8, np.uint8))),
    ("heads: expected", lambda: decode(heads=[linear(3, H + 1)])),
    ("heads: expected", lambda: decode(heads=[None])),
    ("values: expected 5 numbers", lambda: model().embed(linear(H, 5), ones(6))),
    ("values: expected 3 integers", lambda: encode_integers(2048)),
    ("values: expected integers of 0 to 4", lambda: encode_integers(values=5)),
    ("values: expected integers of 0 to 4", lambda: encode_integers(values=-1)),
    ("frames: expected 256 bytes", lambda: encode_frames(num_bytes=255)),
    ("encoder: expected stages", lambda: encode_frames(has_stage=False)),
    ("encoder: expected stages", lambda: encode_frames(columns=255)),
    ("linear: expected a Linear, got None", lambda: NATIVE.ImageEncoder().set_linear(None)),
    ("set_linear: expected one call", lambda: image_encoder(8).set_linear(linear(H, 8))),
    ("add_stage: expected before", lambda: image_encoder(8).add_stage(4, ones(16, 16, 3, 3), ones(2, 16), ones(16, 2))),
    ("encoder: expected a Linear, a Disc", lambda: quick_step(model(), None)),
    ("encoder: expected a Linear, a Disc", lambda: quick_step(model(), "image")),
    ("action_encoder: expected a Linear", lambda: quick_step(model(), linear(H, 3), "table")),
    ("image: expected the array as it was read", shrink_a_frame),
    ("run: expected after read", lambda: step_quickly(False)),
    ("encoder: expected 3 columns", lambda: step_quickly(columns=4)),
    ("state: expected a tuple of 5", lambda: step_quickly(state=None)),
    ("state: expected numbers", lambda: step_quickly(offset=-1)),
    ("num_again: expected 1 or 2", lambda: step_quickly(num_again=3)),
    ("num_tokens: expected 0 to", lambda: step_quickly(tokens=7)),
    ("start_offset: expected 0 to", lambda: step_quickly(offset=16)),
    ("table: expected pages below 4", lambda: step_quickly(table=np.array([PAGES], np.int32))),
    ("table: expected a contiguous", lambda: step_quickly(table=np.arange(1))),
    ("embeddings: expected a contiguous", lambda: step_quickly(embeddings=[ones(H - 1)])),
    ("last_action: expected a contiguous", lambda: step_quickly(actions=[0])),
    ("noise: expected a contiguous", lambda: step_quickly(noise=ones(1))),
    ("window: expected at least 1", lambda: step_quickly(window=0)),
    ("linear: expected a multiple of 4", lambda: NATIVE.DiscreteEncoder(ones(5, 4), linear(H, 13))),
    ("position_table: expected", lambda: NATIVE.Model(H, 2, "float32", ones(8, H - 1), 1, 50, "auto")),
    ("hidden_size: expected a multiple", lambda: NATIVE.Model(H, 3, "float32", ones(8, H), 1, 50, "auto")),
    ("rows, columns: expected", lambda: linear(0, 4)),
    ("weight: expected rows within", lambda: linear(4, 4).pack_rows(1, ones(4, 4))),
    ("weight: expected", lambda: linear(4, 4).pack_rows(0, ones(4, 5))),
    ("dtype: expected", lambda: NATIVE.dot_peak("float64", 1)),
    ("num_threads: expected at least 1", lambda: NATIVE.dot_peak("int8", 0)),
    ("repeats: expected at least 1", lambda: NATIVE.dot_peak("int8", 1, 0)),
    ("instruction_set: expected auto", lambda: NATIVE.dot_peak("int8", 1, 1, "sse")),
    ("bias: expected a layer made with", lambda: linear(4, 4).set_bias(ones(4))),
]


@pytest.mark.parametrize(("message", "call"), CASES, ids=[f"{number}-{m[:24]}" for number, (m, _) in enumerate(CASES)])
def test_wrong_arguments(message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_more_draws_than_an_int_holds() -> None:
    """An agent that samples for days counts them."""
    step = quick_step(model(), linear(H, 3), ones(2, H))
    for num_draws in (2**31 - 1, 2**31, 2**40):
        assert step.read(ones(2), None, None, None, None, None)
        _, _, state = step.run(state_of(step, 1, num_draws), None, ones(1, 2), 4)
        assert state[3] == num_draws + 1
