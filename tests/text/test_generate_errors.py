"""What `generate` refuses, each with one clear line, before anything is computed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from jat_engine import JatEngine, JatModel
from jat_engine.errors import InputError
from jat_engine.testing import golden

Load = Callable[..., JatEngine]
LIMIT = golden.CONFIG["max_position_embeddings"]
SIZE = golden.CONFIG["image_size"]
PATCHES = (SIZE // golden.CONFIG["patch_size"]) ** 2
FLOATS = np.full((2, 3, SIZE, SIZE), 1.0)
GREY = np.zeros((9, 9), np.uint8)


@pytest.fixture
def engine(load: Load) -> JatEngine:
    return load(backend="torch", dtype="float32")


PROMPTS: list[tuple[dict[str, Any], str]] = [
    ({}, "text: expected text or input_ids, got neither"),
    ({"text": "a", "input_ids": [[1]]}, "text: expected text or input_ids, got both"),
    ({"text": ""}, "text: expected at least one token, got an empty prompt"),
    ({"text": ["a", ""]}, r"text\[1\]: expected at least one token"),
    ({"text": []}, "text: expected at least one prompt, got none"),
    ({"text": ["a", 3]}, r"text\[1\]: expected a string, got int"),
    ({"text": "a\ud800"}, "text: expected a text of whole Unicode characters"),
    ({"text": np.array(3)}, "text: expected a string or strings, got ndarray"),
    ({"text": 3}, "text: expected a string or strings, got int"),
    ({"text": "a", "attention_mask": [[1]]}, "attention_mask: expected along with input_ids"),
    ({"input_ids": [[1], []]}, r"input_ids\[1\]: expected at least one token"),
    ({"input_ids": [[1, 2], [3, 257]]}, r"input_ids\[1\]: expected tokens in \[0, vocab_size=257\), got 257"),
    ({"input_ids": [[-1]]}, r"input_ids\[0\]: expected tokens in .* got -1"),
    ({"input_ids": [1, 2]}, r"input_ids\[0\]: expected a list of tokens, got 1; pass prompts as \[B, S\]"),
    ({"input_ids": [[1.5]]}, r"input_ids\[0\]: expected a list of tokens"),
    ({"input_ids": [["a"]]}, r"input_ids\[0\]: expected a list of tokens"),
    ({"input_ids": torch.zeros(1, 3, dtype=torch.bfloat16)}, r"input_ids: expected integers of shape \[B, S\], got"),
    ({"input_ids": [[1, 2]], "attention_mask": [[1, 2]]}, r"attention_mask\[0\]: expected zeros .* got other values"),
    ({"input_ids": torch.zeros(3)}, r"input_ids: expected integers of shape \[B, S\], got float32 of shape \[3\]"),
    ({"input_ids": [[1, 2]], "attention_mask": [[1]]}, r"attention_mask\[0\]: expected zeros and ones of shape \[2\]"),
    ({"input_ids": [[1, 2, 3]], "attention_mask": [[1, 0, 1]]}, r"attention_mask\[0\]: .* some between tokens"),
    ({"input_ids": [[1, 2]], "attention_mask": [[0, 0]]}, r"input_ids\[0\]: expected at least one token"),
    ({"input_ids": [[1, 2]], "attention_mask": [[1, 1], [1, 1]]}, "attention_mask: expected the shape of input_ids"),
    ({"text": "x" * (LIMIT + 1)}, rf"text: expected at most {LIMIT} tokens, .* {LIMIT} positions for text, got"),
    ({"input_ids": [[1], [1] * 30], "max_new_tokens": 20}, rf"input_ids\[1\]: expected at most {LIMIT - 19} tokens"),
    ({"input_ids": [[1] * 9], "max_length": 9}, r"input_ids\[0\]: expected fewer tokens than max_length=9, got 9"),
    (
        {"input_ids": [[1] * 24], "images": [GREY], "max_new_tokens": 10},
        rf"input_ids\[0\]: expected at most {LIMIT - PATCHES - 9} tokens, .* without those of the image",
    ),
    ({"text": "a", "images": GREY, "pixel_values": FLOATS[:1]}, "images: expected images or pixel_values, got both"),
    ({"text": ["a", "b"], "images": [GREY]}, "images: expected one for each of 2 prompts, got 1"),
    ({"text": ["a", "b"], "images": GREY}, r"images: expected one for each of 2 prompts, got an array"),
    ({"text": ["a", "b"], "images": Image.new("RGB", (9, 9))}, "images: expected one for each of 2 prompts, got Image"),
    ({"text": "a", "images": [GREY, GREY]}, "images: expected one for each of 1 prompts, got 2"),
    ({"text": "a", "images": np.full((9, 9, 3), np.nan)}, "images: expected finite values"),
    ({"text": "a", "images": np.full((9, 9, 3), -1.0)}, "images: expected floats in 0..1 or in 0..255"),
    ({"text": "a", "images": np.zeros((9, 9, 7), np.uint8)}, "images: expected 1 to 4 channels"),
    ({"text": "a", "images": np.zeros((1, 1, 4), np.uint8)}, r"images: expected \[H, W, C\] .* pass a PIL image, or"),
    ({"text": "a", "images": Image.new("RGB", (0, 3))}, r"images: expected a picture with pixels, got size \[0, 3\]"),
    ({"text": "a", "images": "http://localhost:1/a.png"}, "images: expected a picture, got 'http://localhost:1/a.png'"),
    ({"text": "a", "images": "nothing.png"}, "images: expected a picture, got 'nothing.png'"),
    ({"text": "a", "pixel_values": FLOATS}, "pixel_values: expected one for each of 1 prompts, got 2"),
    ({"text": "a", "pixel_values": FLOATS[0, :, 1:]}, r"pixel_values\[0\]: expected numbers of shape \[3, 32, 32\]"),
    ({"text": "a", "pixel_values": FLOATS[:1] * np.inf}, r"pixel_values\[0\]: expected finite numbers"),
]

OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": 3}, "max_tokens: expected an option of generate, .* did you mean max_new_tokens"),
    ({"max_new_tokens": 0}, "max_new_tokens: expected an integer >= 1, got 0"),
    ({"max_new_tokens": 2.5}, "max_new_tokens: expected an integer >= 1, got 2.5"),
    ({"do_sample": 1}, "do_sample: expected True or False, got 1"),
    ({"do_sample": True, "temperature": 0.0}, "temperature: expected a number > 0, got 0.0"),
    ({"do_sample": True, "temperature": float("nan")}, "temperature: expected a number"),
    ({"do_sample": True, "top_p": 1.5}, "top_p: expected a number >= 0 and <= 1, got 1.5"),
    ({"do_sample": True, "top_k": -1}, "top_k: expected an integer >= 0, got -1"),
    ({"do_sample": True, "typical_p": 0}, "typical_p: expected a number > 0"),
    ({"repetition_penalty": 0.0}, "repetition_penalty: expected a number > 0"),
    ({"bad_words_ids": [1]}, "bad_words_ids: expected a list of lists of tokens"),
    ({"bad_words_ids": [[1], []]}, "bad_words_ids: expected a list of lists of tokens, none of them empty"),
    ({"bad_words_ids": [[999]]}, r"bad_words_ids\[0\]: expected tokens in \[0, vocab_size=257\), got 999"),
    ({"suppress_tokens": [-1]}, "suppress_tokens: expected an integer >= 0"),
    ({"eos_token_id": "a"}, "eos_token_id: expected tokens, got 'a'"),
    ({"pad_token_id": [1, 2]}, "pad_token_id: expected one token"),
    ({"stop_strings": ["a", ""]}, "stop_strings: expected a string or strings, none of them empty"),
    ({"max_time": "soon"}, "max_time: expected a number >= 0, got 'soon'"),
    ({"truncation": "right"}, "truncation: expected 'left', .* got 'right'"),
    ({"num_return_sequences": 2}, "num_return_sequences: expected 1 without do_sample, got 2"),
    ({"output_scores": True}, "output_scores: expected return_dict_in_generate=True"),
    ({"num_beams": 4}, "num_beams: expected 1, .* got 4; JatModel.generate has it"),
    ({"penalty_alpha": 0.6}, "penalty_alpha: expected None, .*JatModel.generate has it"),
    ({"assistant_model": 3}, "assistant_model: expected None"),
    ({"use_cache": False}, "use_cache: expected True, .* got False"),
    ({"output_attentions": True}, "output_attentions: expected False"),
    ({"generation_config": transformers.GenerationConfig(num_beams=2)}, "num_beams: expected 1"),
    ({"generation_config": 3}, "generation_config: expected a GenerationConfig or a mapping, got int"),
    ({"generation_config": {"max_tokens": 3}}, "generation_config.max_tokens: expected a field that engines have"),
    ({"seed": -1}, "seed: expected integers in"),
    ({"seed": [1, 2], "do_sample": True}, "seed: expected one for each of 1 continuations, got 2"),
    ({"logits_processor": [3]}, "logits_processor: expected a list of callable objects"),
    ({"logits_processor": np.zeros((2, 2))}, "logits_processor: expected a list of callable objects"),
    ({"prefix_allowed_tokens_fn": [1]}, "prefix_allowed_tokens_fn: expected a function"),
    ({"truncation": np.zeros(2)}, "truncation: expected 'left'"),
    ({"num_return_sequences": 2**70, "do_sample": True}, "num_return_sequences: expected an integer <= 10000"),
    ({"streamer": 3}, "streamer: expected an object with the methods put and end, got 3"),
    ({"do_sample": True, "suppress_tokens": range(257)}, "do_sample: expected scores that give at least one token"),
    ({"stopping_criteria": [lambda ids, scores: None]}, "stopping_criteria: expected answers of True or False, got"),
    ({"stopping_criteria": 3}, "stopping_criteria: expected a list of callable objects"),
]


def name_of(value: Any) -> str:
    """Return a test's name for a value, the same in every process: without addresses of functions."""
    return re.sub(" at 0x[0-9a-f]+", "", str(value))[:60]


