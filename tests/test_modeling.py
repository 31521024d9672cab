"""`JatModel` as a transformers model: what the recorded answers do not cover."""

from __future__ import annotations

from typing import Any

import golden
import pytest
import torch

from jat_engine import JatConfig, JatModel, JatProcessor
from jat_engine.modules import cyclic_expand

RL = {name: torch.from_numpy(value) for name, value in golden._rl_case("forward_continuous_discrete", 1).items()}


def test_padded_prompts_generate_as_if_alone(tiny_model: JatModel) -> None:
    """Left padding, as for any decoder."""
    ids = torch.from_numpy(golden.text_ids())[:, :8]
    arguments: dict[str, Any] = {"max_new_tokens": 14, "do_sample": False}  # past the local window of 12
    alone = [tiny_model.generate(row, **arguments)[0, -14:].tolist() for row in (ids[:1], ids[1:, 3:])]
    padded, mask = ids.clone(), torch.ones_like(ids)
    padded[1, :3], mask[1, :3] = 256, 0
    together = tiny_model.generate(padded, attention_mask=mask, **arguments)
    assert together[:, -14:].tolist() == alone
    with pytest.raises(ValueError, match="without padding beside pixel_values"):
        tiny_model.generate(
            padded, attention_mask=mask, pixel_values=torch.from_numpy(golden.pixel_values()), **arguments
        )


def test_image_prompts_generate_as_if_alone(tiny_model: JatModel) -> None:
    ids = torch.from_numpy(golden.text_ids())[:, :8]
    pixels = torch.from_numpy(golden.pixel_values())
    arguments: dict[str, Any] = {"max_new_tokens": 14, "do_sample": False}
    alone = [tiny_model.generate(ids[i : i + 1], pixel_values=pixels[i : i + 1], **arguments) for i in range(2)]
    together = tiny_model.generate(ids, pixel_values=pixels, attention_mask=torch.ones_like(ids), **arguments)
    assert together.tolist() == torch.cat(alone).tolist()


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
    """Masked steps may hold anything."""
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
def test_fused_attention_is_the_eager_one(steps: int, window: int, autocast: bool) -> None:
    """Outputs and gradients, where the window is shorter and longer than what is computed at once."""
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
    for implementation in ("eager", "sdpa"):
        torch.manual_seed(1)
        model = JatModel._from_config(config, attn_implementation=implementation).train()
        for block in model.transformer.h:  # sharp attention: sums over everything would hide a wrong mask
            block.attn.attention.q_proj.weight.data *= 30
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = model(**inputs)
        output.loss.backward()
        gradient = model.transformer.h[0].attn.attention.k_proj.weight.grad
        outcomes.append((output.pred_actions.detach().float(), gradient))
    tolerance = 0.05 if autocast else 1e-4
    for eager, fused in zip(*outcomes, strict=True):
        assert (fused - eager).norm() <= tolerance * eager.norm()
