"""`JatModel` as a transformers model, in cases that the recorded answers do not cover."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

from jat_engine import JatConfig, JatModel, JatProcessor
from jat_engine.model.modules import cyclic_expand
from jat_engine.model.transformer import KeyValueCache
from jat_engine.testing import golden

pytestmark = pytest.mark.versions

RL = {name: torch.from_numpy(value) for name, value in golden._rl_case("forward_continuous_discrete", 1).items()}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("image", [False, True], ids=["text", "image"])
def test_padded_prompts_generate_as_if_alone(image: bool, side: str, tiny_model: JatModel) -> None:
    ids, pixels = torch.from_numpy(golden.text_ids())[:, :8], torch.from_numpy(golden.pixel_values())
    arguments: dict[str, Any] = {"max_new_tokens": 14, "do_sample": False}  # past the local window of 12
    pictures: list[dict[str, Any]] = [{"pixel_values": pixels[i : i + 1]} if image else {} for i in range(2)]
    prompts = (ids[:1], ids[1:, 3:])
    alone = [
        tiny_model.generate(row, **one, **arguments)[0, -14:].tolist()
        for row, one in zip(prompts, pictures, strict=True)
    ]
    padded, mask = ids.clone(), torch.ones_like(ids)
    padded[1], mask[1] = 256, 0
    where = slice(3, None) if side == "left" else slice(0, 5)
    padded[1, where], mask[1, where] = ids[1, 3:], 1
    for options in ({}, {"use_cache": False}, *([] if image else [{"prefill_chunk_size": 3}])):
        both = {"pixel_values": pixels} if image else {}
        for name in ("inputs", "input_ids"):
            together = tiny_model.generate(**{name: padded}, attention_mask=mask, **both, **arguments, **options)
            assert together[:, -14:].tolist() == alone


@pytest.mark.parametrize("image", [False, True], ids=["text", "image"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_texts_have_the_loss_of_lone_ones(side: str, image: bool, tiny_model: JatModel) -> None:
    ids = torch.from_numpy(golden.text_ids())
    pixels = torch.from_numpy(golden.pixel_values()) if image else None
    padded, mask = torch.zeros_like(ids), torch.zeros_like(ids)
    where = slice(6, None) if side == "left" else slice(0, 10)
    padded[0], mask[0] = ids[0], 1
    padded[1, where], mask[1, where] = ids[1, 6:], 1
    with torch.no_grad():
        one = tiny_model(input_ids=ids[:1], pixel_values=None if pixels is None else pixels[:1]).loss
        other = tiny_model(input_ids=ids[1:, 6:], pixel_values=None if pixels is None else pixels[1:]).loss
        for loss_only in (False, True):
            both = tiny_model(input_ids=padded, attention_mask=mask, pixel_values=pixels, loss_only=loss_only).loss
            assert both.item() == pytest.approx((one.item() * 15 + other.item() * 9) / 24, rel=1e-5)


def test_image_prompts_generate_as_if_alone(tiny_model: JatModel) -> None:
    ids = torch.from_numpy(golden.text_ids())[:, :8]
    pixels = torch.from_numpy(golden.pixel_values())
    arguments: dict[str, Any] = {"max_new_tokens": 14, "do_sample": False}
    alone = [tiny_model.generate(ids[i : i + 1], pixel_values=pixels[i : i + 1], **arguments) for i in range(2)]
    together = tiny_model.generate(ids, pixel_values=pixels, attention_mask=torch.ones_like(ids), **arguments)
    assert together.tolist() == torch.cat(alone).tolist()


@pytest.fixture
def fed(tiny_model: JatModel) -> Iterator[list[int]]:
    """Return a list to which each forward pass appends its number of tokens."""
    lengths: list[int] = []
    hook = tiny_model.transformer.register_forward_pre_hook(
        lambda module, args, inputs: lengths.append(inputs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    yield lengths
    hook.remove()


@pytest.mark.parametrize(
    ("options", "lengths"),
    [
        ({}, [8] + [1] * 13),
        ({"prefill_chunk_size": 3}, [3, 3, 2] + [1] * 13),
        ({"use_cache": False}, list(range(8, 22))),
        ({"cache_implementation": "static"}, [8] + [1] * 13),
        ({"cache_implementation": "static", "prefill_chunk_size": 5}, [5, 3] + [1] * 13),
        ({"prefill_chunk_size": 3, "num_beams": 1, "attention_mask": None}, [3, 3, 2] + [1] * 13),
    ],
    ids=str,
)
def test_generate_computes_each_token_once(
    options: dict[str, Any], lengths: list[int], tiny_model: JatModel, fed: list[int]
) -> None:
    ids = torch.from_numpy(golden.text_ids())[:, :8]
    options = {"attention_mask": torch.ones_like(ids), **options}
    plain = tiny_model.generate(ids, max_new_tokens=14, do_sample=False)
    fed.clear()
    assert tiny_model.generate(ids, max_new_tokens=14, do_sample=False, **options).tolist() == plain.tolist()
    assert fed == lengths


def test_beams_equal_those_without_a_cache(tiny_model: JatModel, fed: list[int]) -> None:
    arguments: dict[str, Any] = {"max_new_tokens": 14, "do_sample": False, "num_beams": 3, "num_return_sequences": 2}
    ids, pixels = torch.from_numpy(golden.text_ids())[:, :8], torch.from_numpy(golden.pixel_values())
    for images in ({}, {"pixel_values": pixels}):
        fed.clear()
        cached = tiny_model.generate(ids, **images, **arguments)
        assert fed == [8 + len(images) * tiny_model.config.num_image_tokens] + [1] * 13
        assert cached.tolist() == tiny_model.generate(ids, **images, **arguments, use_cache=False).tolist()


@pytest.mark.parametrize("image", [False, True], ids=["text", "image"])
def test_generation_continues_from_a_returned_cache(image: bool, tiny_model: JatModel, fed: list[int]) -> None:
    """The cache has the name of the installed transformers: `cache`, before 5.24 `past_key_values`."""
    arguments: dict[str, Any] = {"do_sample": False, "return_dict_in_generate": True}
    if image:
        arguments["pixel_values"] = torch.from_numpy(golden.pixel_values())[:1]
    ids = torch.from_numpy(golden.text_ids())[:1, :8]
    whole = tiny_model.generate(ids, max_new_tokens=14, **arguments)
    first = tiny_model.generate(ids, max_new_tokens=5, **arguments)
    name = "cache" if "cache" in first else "past_key_values"
    fed.clear()
    rest = tiny_model.generate(first.sequences, max_new_tokens=9, **arguments, **{name: first[name]})
    assert rest.sequences.tolist() == whole.sequences.tolist()
    assert fed == [1] * 9


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
@pytest.mark.parametrize("kind", [DynamicCache, KeyValueCache, StaticCache])
def test_a_cache_goes_by_both_names(name: str, kind: Any, tiny_model: JatModel) -> None:
    ids = torch.from_numpy(golden.text_ids())
    cache = kind(config=tiny_model.config, max_cache_len=30) if kind is StaticCache else kind()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = tiny_model(input_ids=ids, return_loss=False, use_cache=False)
        first = tiny_model(input_ids=ids[:, :10], return_loss=False, **{name: cache})
        rest = tiny_model(input_ids=ids[:, 10:], return_loss=False, **{name: first[name]})
    torch.testing.assert_close(torch.cat((first.logits, rest.logits), 1), whole.logits, rtol=1e-5, atol=1e-5)
    assert rest.cache is rest.past_key_values is rest["past_key_values"] is rest.get("cache") is cache
    assert "cache" in rest
    assert "past_key_values" in rest
    assert whole.cache is None
    assert "past_key_values" not in whole
    with pytest.raises(ValueError, match="expected one cache, got another one"):
        tiny_model(input_ids=ids, return_loss=False, cache=cache, past_key_values=DynamicCache())


@pytest.mark.parametrize("training", [False, True])
def test_no_position_sees_what_comes_after_it(training: bool, tiny_model: JatModel) -> None:
    """This holds with left padding and with holes: the last padded position predicts the first token of the text."""
    ids = torch.from_numpy(golden.text_ids())
    mask = torch.ones_like(ids)
    mask[0, :5], mask[1, 3:] = 0, 0
    changed = ids.clone()
    changed[:, 5:] = changed[:, 5:].flip(1)
    tiny_model.train(training)
    try:
        with torch.no_grad():
            one, other = (tiny_model(input_ids=x, attention_mask=mask).logits[:, :5] for x in (ids, changed))
    finally:
        tiny_model.eval()
    assert torch.equal(one, other)


def test_a_static_cache_has_no_room_for_an_image(tiny_model: JatModel) -> None:
    ids, pixels = torch.from_numpy(golden.text_ids())[:, :8], torch.from_numpy(golden.pixel_values())
    with pytest.raises(ValueError, match="cache_implementation: expected a cache that grows"):
        tiny_model.generate(ids, pixel_values=pixels, max_new_tokens=3, cache_implementation="static")


def test_activations_belong_to_one_layer(tiny_model: JatModel) -> None:
    layers = [module for name, module in tiny_model.named_modules() if name.endswith("mlp.act")]
    assert len(layers) == len({id(layer) for layer in layers}) == tiny_model.config.num_layers


def test_a_padded_query_that_sees_nothing_is_finite(tiny_model: JatModel) -> None:
    """The first tokens of a left-padded prompt see no valid key; attention must not become NaN there."""
    ids = torch.from_numpy(golden.text_ids())
    mask = torch.ones_like(ids)
    mask[0, :6] = 0
    for training in (False, True):
        tiny_model.train(training)
        try:
            with torch.no_grad():
                assert tiny_model(input_ids=ids, attention_mask=mask).logits.isfinite().all()
        finally:
            tiny_model.eval()
    with pytest.raises(ValueError, match=r"attention_mask: expected shape \[2, 16\], .* got \[2, 9\]"):
        tiny_model(input_ids=ids, attention_mask=mask[:, :9], return_loss=False)


def test_generation_stops_with_an_error_at_the_last_position(tiny_model: JatModel) -> None:
    ids = torch.from_numpy(golden.text_ids()[:1])
    longest = tiny_model.generate(input_ids=ids, max_new_tokens=33, do_sample=False, eos_token_id=-1)
    assert longest.shape == (1, 49)  # the last token needs no position
    with pytest.raises(ValueError, match="at most max_position_embeddings=48 tokens, got 49"):
        tiny_model.generate(input_ids=ids, max_new_tokens=34, do_sample=False, eos_token_id=-1)


def test_cached_forward_equals_whole_forward(tiny_model: JatModel) -> None:
    ids = torch.from_numpy(golden.text_ids())
    with torch.no_grad():
        whole = tiny_model(input_ids=ids, return_loss=False).logits
        first = tiny_model(input_ids=ids[:, :10], return_loss=False, use_cache=True)
        rest = tiny_model(input_ids=ids[:, 10:], past_key_values=first.past_key_values, return_loss=False).logits
    torch.testing.assert_close(torch.cat((first.logits, rest), 1), whole, rtol=1e-5, atol=1e-5)


def test_losses_without_mask_equal_a_full_mask(tiny_model: JatModel) -> None:
    inputs = {key: value for key, value in RL.items() if key != "attention_mask"}
    with torch.no_grad():
        without = tiny_model(**inputs).loss
        with_mask = tiny_model(**inputs, attention_mask=torch.ones(3, 10)).loss
    assert without.item() == pytest.approx(with_mask.item(), rel=1e-6)


def test_padding_does_not_reach_the_loss(tiny_model: JatModel) -> None:
    """Masked steps may hold any values."""
    garbage = {key: value.clone() for key, value in RL.items()}
    masked = garbage["attention_mask"] == 0
    garbage["continuous_observations"][masked] = 100.0
    garbage["rewards"][masked] = -50.0
    garbage["discrete_actions"][masked] = 0
    garbage["loss_weight"][masked] = 1000.0
    with torch.no_grad():
        assert tiny_model(**garbage).loss.item() == pytest.approx(tiny_model(**RL).loss.item(), rel=1e-6)


def test_observations_are_not_predicted_without_their_loss(tiny_folder: Any) -> None:
    model = JatModel.from_pretrained(tiny_folder, observation_loss_coef=0.0)
    with torch.no_grad():
        output = model(**RL)
    assert output.pred_observations is None
    assert output.observation_loss.item() == 0
    assert output.loss.item() == pytest.approx(0.995 * output.action_loss.item())


def test_tuple_output(tiny_model: JatModel) -> None:
    with torch.no_grad():
        loss, observation_loss, action_loss, observations, actions, _cache = tiny_model(**RL, return_dict=False)
    assert loss.item() == pytest.approx(0.005 * observation_loss.item() + 0.995 * action_loss.item())
    assert observations.shape == (3, 10, 13)
    assert actions.shape == (3, 10, 257)


def test_training_step_reaches_every_parameter_that_is_used(tiny_folder: Any) -> None:
    model = JatModel.from_pretrained(tiny_folder).train()
    for case, inputs in golden.forward_cases():
        loss = model(**{key: torch.from_numpy(value) for key, value in inputs.items()}).loss
        assert loss.requires_grad, case["name"]
        loss.backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    # Nothing predicts discrete observations. Convolution biases cancel in the normalisation that follows them.
    assert {name for name in without if not name.startswith("multi_discrete_decoder.")} <= {
        f"image_{part}.module.{layer}.bias"
        for part, layers in (("encoder", ("conv1", "conv2", "conv3")), ("decoder", ("deconv1", "deconv2")))
        for layer in layers
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": None}, "rewards: expected a tensor"),
        ({"discrete_actions": None}, "actions: expected continuous_actions or discrete_actions"),
        ({"continuous_observations": None}, "observations: expected one of"),
        ({"continuous_observations": torch.zeros(3, 10, 377)}, "at most 377 features, got 378"),
        ({"input_ids": torch.zeros(1, 49, dtype=torch.long)}, "max_position_embeddings=48 tokens, got 49"),
        ({"pixel_values": torch.zeros(1, 3, 224, 224)}, r"pixel_values: expected shape \[batch, 3, 32, 32\]"),
    ],
)
def test_wrong_inputs(change: dict[str, Any], message: str, tiny_model: JatModel) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model(**{**RL, **change})


def test_cyclic_expand() -> None:
    assert cyclic_expand(torch.tensor([[1, 2, 3]]), 7).tolist() == [[1, 2, 3, 1, 2, 3, 1]]


def test_byte_level_processor_round_trip() -> None:
    processor = JatProcessor.byte_level(JatConfig.from_preset("small"))
    text = "Grüße, 世界! <go>"
    ids = processor(text=text)["input_ids"][0]
    assert len(ids) == len(text.encode())
    assert processor.decode(ids) == text
    assert processor.tokenizer.pad_token_id == 256


@pytest.mark.parametrize("steps", [1, 64, 65, 150])
@pytest.mark.parametrize("window", [100, 128, 256])
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_fast_attention_equals_the_plain_one(steps: int, window: int, autocast: bool) -> None:
    """Compare outputs and gradients, with windows shorter and longer than a block of queries."""
    config = JatConfig(
        hidden_size=52,
        num_layers=2,
        num_heads=2,
        max_position_embeddings=300,
        window_size=window,
        max_continuous_size=8,
        vocab_size=60,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    inputs = {
        "continuous_observations": torch.randn(2, steps, 5),
        "continuous_actions": torch.randn(2, steps, 2),
        "rewards": torch.randn(2, steps),
    }
    outcomes = []
    for plain in (True, False):
        torch.manual_seed(1)
        model = JatModel(config).train()
        model.transformer.plain_attention = plain
        for block in model.transformer.h:  # sharp attention: sums over everything would hide a wrong mask
            block.attn.attention.q_proj.weight.data *= 30
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = model(**inputs)
        output.loss.backward()
        gradient = model.transformer.h[0].attn.attention.k_proj.weight.grad
        outcomes.append((output.pred_actions.detach().float(), gradient))

    tolerance = 0.05 if autocast else 1e-4
    for plain_result, fast_result in zip(*outcomes, strict=True):
        assert (fast_result - plain_result).norm() <= tolerance * plain_result.norm()