@pytest.mark.parametrize(("arguments", "message"), PROMPTS, ids=name_of)
def test_prompts(arguments: dict[str, Any], message: str, engine: JatEngine) -> None:
    for call in (engine.generate, engine.generate_stream):
        with pytest.raises(InputError, match=message) as caught:
            call(**arguments)
        assert "\n" not in str(caught.value)
    assert engine.cache_stats.reserved == 0


@pytest.mark.parametrize(("options", "message"), OPTIONS, ids=name_of)
def test_options(options: dict[str, Any], message: str, engine: JatEngine) -> None:
    with pytest.raises(InputError, match=message) as caught:
        engine.generate(input_ids=[[1, 2]], **options)
    assert "\n" not in str(caught.value)


def test_images_of_any_form(engine: JatEngine) -> None:
    """A single pixel, RGB with alpha and floats are images as well; they equal the same image in another form."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    alpha = np.concatenate([image, np.full((20, 30, 1), 99, np.uint8)], -1)
    expected = engine.generate("what?", image, max_new_tokens=4)
    floats = image / 255, image.astype(np.float32)
    for other in (alpha, Image.fromarray(alpha), *floats, torch.from_numpy(image), [image], image[None]):
        assert engine.generate("what?", other, max_new_tokens=4) == expected
    engine.generate("what?", Image.new("L", (1, 1)), max_new_tokens=2)
    engine.generate("what?", Image.new("RGBA", (1, 1)), max_new_tokens=2)


def test_several_prompts_have_no_streamer(engine: JatEngine) -> None:
    with pytest.raises(InputError, match="streamer: expected with a single continuation, got 2"):
        engine.generate(["a", "b"], streamer=transformers.TextStreamer(None))
    with pytest.raises(InputError, match="return_dict_in_generate: expected with generate"):
        engine.generate_stream("a", return_dict_in_generate=True)


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize(
    "process",
    [
        lambda scores: None,
        lambda scores: scores[:, :3],
        lambda scores: torch.cat([scores, scores + 1e3], 1),
        lambda scores: scores[0],
        lambda scores: scores.long(),
        lambda scores: scores.numpy(),
    ],
)
def test_scores_of_another_form(process: Callable[..., Any], do_sample: bool, engine: JatEngine) -> None:
    """They end their text before a token that the model does not have reaches the others."""
    with pytest.raises(InputError, match=r"logits_processor: expected <lambda> to return floats of shape \[1, 257\]"):
        engine.generate(input_ids=[[1, 2]], logits_processor=[lambda ids, scores: process(scores)], do_sample=do_sample)
    assert engine.cache_stats.reserved == 0


def test_idle_options_are_named(engine: JatEngine) -> None:
    with pytest.warns(UserWarning, match="temperature, top_k: expected with do_sample=True"):
        engine.generate(input_ids=[[1]], temperature=0.5, top_k=3, max_new_tokens=1)
    with pytest.warns(UserWarning, match="min_new_tokens: expected at most max_new_tokens=1, got 5"):
        engine.generate(input_ids=[[1]], min_new_tokens=5, max_new_tokens=1)
    with pytest.warns(UserWarning, match="max_length: expected without max_new_tokens"):
        engine.generate(input_ids=[[1]], max_length=9, max_new_tokens=1)


def test_without_a_processor(tiny_model: JatModel) -> None:
    engine = JatEngine.from_model(tiny_model, device="cpu", dtype="float32", backend="torch")
    with pytest.raises(InputError, match="text: expected an engine with a processor, got one made without"):
        engine.generate("a")
    with pytest.raises(InputError, match="images: expected an engine with a processor"):
        engine.generate(input_ids=[[1]], images=[GREY])
    with pytest.raises(InputError, match="stop_strings: expected an engine with a processor"):
        engine.generate(input_ids=[[1]], stop_strings="a")
    assert [event.text for event in engine.generate_stream(input_ids=[[1]], max_new_tokens=2)] == ["", ""]


def test_without_files(tmp_path: Path) -> None:
    folder = golden.write_checkpoint(tmp_path / "agent")
    for name in ("tokenizer.json", "preprocessor_config.json", "generation_config.json"):
        (folder / name).unlink()
    engine = JatEngine.from_pretrained(folder, device="cpu", dtype="float32", backend="torch")
    with pytest.raises(InputError, match=r"text: expected an engine with a tokenizer, .* no tokenizer.json"):
        engine.generate("a")
    with pytest.raises(InputError, match=r"images: expected an engine with an image processor, .* pass pixel_values"):
        engine.generate(input_ids=[[1]], images=[GREY])
    model = JatModel.from_pretrained(folder)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(engine.generate(input_ids=ids), model.generate(ids))
    ids = torch.tensor([[1, 2]])
    options = {"eos_token_id": None, "max_new_tokens": 3}
    with pytest.raises(InputError, match="pad_token_id: expected a token to fill up the rows"):
        engine.generate(input_ids=ids.repeat(2, 1), max_time=9.0, **options)
