"""`JatEngine.score`: equal to the model's loss, whatever else is computed, and what it refuses."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from helpers.engines import Load, variants
from PIL import Image

from jat_engine import InputError, JatEngine, JatModel, JatProcessor, SessionError
from jat_engine.testing import golden

TEXTS = ["go to the red ball", "ab", "a", "put the green box next to the purple ball"]
NUM_POSITIONS = golden.CONFIG["max_position_embeddings"]
NUM_PATCHES = 16


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8))


def reference(model: JatModel, tokens: Any, pixel_values: Any = None) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the model's log-probabilities of all tokens but the first, which are the likeliest, and its loss."""
    ids = torch.as_tensor(np.asarray(tokens))[None]
    values = None if pixel_values is None else torch.as_tensor(np.asarray(pixel_values))[None]
    with torch.no_grad():
        output = model(input_ids=ids, pixel_values=values)
    logits = output.logits[0, -ids.shape[1] : -1]
    found = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return found.numpy(), (logits.argmax(-1) == ids[0, 1:]).numpy(), float(output.loss)


def make_ids(length: int) -> np.ndarray:
    return np.random.default_rng(length).integers(0, golden.CONFIG["vocab_size"], length)


@pytest.mark.parametrize("options", variants("float32"))
def test_scores_are_those_of_the_model(
    options: dict[str, str], load: Load, tiny_model: JatModel, tiny_processor: JatProcessor
) -> None:
    engine = load(**options)
    for length in (2, 3, 15, 16, 17, NUM_POSITIONS - 1, NUM_POSITIONS):
        ids = make_ids(length)
        logprobs, is_greedy, loss = reference(tiny_model, ids)
        score = engine.score(input_ids=ids)
        assert score.logprobs.dtype == np.float32
        np.testing.assert_allclose(score.logprobs, logprobs, atol=1e-4)
        assert score.is_greedy.tolist() == is_greedy.tolist()
        assert score.perplexity == pytest.approx(math.exp(loss), rel=1e-4)
        assert score.tokens.tolist() == ids.tolist()
        assert score.num_tokens == length - 1
        assert score.total == pytest.approx(-loss * (length - 1), rel=1e-5)

    images = [picture(0), picture(1)]
    values = tiny_processor(images=images, return_tensors="np")["pixel_values"]
    ids = [make_ids(5), make_ids(NUM_POSITIONS - NUM_PATCHES)]
    for scores in (engine.score(input_ids=ids, images=images), engine.score(input_ids=ids, pixel_values=values)):
        for score, tokens, value in zip(scores, ids, values, strict=True):
            logprobs, _, loss = reference(tiny_model, tokens, value)
            np.testing.assert_allclose(score.logprobs, logprobs, atol=1e-4)
            assert score.perplexity == pytest.approx(math.exp(loss), rel=1e-4)


def test_the_golden_losses(load: Load) -> None:
    """The published implementation's own losses of texts, and of texts after images."""
    engine = load(backend="torch", dtype="float32")
    losses = {}
    for case, inputs in golden.forward_cases():
        if "input_ids" in inputs and "attention_mask" not in inputs:
            scores = engine.score(**inputs)
            loss = -math.fsum(score.total for score in scores) / sum(score.num_tokens for score in scores)
            losses[case["name"]] = loss
            assert loss == pytest.approx(case["loss"], rel=1e-5)
    assert list(losses) == ["text", "image_text"]


@pytest.mark.parametrize("options", variants("float32"))
def test_a_score_does_not_depend_on_the_other_texts(options: dict[str, str], load: Load) -> None:
    engine = load(**options)
    ids = [make_ids(length) for length in (2, 40, 7, 48, 3, 29, 48, 2)]
    together = engine.score(input_ids=ids)
    for tokens, score in zip(ids, together, strict=True):
        alone = engine.score(input_ids=tokens)
        if options["backend"] == "cpu":
            assert alone.logprobs.tobytes() == score.logprobs.tobytes()
        np.testing.assert_allclose(alone.logprobs, score.logprobs, atol=1e-4)
    assert engine.cache_stats.used == 0


def test_texts_and_contexts(load: Load, tiny_processor: JatProcessor) -> None:
    engine = load(backend="torch", dtype="float32")
    texts = [text for text in TEXTS if len(text) > 1]
    for text, score in zip(texts, engine.score(texts), strict=True):
        ids = tiny_processor.tokenizer(text)["input_ids"]
        assert score.tokens.tolist() == ids
        np.testing.assert_array_equal(score.logprobs, engine.score(input_ids=ids).logprobs)

    # A context is read and not scored; with one, a text of a single token has a score.
    whole, first = engine.score("go to the red ball"), engine.score("a", contexts="go to the red b")
    assert first.num_tokens == 1
    np.testing.assert_allclose(first.logprobs[0], whole.logprobs[len("go to the red b") - 1], atol=1e-5)
    np.testing.assert_array_equal(first.is_greedy, whole.is_greedy[len("go to the red b") - 1][None])
    part = engine.score([" ball", "go to"], contexts=["go to the red", ""])
    np.testing.assert_allclose(part[0].logprobs, whole.logprobs[-5:], atol=1e-5)
    np.testing.assert_allclose(part[1].logprobs, whole.logprobs[:4], atol=1e-5)
    ids = tiny_processor.tokenizer("go to the red ball")["input_ids"]
    for context in (1, 5, 17):
        score = engine.score(input_ids=[ids[context:]], contexts=[ids[:context]])[0]
        np.testing.assert_allclose(score.logprobs, whole.logprobs[context - 1 :], atol=1e-5)


