"""Texts in shared steps: recorded answers, independence of neighbours and chunks, agents beside them, faults."""

from __future__ import annotations

import gc
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.engines import EPISODE, INSTRUCTION_SETS, Load, native, play, variants
from helpers.text_steps import GreedyText, finish

from jat_engine import CacheFullError, JatEngine, JatModel, SessionError
from jat_engine.testing import golden

TOLERANCE = 1e-5
POSITIONS = golden.CONFIG["max_position_embeddings"]
SIZE = golden.CONFIG["image_size"]
PATCHES = (SIZE // golden.CONFIG["patch_size"]) ** 2


def make_texts(lengths: list[int], num_new: int = 6, seed: int = 0) -> list[GreedyText]:
    """Texts of these lengths; every second one has an image, where it fits."""
    random = np.random.default_rng(seed)
    texts = []
    for index, length in enumerate(lengths):
        has_image = index % 2 == 1 and length + PATCHES + num_new <= POSITIONS
        pixels = random.standard_normal((3, SIZE, SIZE)).astype(np.float32) if has_image else None
        texts.append(GreedyText(random.integers(0, 250, length), num_new, pixels))
    return texts


# ---- recorded answers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", variants("float32"))
@pytest.mark.parametrize("name", ["text", "image_text"])
def test_logits_are_the_recorded_ones(name: str, options: dict[str, Any], load: Load) -> None:
    pixels = golden.pixel_values() if name == "image_text" else [None, None]
    texts = [GreedyText(ids, 1, image) for ids, image in zip(golden.text_ids(), pixels, strict=True)]
    finish(load(**options), texts)
    recorded = golden.OUTPUTS[f"{name}.logits"]
    for text, expected in zip(texts, recorded, strict=True):
        # Of the image's patches, the last one alone predicts a token of the text.
        first = 0 if text.pixel_values is None else PATCHES - 1
        assert text.first == (0 if text.pixel_values is None else -1)
        assert golden.relative_error(torch.from_numpy(text.logits), expected[first:]) <= TOLERANCE


@pytest.mark.parametrize("options", variants("float32"))
@pytest.mark.parametrize("case", golden.INDEX["generate"], ids=lambda c: c["name"])
def test_tokens_are_the_recorded_ones(case: dict[str, Any], options: dict[str, Any], load: Load) -> None:
    image = golden.pixel_values()[0] if "vqa" in case["name"] else None
    text = GreedyText(golden.text_ids()[0, :8], len(case["tokens"]) - 8, image)
    finish(load(**options), [text])
    assert text.tokens == case["tokens"][8:]


@pytest.mark.parametrize("options", variants("float32"))
def test_logits_are_those_of_the_model(options: dict[str, Any], load: Load, tiny_model: JatModel) -> None:
    texts = make_texts([1, 2, 15, 16, 17, 31, 32, POSITIONS - 6])
    finish(load(**options), texts)
    for text in texts:
        ids = torch.from_numpy(np.append(text.prompt, text.tokens[:-1]))[None]
        pixels = None if text.pixel_values is None else torch.from_numpy(text.pixel_values)[None]
        with torch.no_grad():
            logits = tiny_model(input_ids=ids, pixel_values=pixels, return_loss=False).logits[0]
        expected = logits[max(0 if pixels is None else PATCHES - 1, 0) :]
        assert golden.relative_error(torch.from_numpy(text.logits), expected.numpy()) <= TOLERANCE


# ---- independence ----------------------------------------------------------------------------------------------------


NATIVE_KINDS = [
    {"instruction_set": name, "dtype": dtype, "kv_dtype": kv_dtype}
    for name in INSTRUCTION_SETS
    for dtype, kv_dtype in (("float32", "auto"), ("float32", "int8"), ("bfloat16", "auto"), ("int8", "auto"))
] + [{"dtype": "int4"}]


@native
@pytest.mark.parametrize("kind", NATIVE_KINDS, ids=lambda kind: "-".join(kind.values()))
def test_a_text_has_the_same_bits_in_any_company_and_any_chunks(kind: dict[str, str], load: Load) -> None:
    engine = load(backend="cpu", **kind)
    lengths = [1, 2, 15, 16, 17, 33, 40, 3]
    alone = make_texts(lengths)
    for text in alone:
        finish(engine, [text])

    for trial in range(3):
        random = np.random.default_rng(trial)
        texts = make_texts(lengths)
        waiting = [texts[index] for index in random.permutation(len(texts))]
        while not all(text.finished for text in texts):
            while waiting and random.random() < 0.4:
                engine._texts.add(waiting.pop())
            engine._texts._prefill_chunk = int(random.integers(1, 40))
            engine._texts.advance(texts)
        engine._texts._prefill_chunk = None
        for text, expected in zip(texts, alone, strict=True):
            assert text.tokens == expected.tokens
            np.testing.assert_array_equal(text.logits.view(np.int32), expected.logits.view(np.int32))


@pytest.mark.parametrize("options", variants("float32"))
def test_agents_and_texts_do_not_change_each_other(options: dict[str, Any], load: Load) -> None:
    engine, episode = load(**options), EPISODE["continuous_full"]
    with engine.open_session() as session:
        expected = [play(session, episode, t)[1] for t in range(12)]
    alone = make_texts([20, 9])
    finish(engine, alone)

    texts = make_texts([20, 9])
    for text in texts:
        engine._texts.add(text)
    with engine.open_session() as session:
        for t in range(12):
            prediction = play(session, episode, t)[1]
            np.testing.assert_array_equal(prediction, expected[t])
            engine._texts.advance(texts)
    while not all(text.finished for text in texts):
        engine._texts.advance(texts)
    assert [text.tokens for text in texts] == [text.tokens for text in alone]


@pytest.mark.parametrize("backend", ["torch", pytest.param("cpu", marks=native)])
def test_an_engine_that_acts_has_no_weights_of_texts(backend: str, tiny_folder: Any) -> None:
    engine = JatEngine.from_pretrained(tiny_folder, device="cpu", backend=backend, dtype="float32")
    before = engine.weight_bytes
    with engine.open_session() as session:
        play(session, EPISODE["continuous_full"], 0)
    assert engine.weight_bytes == before
    finish(engine, make_texts([3]))
    vocabulary = golden.CONFIG["vocab_size"] * golden.CONFIG["hidden_size"] * 4
    assert engine.weight_bytes >= before + 2 * vocabulary


# ---- pages -----------------------------------------------------------------------------------------------------------


def test_texts_wait_for_pages_and_give_them_back(tiny_folder: Any) -> None:
    options = {"device": "cpu", "backend": "torch", "dtype": "float32"}
    engine = JatEngine.from_pretrained(tiny_folder, max_cached_tokens=64, **options)
    texts = make_texts([20, 20, 20, 20, 20], num_new=3)
    for text in texts:
        text.pixel_values = None
    finish(engine, texts)
    assert all(text.error is None and len(text.tokens) == 3 for text in texts)
    assert engine.cache_stats.reserved == 0


def test_a_text_that_never_fits_is_refused_and_the_others_are_written(tiny_folder: Any) -> None:
    options = {"device": "cpu", "backend": "torch", "dtype": "float32"}
    engine = JatEngine.from_pretrained(tiny_folder, max_cached_tokens=48, **options)
    small, large = GreedyText(np.arange(5), 2), GreedyText(np.arange(60), 2)
    finish(engine, [large, small])
    assert isinstance(large.error, CacheFullError)
    assert small.error is None
    assert len(small.tokens) == 2


def test_removed_texts_give_their_pages_back(load: Load) -> None:
    engine = load(backend="torch", dtype="float32")
    texts = make_texts([30, 30])
    for text in texts:
        engine._texts.add(text)
    engine._texts.advance(texts)
    assert engine.cache_stats.reserved > 0
    engine._texts.remove(texts)
    gc.collect()
    assert engine.cache_stats.reserved == 0


# ---- faults ----------------------------------------------------------------------------------------------------------


class Failing(GreedyText):
    """Raises an error with its second token."""

    def accept(self, logits: np.ndarray) -> int | None:
        if self.tokens:
            raise self.failure
        return super().accept(logits)

    failure: BaseException = ZeroDivisionError("a user's object")


def test_an_error_ends_one_text_alone(load: Load) -> None:
    engine = load(backend="torch", dtype="float32")
    texts = [GreedyText(np.arange(5), 4), Failing(np.arange(7), 4), GreedyText(np.arange(9), 4)]
    finish(engine, texts)
    assert [type(text.error) for text in texts] == [type(None), ZeroDivisionError, type(None)]
    assert [len(text.tokens) for text in texts] == [4, 1, 4]
    assert engine.cache_stats.reserved == 0


def test_an_interrupt_ends_one_text_and_reaches_the_caller(load: Load) -> None:
    engine = load(backend="torch", dtype="float32")
    texts = [Failing(np.arange(7), 4), GreedyText(np.arange(9), 4)]
    texts[0].failure = KeyboardInterrupt()  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        finish(engine, texts)
    expected = GreedyText(np.arange(9), 4)
    finish(engine, [expected])
    while not texts[1].finished:
        engine._texts.advance(texts)
    assert texts[1].tokens == expected.tokens


class Calling(GreedyText):
    """Calls something with its second token."""

    call: Callable[[], Any]

    def accept(self, logits: np.ndarray) -> int | None:
        if self.tokens:
            self.call()
        return super().accept(logits)


def test_an_object_of_a_text_may_act_but_not_write(load: Load) -> None:
    engine, acted = load(backend="torch", dtype="float32"), []
    writes, acts = Calling(np.arange(4), 3), Calling(np.arange(4), 3)
    writes.call = lambda: finish(engine, [GreedyText(np.arange(3), 2)])
    with engine.open_session() as session:
        acts.call = lambda: acted.append(play(session, EPISODE["continuous_full"], 0)[0])
        finish(engine, [writes])
        finish(engine, [acts])
    assert isinstance(writes.error, SessionError)
    assert "within their step" in str(writes.error)
    assert acts.error is None
    assert len(acted) == 2
    engine._texts.remove([*engine._texts._waiting])
    finish(engine, [GreedyText(np.arange(3), 2)])


def test_threads_share_steps(load: Load) -> None:
    engine = load(backend="torch", dtype="float32")
    expected = make_texts([3, 10, 25, 40, 8, 30])
    finish(engine, expected)
    texts = make_texts([3, 10, 25, 40, 8, 30])
    threads = [threading.Thread(target=finish, args=(engine, [text])) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for text, alone in zip(texts, expected, strict=True):
        assert text.error is None
        assert text.tokens == alone.tokens


def test_a_closed_engine_writes_no_more(tiny_folder: Any) -> None:
    engine = JatEngine.from_pretrained(tiny_folder, device="cpu", backend="torch", dtype="float32")
    text = GreedyText(np.arange(5), 9)
    engine._texts.add(text)
    engine._texts.advance([text])
    engine.close()
    with pytest.raises(SessionError, match="closed"):
        engine._texts.advance([text])
    with pytest.raises(SessionError, match="closed"):
        engine._texts.add(GreedyText(np.arange(5), 9))


@native
def test_an_agent_waits_for_one_step_of_texts_at_most(tiny_folder: Any) -> None:
    engine = JatEngine.from_pretrained(tiny_folder, device="cpu", backend="cpu", dtype="float32")
    text, episode = GreedyText(np.arange(5), POSITIONS - 5), EPISODE["continuous_full"]
    waits: list[int] = []

    class Waiting(deque[None]):
        """Counts the tokens that are written between an agent's arrival and its turn."""

        def append(self, entry: None) -> None:
            waits.append(-len(text.tokens))
            super().append(entry)

        def pop(self) -> None:  # type: ignore[override]
            waits[-1] += len(text.tokens)
            super().pop()

    engine._runner.waiting = Waiting()
    done = threading.Event()

    def act() -> None:
        with engine.open_session() as session:
            for t in range(20):
                play(session, episode, t)
        done.set()

    thread = threading.Thread(target=act)
    engine._texts.add(text)
    thread.start()
    while not text.finished or not done.is_set():
        engine._texts.advance([text])
    thread.join()
    assert len(waits) == 20
    assert max(waits) <= 2  # the step that runs, and one that had just begun to take its turn
