"""`JatProcessor`, in cases that the recorded answers do not cover."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jat_engine import InputError, JatConfig, JatModel, JatProcessor
from jat_engine.testing import golden

pytestmark = pytest.mark.versions

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (40, 50, 4), dtype=np.uint8)


def test_alpha_is_dropped_and_grey_spread(tiny_processor: JatProcessor) -> None:
    rgb = tiny_processor(images=Image.fromarray(PIXELS[..., :3]), return_tensors="pt")["pixel_values"]
    assert rgb.shape == (1, 3, 32, 32)
    rgba = tiny_processor(images=[Image.fromarray(PIXELS)], return_tensors="pt")["pixel_values"]
    assert torch.equal(rgba, rgb)
    grey = Image.fromarray(PIXELS[..., 0])
    spread = Image.fromarray(np.repeat(PIXELS[..., :1], 3, axis=-1))
    assert torch.equal(
        tiny_processor(images=grey, return_tensors="pt")["pixel_values"],
        tiny_processor(images=spread, return_tensors="pt")["pixel_values"],
    )


def test_text_leaves_room_for_the_image() -> None:
    """An image of 224 x 224 pixels takes 196 of 216 tokens, so 20 remain."""
    processor = JatProcessor.byte_level(JatConfig.from_preset("small"))
    batch = processor(text=["x" * 30], images=PIXELS[..., :3], truncation=True, max_length=216)
    assert len(batch["input_ids"][0]) == 20
    assert len(processor(text=["x" * 30], truncation=True, max_length=216)["input_ids"][0]) == 30


def test_frames_are_scaled_and_channel_first(tiny_processor: JatProcessor) -> None:
    frames = RNG.integers(0, 256, (2, 3, 84, 84, 4), dtype=np.uint8)
    out = tiny_processor(image_observations=frames)["image_observations"]
    expected = torch.from_numpy(frames).permute(0, 1, 4, 2, 3).float() / 255 * 2 - 1
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match=r"expected uint8 frames .* dtype float64"):
        tiny_processor(image_observations=frames / 255)


def test_pad_collates_examples(tiny_processor: JatProcessor) -> None:
    features = [
        {"continuous_observations": [[1.0], [2.0], [3.0]], "rewards": [0.0, 1.0, 2.0], "discrete_actions": None},
        {"continuous_observations": [[4.0]], "rewards": [5.0], "discrete_actions": None},
    ]
    batch = tiny_processor.pad(features, padding=True, return_tensors="pt")
    assert batch["continuous_observations"].tolist() == [[[1], [2], [3]], [[4], [4], [4]]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert "discrete_actions" not in batch
    tensors = [{key: torch.ones(2, 3) * i for key in ("a", "b")} for i in range(2)]
    stacked = tiny_processor.pad(tensors)
    assert stacked["a"].shape == (2, 2, 3)


def test_given_masks_stay_masked(tiny_processor: JatProcessor) -> None:
    features = [{"rewards": [1.0, 2.0], "attention_mask": [1, 0]}, {"rewards": [1.0], "attention_mask": [1]}]
    assert tiny_processor.pad(features, padding="max_length", max_length=3)["attention_mask"] == [[1, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rewards": [[1.0]], "discrete_actions": [[1, 2]], "padding": True}, "same batch and lengths"),
        ({"rewards": [[]], "padding": True}, "at least one step"),
        ({"rewards": [[1.0]], "truncation": True, "truncation_side": "middle"}, "'left' or 'right', got 'middle'"),
        ({"text": "x", "truncation": True, "max_length": 0}, "room for at least one step, got 0"),
    ],
)
def test_wrong_sequences(fields: dict[str, Any], message: str, tiny_processor: JatProcessor) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_processor(**fields)


def test_missions_take_64_places(tiny_processor: JatProcessor) -> None:
    for mission in ("", golden.MISSIONS[0], "x" * 64, "x" * 65):
        tokens = tiny_processor.encode_mission(mission)
        assert len(tokens) == 64
        assert tokens.count(tiny_processor.tokenizer.pad_token_id) == max(0, 64 - len(mission))


# ---- padding of prompts, and keywords --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"padding": True},
        {"padding": "longest", "padding_side": "left"},
        {"padding": True, "padding_side": "right"},
        {"padding": "max_length", "max_length": 20},
        {"padding": True, "pad_to_multiple_of": 8},
    ],
    ids=str,
)
@pytest.mark.parametrize("image", [False, True], ids=["text", "image"])
def test_prompts_of_a_batch_are_continued_as_if_alone(
    image: bool, options: dict[str, Any], tiny_model: JatModel, tiny_processor: JatProcessor
) -> None:
    texts, arguments = ["go to the red", "pick"], {"max_new_tokens": 5, "do_sample": False, "eos_token_id": -1}
    pictures = [PIXELS[..., :3], PIXELS[::-1, :, :3]] if image else None
    if image and options["padding"] == "max_length":
        options = {**options, "max_length": 24}  # four of them count for the picture
    alone = []
    for number, text in enumerate(texts):
        one = tiny_processor(text=text, images=pictures and pictures[number], return_tensors="pt")
        alone.append(tiny_model.generate(**one, **arguments)[0, -5:].tolist())
    batch = tiny_processor(text=texts, images=pictures, return_tensors="pt", **options)
    assert tiny_model.generate(**batch, **arguments)[:, -5:].tolist() == alone


def test_sides_of_padding(tiny_processor: JatProcessor, monkeypatch: pytest.MonkeyPatch) -> None:
    pad = tiny_processor.tokenizer.pad_token_id
    assert tiny_processor(text=["a", "bc"], padding=True) == {
        "input_ids": [[pad, 64], [65, 66]],
        "attention_mask": [[0, 1], [1, 1]],
    }
    pieces = tiny_processor(text=["abc"], truncation="preserve", max_length=2, padding=True)  # for training
    assert pieces["attention_mask"] == [[1, 1], [1, 0]]
    with pytest.raises(ValueError, match="padding_side: expected 'right' for RL sequences"):
        tiny_processor(rewards=[[1.0], [1.0, 2.0]], padding=True, padding_side="left")
    with pytest.raises(ValueError, match="padding_side: expected 'left' or 'right', got 'up'"):
        tiny_processor(text="a", padding=True, padding_side="up")
    monkeypatch.setattr(tiny_processor.tokenizer, "padding_side", "left")
    assert tiny_processor(text="a", padding="max_length", max_length=3)["attention_mask"] == [[0, 0, 1]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"paddding": True}, "paddding: expected an option of JatProcessor, got an unknown one; did you mean padding?"),
        ({"max_lenght": 3}, "did you mean max_length?"),
        ({"do_resise": False}, "did you mean do_resize?"),
        ({"zzz": 1}, "zzz: .* expected one of text, images"),
        ({"return_offsets_mapping": True}, "return_offsets_mapping: expected to be left out"),
    ],
)
def test_unknown_keywords_are_refused(options: dict[str, Any], message: str, tiny_processor: JatProcessor) -> None:
    with pytest.raises(InputError, match=message):
        tiny_processor(text="a", **options)


def test_keywords_of_both_parts_together(tiny_processor: JatProcessor) -> None:
    batch = tiny_processor(
        text="a",
        images=PIXELS,
        add_special_tokens=False,
        do_center_crop=True,
        return_attention_mask=True,
        return_token_type_ids=False,
        videos=None,
    )
    assert list(batch) == ["input_ids", "attention_mask", "pixel_values"]


def test_unknown_keywords_of_other_calls_are_refused(
    tiny_folder: Path, tiny_model: JatModel, tiny_processor: JatProcessor
) -> None:
    with pytest.raises(InputError, match=r"paddingside: .* did you mean padding_side\?"):
        JatProcessor.from_pretrained(tiny_folder, paddingside="left")
    with pytest.raises(InputError, match=r"rewrad: .* did you mean reward\?"):
        tiny_model.get_next_action(tiny_processor, rewrad=1.0)
    with pytest.raises(InputError, match=r"max_len: .* did you mean max_length\?"):
        tiny_processor.pad([{"rewards": [1.0]}], max_len=3)
