"""The arithmetic in plain PyTorch is that of the published model, in every float dtype."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor

from jat_engine import JatModel
from jat_engine.checkpoint.weights import block_parameters, parameter_shapes
from jat_engine.reference import attention, block, head, key_ages, layer_norm, linear

TOKENS = 30  # the local window of the tiny model is 12
STEPS = (1, 3, 20, 6)


def attend(cached: list[Tensor], window: int, q_TND: Tensor, k_TND: Tensor, v_TND: Tensor) -> Tensor:
    """Attend over the keys and values of `cached`, which grows by those of the step."""
    cached[:] = [torch.cat(pair) for pair in zip(cached, (k_TND, v_TND), strict=True)] if cached else [k_TND, v_TND]
    return attention(q_TND, *cached, key_ages(len(q_TND), len(cached[0]), q_TND.device), window)


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)], ids=str
)
def test_blocks_and_head_are_those_of_the_model(tiny_model: JatModel, dtype: torch.dtype, bound: float) -> None:
    """Steps over cached keys against one pass over all tokens; global layers, and local ones that have dropped some."""
    config = tiny_model.config
    model = copy.deepcopy(tiny_model).double()
    embeddings = torch.randn(TOKENS, config.hidden_size, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        hidden = model.transformer(inputs_embeds=embeddings[None]).last_hidden_state[0]
        expected = model.continuous_decoder(hidden)

    weights = {name: parameter.detach().to(dtype) for name, parameter in model.named_parameters()}
    blocks = [
        block_parameters(config, index).map(
            lambda names: torch.cat([weights[name] for name in names]), lambda name: weights[name]
        )
        for index in range(config.num_layers)
    ]
    caches: list[list[Tensor]] = [[] for _ in blocks]
    x_TH = embeddings.to(dtype) + weights["transformer.wpe.weight"][:TOKENS]
    predictions = []
    for rows in x_TH.split(STEPS):
        for block_weights, cached in zip(blocks, caches, strict=True):
            rows = block(rows, block_weights, config.num_heads, partial(attend, cached, block_weights.window), linear)
        norm = weights["transformer.ln_f.weight"], weights["transformer.ln_f.bias"]
        predictions.append(head(rows, norm, weights["continuous_decoder.weight"], weights["continuous_decoder.bias"]))
    actual = torch.cat(predictions)
    assert actual.dtype == dtype
    assert float((actual.double() - expected).norm() / expected.norm()) <= bound


def test_every_parameter_of_a_block_is_named_once(tiny_model: JatModel) -> None:
    names: list[str] = []
    for index in range(tiny_model.config.num_layers):
        block_parameters(tiny_model.config, index).map(names.extend, names.append)
    assert sorted(names) == sorted(name for name in dict(tiny_model.named_parameters()) if "transformer.h." in name)
    assert len(names) == len(set(names))
    assert set(names) < set(parameter_shapes(tiny_model.config))


@pytest.mark.parametrize(
    ("dtype", "fits", "overflows"),
    [
        (torch.float16, 1e3, None),
        (torch.float32, 1e18, 1e20),
        (torch.bfloat16, 1e18, 1e20),
        (torch.float64, 1e150, 1e155),
    ],
    ids=str,
)
def test_a_variance_that_overflows_gives_no_number(dtype: torch.dtype, fits: float, overflows: float | None) -> None:
    """PyTorch makes such a row its bias, as if nothing had happened."""
    ones, row = torch.ones(64, dtype=dtype), torch.linspace(-1, 1, 64).double()
    assert layer_norm((row * fits).to(dtype), ones, ones).isfinite().all()
    if overflows is not None:  # float16 has no number whose square overflows float32
        assert layer_norm((row * overflows).to(dtype), ones, ones).isnan().all()
