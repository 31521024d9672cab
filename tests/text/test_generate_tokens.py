"""`JatEngine.generate` writes what `JatModel.generate` writes, for one prompt as well as for many at once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from helpers.engines import NATIVE, Load

from jat_engine import JatEngine, JatModel, JatProcessor
from jat_engine.testing import golden

LIMIT = golden.CONFIG["max_position_embeddings"]
PATCHES = (golden.CONFIG["image_size"] // golden.CONFIG["patch_size"]) ** 2


@pytest.fixture
def engines(load: Load) -> list[JatEngine]:
    backends = ["torch", "cpu"] if NATIVE else ["torch"]
    return [load(backend=backend, dtype="float32") for backend in backends]


@pytest.fixture
def engine(engines: list[JatEngine]) -> JatEngine:
    return engines[-1]


def random_ids(seed: int, length: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (1, length)))


def pixel_values(seed: int = 0, count: int = 1) -> torch.Tensor:
    size = golden.CONFIG["image_size"]
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((count, 3, size, size)).astype(np.float32))


# ---- one prompt, by every option -----------------------------------------------------------------------------------

GREEDY: list[dict[str, Any]] = [
    {},
    {"max_new_tokens": 1},
    {"max_length": 20},
    {"max_length": 20, "min_length": 15},
    {"max_new_tokens": 25, "min_new_tokens": 20},
    {"max_new_tokens": 25, "eos_token_id": [117, 102]},
    {"max_new_tokens": 25, "eos_token_id": None},
    {"max_new_tokens": 25, "eos_token_id": 117, "min_length": 18},
    {"repetition_penalty": 1.5},
    {"no_repeat_ngram_size": 2},
    {"bad_words_ids": [[243], [117, 14], [102]]},
    {"bad_words_ids": [[243]], "eos_token_id": None},
    {"suppress_tokens": [243, 14]},
    {"begin_suppress_tokens": [243, 14, 102]},
    {"top_k": 0},
    {"use_cache": True, "num_beams": 1, "length_penalty": 1.0},
]
SAMPLED: list[dict[str, Any]] = [
    {},
    {"temperature": 0.5},
    {"temperature": 2.0, "top_k": 0},
    {"top_k": 5},
    {"top_k": None},
    {"top_k": 1000},
    {"top_p": 0.5},
    {"top_p": 0.9, "top_k": 0},
    {"top_p": 0.0},
    {"min_p": 0.1, "temperature": 1.5},
    {"typical_p": 0.5},
    {"typical_p": 0.9, "top_k": 0, "top_p": 0.9, "min_p": 0.01, "temperature": 0.9},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "min_new_tokens": 10, "suppress_tokens": [3]},
]


@pytest.mark.parametrize("options", GREEDY, ids=str)
@pytest.mark.parametrize("with_image", [False, True], ids=["text", "image"])
def test_greedy(options: dict[str, Any], with_image: bool, engines: list[JatEngine], tiny_model: JatModel) -> None:
    image = {"pixel_values": pixel_values()} if with_image else {}
    for seed in range(3):
        ids = random_ids(seed, 7)
        expected = tiny_model.generate(ids, **image, **options)
        for engine in engines:
            assert torch.equal(engine.generate(input_ids=ids, **image, **options), expected)


@pytest.mark.parametrize("options", SAMPLED, ids=str)
def test_sampled(options: dict[str, Any], engines: list[JatEngine], tiny_model: JatModel) -> None:
    for seed in range(3):
        ids = random_ids(seed, 5)
        torch.manual_seed(seed)
        expected = tiny_model.generate(ids, do_sample=True, **options)
        for engine in engines:
            assert torch.equal(engine.generate(input_ids=ids, do_sample=True, seed=seed, **options), expected)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, LIMIT - 20, LIMIT - 19, LIMIT - 1])
def test_lengths(length: int, engine: JatEngine, tiny_model: JatModel) -> None:
    ids = random_ids(0, length)
    assert torch.equal(engine.generate(input_ids=ids), tiny_model.generate(ids))


def test_the_last_token_needs_no_position(engine: JatEngine, tiny_model: JatModel) -> None:
    ids = random_ids(0, LIMIT)
    expected = tiny_model.generate(ids, max_new_tokens=1)
    assert torch.equal(engine.generate(input_ids=ids, max_new_tokens=1), expected)


def test_generation_configs(tiny_folder: Path, engine: JatEngine, tiny_model: JatModel) -> None:
    """A keyword goes before the call's configuration, and that before the checkpoint's."""
    ids = random_ids(4, 6)
    config = transformers.GenerationConfig(max_new_tokens=9, repetition_penalty=1.4, eos_token_id=[5])
    for options in ({}, {"max_new_tokens": 4}):
        expected = tiny_model.generate(ids, generation_config=config, **options)
        assert torch.equal(engine.generate(input_ids=ids, generation_config=config, **options), expected)

    model = JatModel.from_pretrained(tiny_folder)
    model.generation_config.max_length = 11
    model.generation_config.repetition_penalty = 1.4
    own = JatEngine.from_model(model, device="cpu", dtype="float32", backend="torch")
    for options in ({}, {"max_new_tokens": 12}, {"max_length": 9}, {"repetition_penalty": 1.0}):
        assert torch.equal(own.generate(input_ids=ids, **options), model.generate(ids, **options))


def test_stop_strings(engine: JatEngine, tiny_model: JatModel, tiny_processor: JatProcessor) -> None:
    """The token that completes a stop string is the last one; texts end before the string."""
    tokenizer = tiny_processor.tokenizer
    stopped = 0
    for seed in range(6):
        prompt = random_ids(seed, 8)
        whole = tiny_model.generate(prompt, max_new_tokens=30, eos_token_id=None)[0].tolist()
        text = tokenizer.decode(whole[8:])
        pieces = [piece for piece in text.split("\ufffd") if piece]
        for stop in (pieces[1], pieces[-1][:1], "<|endoftext|>"):
            options = {"max_new_tokens": 30, "eos_token_id": None, "stop_strings": [stop, "never there"]}
            expected = tiny_model.generate(prompt, tokenizer=tokenizer, **options)
            assert torch.equal(engine.generate(input_ids=prompt, **options), expected)
            events = list(engine.generate_stream(input_ids=prompt, **options))
            if events[-1].finish_reason == "stop":
                stopped += 1
                written = "".join(event.text for event in events)
                assert stop not in written
                assert text.startswith(written)
    assert stopped == 12


def random_prompts(count: int, seed: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor | None, int]]:
    """Yield prompts of 1 token to as many as fit, every third with an image, and how many tokens to write."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        image = pixel_values(number) if number % 3 == 0 else None
        positions = LIMIT if image is None else LIMIT - PATCHES
        length = int(rng.integers(1, positions + 1))
        ids = torch.from_numpy(rng.integers(0, 257, (1, length)))
        yield ids, image, int(rng.integers(1, positions - length + 2))