def test_truncation(load: Load, tiny_model: JatModel) -> None:
    engine = load(backend="torch", dtype="float32")
    ids = make_ids(NUM_POSITIONS + 20)
    right, left = (engine.score(input_ids=ids, truncation=side) for side in ("right", "left"))
    # The last token is predicted and not read: one more than there are positions.
    assert right.tokens.tolist() == ids[: NUM_POSITIONS + 1].tolist()
    assert left.tokens.tolist() == ids[-NUM_POSITIONS - 1 :].tolist()
    np.testing.assert_allclose(right.logprobs[:-1], reference(tiny_model, ids[:NUM_POSITIONS])[0], atol=1e-4)
    context, text = ids[:60], ids[60:]
    score = engine.score(input_ids=text, contexts=context, truncation="left")
    np.testing.assert_allclose(score.logprobs, left.logprobs[-len(text) :], atol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "texts, input_ids: expected one of them, got none"),
        ({"texts": "ab", "input_ids": [1, 2]}, "texts, input_ids: expected one of them, got both"),
        ({"texts": ""}, "texts: expected a text with characters, got an empty one"),
        ({"texts": ["ab", ""]}, r"texts\[1\]: expected a text with characters, got an empty one"),
        ({"texts": ["ab", 3]}, "texts: expected a string or a list of strings, got"),
        ({"texts": "a"}, r"texts: expected at least one token to score, got 1 token\(s\); a text's first token is not"),
        ({"texts": "x" * 50}, "texts: expected at most 49 tokens .* got 50; shorten it, or pass truncation="),
        ({"texts": ["ab", "x" * 50]}, r"texts\[1\]: expected at most 49 tokens"),
        ({"texts": "ab", "truncation": "both"}, 'truncation: expected False, "left" or "right", got \'both\''),
        ({"texts": "ab", "truncation": True}, 'truncation: expected False, "left" or "right", got True'),
        ({"texts": "b", "contexts": "x" * 60, "truncation": "right"}, "the tokens before it fill all positions"),
        ({"texts": ["ab"], "contexts": ["a", "b"]}, r"contexts: expected one for each of 1 text\(s\), got 2"),
        ({"input_ids": []}, None),
        ({"input_ids": [[]]}, r"input_ids\[0\]: expected at least one token, got none"),
        ({"input_ids": [[1, 2], [5]]}, r"input_ids\[1\]: expected at least one token to score, got 1"),
        ({"input_ids": [[1, 257]]}, r"input_ids\[0\]: expected tokens of 0 to 256 \(vocab_size - 1\), got 257"),
        ({"input_ids": [[1, -1]]}, r"got -1"),
        ({"input_ids": [[1.5, 2.5]]}, r"input_ids\[0\]: expected a list of integers"),
        ({"input_ids": [[1, 2]], "contexts": [[300]]}, r"contexts\[0\]: expected tokens of 0 to 256"),
        ({"texts": ["ab", "cd"], "images": [picture(0)]}, "images: expected one for each of 2"),
        ({"texts": "x" * 34, "images": picture(0)}, "texts: expected at most 33 tokens"),
        ({"texts": "ab", "pixel_values": np.zeros((1, 3, 8, 8))}, "pixel_values.*: expected"),
        ({"texts": "ab", "images": "no-such.png"}, "images: expected a picture, got 'no-such.png'"),
    ],
)
def test_wrong_input_is_refused(given: dict[str, Any], message: str | None, load: Load) -> None:
    engine = load(backend="torch", dtype="float32")
    if message is None:
        assert engine.score(**given) == []
        return
    with pytest.raises(InputError, match=message) as error:
        engine.score(**given)
    assert "\n" not in str(error.value)
    assert engine.cache_stats.used == 0


def test_a_text_that_the_cache_has_no_room_for(tiny_folder: Any) -> None:
    with JatEngine.from_pretrained(tiny_folder, device="cpu", backend="torch", max_cached_tokens=32) as engine:
        assert engine.score(input_ids=make_ids(10)).num_tokens == 9
        with pytest.raises(RuntimeError, match="KV cache"):
            engine.score(input_ids=make_ids(40))
        assert engine.score(input_ids=[make_ids(10)] * 5)[4].num_tokens == 9
        assert engine.cache_stats.used == 0
    with pytest.raises(SessionError):
        engine.score("ab")


def test_threads_score_at_the_same_time(load: Load) -> None:
    engine = load(backend="torch", dtype="float32")
    texts = [[make_ids(length) for length in range(first, 40, 5)] for first in (2, 3, 4)]
    with ThreadPoolExecutor(len(texts)) as pool:
        found = list(pool.map(lambda ids: engine.score(input_ids=ids), texts))
    for ids, scores in zip(texts, found, strict=True):
        for tokens, score in zip(ids, scores, strict=True):
            np.testing.assert_allclose(score.logprobs, engine.score(input_ids=tokens).logprobs, atol=1e-4)


def test_an_agent_acts_between_scores(load: Load, tiny_model: JatModel) -> None:
    engine = load(backend="torch", dtype="float32")
    ids, observation = make_ids(30), {"continuous_observation": np.ones(3, np.float32)}
    space = golden.spaces.Box(-1, 1, (2,))
    with engine.open_session() as session, engine.open_session() as other:
        actions = [session.get_next_action(**observation, action_space=space) for _ in range(4)]
        again = []
        for _ in range(4):
            again.append(other.get_next_action(**observation, action_space=space))
            np.testing.assert_allclose(engine.score(input_ids=ids).logprobs, reference(tiny_model, ids)[0], atol=1e-4)
    assert actions == again