def test_random_prompts(engines: list[JatEngine], tiny_model: JatModel) -> None:
    """Up to the first token where the reference's two best logits are close."""
    for ids, image, count in random_prompts(40):
        options = {"pixel_values": image, "max_new_tokens": count}
        recorded = tiny_model.generate(ids, output_logits=True, return_dict_in_generate=True, **options)
        best = torch.stack(recorded.logits)[:, 0].topk(2).values
        close = torch.nonzero(best[:, 0] - best[:, 1] < 1e-4)
        end = ids.shape[1] + (int(close[0]) if len(close) else count)
        for engine in engines:
            got = engine.generate(input_ids=ids, **options)
            assert torch.equal(got[:, :end], recorded.sequences[:, :end])
            assert len(close) or got.shape == recorded.sequences.shape


@pytest.mark.skipif(NATIVE is None, reason="needs the native module")
def test_batches_that_are_joined_and_left(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the native backend tokens and logits are those of a lone request, bit for bit."""
    engine = load(backend="cpu", dtype="float32")
    seen: dict[int, list[np.ndarray]] = {}

    def note(number: int) -> Any:
        def processor(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            seen.setdefault(number, []).append(scores.numpy().copy())
            return scores

        return processor

    prompts = [(ids, image, count) for ids, image, count in random_prompts(24, seed=1)]
    for number, (ids, image, count) in enumerate(prompts):
        options = {"pixel_values": image, "max_new_tokens": count}
        engine.generate(input_ids=ids, logits_processor=[note(number)], **options)
    alone, seen = seen, {}

    def write(part: int) -> None:
        for number in range(part, len(prompts), 4):
            ids, image, count = prompts[number]
            options = {"pixel_values": image, "max_new_tokens": count}
            engine.generate(input_ids=ids, logits_processor=[note(number)], **options)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    for number in range(len(prompts)):
        assert np.array_equal(np.array(seen[number]), np.array(alone[number]))


# ---- many prompts --------------------------------------------------------------------------------------------------


def test_continuations_do_not_depend_on_others(engine: JatEngine) -> None:
    prompts = [random_ids(seed, 1 + 3 * seed)[0].tolist() for seed in range(9)]
    options = {"max_new_tokens": 15, "do_sample": True, "temperature": 1.3}
    together = engine.generate(input_ids=prompts, seed=7, **options)
    for i, (prompt, tokens) in enumerate(zip(prompts, together, strict=True)):
        alone = engine.generate(input_ids=[prompt], seed=7 + i, **options)[0]
        assert torch.equal(alone, tokens)
    listed = engine.generate(input_ids=prompts, seed=[7 + i for i in range(9)], **options)
    assert all(torch.equal(a, b) for a, b in zip(listed, together, strict=True))


def test_padded_batches(engine: JatEngine, tiny_model: JatModel) -> None:
    """Rows of different lengths, with padding at either end, as transformers returns them."""
    lengths, width = [3, 8, 5, 1], 8
    ids, mask = torch.full((4, width), 256), torch.zeros((4, width), dtype=torch.int64)
    for row, length in enumerate(lengths):
        ids[row, width - length :] = random_ids(row, length)[0]
        mask[row, width - length :] = 1
    for options in ({"max_new_tokens": 12}, {"max_length": 14}, {"eos_token_id": [117, 102], "max_new_tokens": 30}):
        expected = tiny_model.generate(ids, attention_mask=mask, **options)
        assert torch.equal(engine.generate(input_ids=ids, attention_mask=mask, **options), expected)

    right_ids, right_mask = ids.flip(1), mask.flip(1)
    expected = tiny_model.generate(right_ids, attention_mask=right_mask, max_new_tokens=12)
    assert torch.equal(engine.generate(input_ids=right_ids, attention_mask=right_mask, max_new_tokens=12), expected)
    images = pixel_values(1, 4)
    expected = tiny_model.generate(ids, attention_mask=mask, pixel_values=images, max_new_tokens=9)
    got = engine.generate(input_ids=ids, attention_mask=mask, pixel_values=images, max_new_tokens=9)
    assert torch.equal(got, expected)


def test_outputs(engine: JatEngine, tiny_model: JatModel) -> None:
    """Scores and logits, also of rows that have ended."""
    ids = torch.cat([random_ids(1, 6), random_ids(2, 6)])
    options = {"repetition_penalty": 1.2, "max_new_tokens": 9, "eos_token_id": [117, 102, 94, 14]}
    options |= {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    expected = tiny_model.generate(ids, **options)
    got = engine.generate(input_ids=ids, **options)
    assert type(got) is type(expected)
    assert torch.equal(got.sequences, expected.sequences)
    for name in ("scores", "logits"):
        for ours, theirs, tokens in zip(got[name], expected[name], got.sequences.T[6:], strict=True):
            assert ours.shape == theirs.shape
            running = tokens != 117
            torch.testing.assert_close(ours[running], theirs[running], rtol=1e-4, atol=1e-5)
    plain = engine.generate(input_ids=ids, max_new_tokens=3, return_dict_in_generate=True)
    assert plain.scores is None
    assert plain.logits is None


def test_several_continuations(engine: JatEngine, tiny_processor: JatProcessor) -> None:
    options = {"max_new_tokens": 6, "do_sample": True, "seed": 3}
    texts = engine.generate(["go to", "pick up a key"], num_return_sequences=3, **options)
    assert len(texts) == 6
    for i, prompt in enumerate(["go to"] * 3 + ["pick up a key"] * 3):
        assert engine.generate(prompt, **{**options, "seed": 3 + i}) == texts[i]
    assert engine.generate("go to", num_return_sequences=3, **options) == texts[:3]
    tokens = engine.generate("go to", num_return_sequences=2, return_dict_in_generate=True, **options).sequences
    assert tokens.shape[0] == 2
    assert tiny_processor.tokenizer.decode(tokens[0, 5:], skip_special_tokens=True) == texts[0]


def test_global_generator_seeds_what_has_no_seed(engine: JatEngine) -> None:
    def write() -> list[str]:
        torch.manual_seed(5)
        return engine.generate(["go", "go"], do_sample=True, temperature=3.0, max_new_tokens=9)

    assert write() == write()
    assert write()[0] != write()[1]
    state = torch.get_rng_state()
    engine.generate("go", max_new_tokens=2)
    assert torch.equal(state, torch.get_rng_state())


# ---- texts and images ----------------------------------------------------------------------------------------------


def test_texts_and_images(engine: JatEngine, tiny_model: JatModel, tiny_processor: JatProcessor) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40, 50, 3), dtype=np.uint8), rng.integers(0, 256, (9, 9), dtype=np.uint8)]
    texts = ["what is this?", "go"]
    for text, image in zip(texts, images, strict=True):
        inputs = tiny_processor(text=text, images=image, return_tensors="pt")
        new = tiny_model.generate(**inputs, max_new_tokens=9)[0, inputs["input_ids"].shape[1] :]
        expected = tiny_processor.tokenizer.decode(new, skip_special_tokens=True)
        assert engine.generate(text, image, max_new_tokens=9) == expected
        assert engine.generate([text], [image], max_new_tokens=9) == [expected]
        assert torch.equal(engine.generate(**inputs, max_new_tokens=9)[0, -len(new) :], new)
    both = engine.generate(texts, images, max_new_tokens=9)
    assert both == [engine.generate(t, i, max_new_tokens=9) for t, i in zip(texts, images, strict=True)]
    mixed = engine.generate(texts, [images[0], None], max_new_tokens=9)
    assert mixed == [both[0], engine.generate(texts[1], max_new_tokens=9)]


def test_what_a_processor_returns(engine: JatEngine, tiny_model: JatModel, tiny_processor: JatProcessor) -> None:
    batch = tiny_processor(text=["go to the", "a"], padding=True, return_tensors="pt")
    assert torch.equal(engine.generate(**batch, max_new_tokens=5), tiny_model.generate(**batch, max_new_tokens=5))
    lists = tiny_processor(text=["go to the", "a"])
    rows = engine.generate(**lists, max_new_tokens=5)
    for ids, row in zip(lists["input_ids"], rows, strict=True):
        assert torch.equal(row, tiny_model.generate(torch.tensor([ids]), max_new_tokens=5)[0])


def test_truncation(engine: JatEngine, tiny_model: JatModel) -> None:
    ids = random_ids(3, 2 * LIMIT)
    got = engine.generate(input_ids=ids, max_new_tokens=10, truncation="left")
    kept = ids[:, -(LIMIT - 9) :]
    assert torch.equal(got[:, ids.shape[1] :], tiny_model.generate(kept, max_new_tokens=10)[:, kept.shape[1] :])
    assert torch.equal(got[:, : ids.shape[1]], ids)


# ---- the caller's objects ------------------------------------------------------------------------------------------


class Forbid(transformers.LogitsProcessor):
    """Forbids a token, and notes the shapes that it was called with."""

    def __init__(self, token: int) -> None:
        self.token = token
        self.shapes: list[Any] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.shapes.append((tuple(input_ids.shape), tuple(scores.shape)))
        scores[:, self.token] = -float("inf")
        return scores


class StopAt(transformers.StoppingCriteria):
    """Ends a text behind its n-th token."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.length)


def test_processors_and_criteria(engine: JatEngine, tiny_model: JatModel) -> None:
    ids = random_ids(0, 7)
    forbid = Forbid(243)
    objects = {"logits_processor": transformers.LogitsProcessorList([forbid])}
    expected = tiny_model.generate(ids, **objects)
    forbid.shapes.clear()
    assert torch.equal(engine.generate(input_ids=ids, **objects), expected)
    assert forbid.shapes[0] == ((1, 7), (1, 257))

    for criteria in (
        [StopAt(12)],
        [transformers.MaxLengthCriteria(9)],
        [transformers.EosTokenCriteria(torch.tensor([14]))],
        [transformers.MaxTimeCriteria(0.0)],
    ):
        given = transformers.StoppingCriteriaList(criteria)
        expected = tiny_model.generate(ids, stopping_criteria=given)
        assert torch.equal(engine.generate(input_ids=ids, stopping_criteria=given), expected)

    replaced = {"logits_processor": [transformers.RepetitionPenaltyLogitsProcessor(1.9)], "repetition_penalty": 1.1}
    expected = tiny_model.generate(ids, **replaced)
    assert torch.equal(engine.generate(input_ids=ids, **replaced), expected)


def test_allowed_tokens(engine: JatEngine, tiny_model: JatModel) -> None:
    def allowed(batch_id: int, ids: torch.Tensor) -> list[int]:
        return [batch_id + 1, 200 + len(ids)]

    ids = torch.cat([random_ids(0, 4), random_ids(1, 4)])
    expected = tiny_model.generate(ids, prefix_allowed_tokens_fn=allowed)
    assert torch.equal(engine.generate(input_ids=ids, prefix_allowed_tokens_fn=allowed), expected)


def test_streamers(engine: JatEngine, tiny_model: JatModel, tiny_processor: JatProcessor, capsys: Any) -> None:
    ids = tiny_processor(text="go to", return_tensors="pt")["input_ids"]
    tiny_model.generate(ids, streamer=transformers.TextStreamer(tiny_processor.tokenizer))
    expected = capsys.readouterr().out
    engine.generate("go to", streamer=transformers.TextStreamer(tiny_processor.tokenizer))
    assert capsys.readouterr().out == expected
    streamer = transformers.TextIteratorStreamer(tiny_processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    text = engine.generate("go to", streamer=streamer)
    assert "".join(streamer) == text


def test_max_time(engine: JatEngine) -> None:
    assert engine.generate(input_ids=[[1, 2]], max_time=0.0)[0].shape == (3,)
    (event,) = engine.generate_stream(input_ids=[[1, 2]], max_time=0.0)
    assert event.finish_reason == "time"
