"""Quantised checkpoints: what is written loads, the same bit for bit, and damaged ones are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.engines import native
from safetensors.torch import load_file, save_file

from jat_engine import CheckpointError, JatEngine, JatModel, JatProcessor
from jat_engine.bench.parity import follow_episode
from jat_engine.checkpoint.quantized import IMAGE_FC, KINDS, Codes, from_stored_order, to_stored_order
from jat_engine.cli import main
from jat_engine.testing import golden

MLP_IN = "transformer.h.0.mlp.c_fc.weight"
pytestmark = native


@pytest.fixture(scope="module", params=["int4", "int8"])
def rounded(request: pytest.FixtureRequest, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden checkpoint, each weight rounded to the nearest value."""
    folder = tmp_path_factory.mktemp("rounded") / request.param
    assert main(["quantize", "--model", str(tiny_folder), "--output", str(folder), "--dtype", request.param]) == 0
    return folder


@pytest.fixture
def copy(rounded: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(rounded, tmp_path / rounded.name))


def predictions(engine: JatEngine) -> np.ndarray:
    found = [follow_episode(engine.open_session(e.context_window), e).predictions for e in golden.EPISODES]
    return np.concatenate([np.concatenate(one) for one in found])


def test_plain_codes_are_those_of_quantising_at_load(rounded: Path, tiny_folder: Path) -> None:
    with (
        JatEngine.from_pretrained(rounded, device="cpu") as stored,
        JatEngine.from_pretrained(tiny_folder, device="cpu", dtype=rounded.name) as packed,
    ):
        assert stored.choice.dtype == rounded.name
        assert stored.weight_bytes == packed.weight_bytes
        assert np.array_equal(predictions(stored), predictions(packed))
        ids, options = golden.text_ids(), {"max_new_tokens": 6, "output_logits": True, "return_dict_in_generate": True}
        texts = [engine.generate(input_ids=torch.from_numpy(ids), **options) for engine in (stored, packed)]
        assert torch.equal(texts[0].sequences, texts[1].sequences)
        assert all(torch.equal(*pair) for pair in zip(texts[0].logits, texts[1].logits, strict=True))


@pytest.mark.parametrize(("backend", "dtype"), [("cpu", "float32"), ("cpu", "bfloat16"), ("torch", "auto")])
def test_other_dtypes_take_the_weights_that_the_codes_stand_for(rounded: Path, backend: str, dtype: str) -> None:
    with (
        JatEngine.from_pretrained(rounded, device="cpu", dtype=dtype, backend=backend) as engine,
        JatEngine.from_model(
            JatModel.from_pretrained(rounded),
            JatProcessor.from_pretrained(rounded),
            device="cpu",
            dtype=dtype,
            backend=backend,
        ) as expected,
    ):
        assert f"{rounded.name} codes are converted to {engine.choice.dtype}" in engine.choice.reason
        assert np.array_equal(predictions(engine), predictions(expected))


def test_a_model_of_the_codes_is_an_ordinary_one(rounded: Path, tmp_path: Path) -> None:
    model = JatModel.from_pretrained(rounded)
    assert model.dtype == torch.float32
    model.save_pretrained(tmp_path)
    again = JatModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(again[name], parameter) for name, parameter in model.state_dict().items())


def test_codes_two_a_byte_of_odd_columns() -> None:
    codes = torch.randint(0, 16, (3, 37), dtype=torch.uint8)
    scales, minima = torch.randint(1, 256, (2, 3, 2), dtype=torch.uint8)
    stored = Codes(codes, torch.rand(3), scales, minima).tensors("w")
    assert stored["w.codes"].shape == (3, 19)
    read = Codes.from_tensors({name.removeprefix("w."): tensor for name, tensor in stored.items()}, 37)
    assert torch.equal(read.codes, codes)
    row = stored["w.row_scales"][1] * (scales[1, 1].float() * codes[1, 36] - 16.0 * minima[1, 1])
    assert read.weight()[1, 36] == row


def test_columns_of_frames_are_stored_by_pixel() -> None:
    weight = torch.arange(2 * 128 * 121).view(2, -1)
    stored = to_stored_order(IMAGE_FC, weight)
    assert stored[0, :2].tolist() == [0, 121]  # the second channel of the first pixel
    assert torch.equal(from_stored_order(IMAGE_FC, stored), weight)


# ---- refusals --------------------------------------------------------------------------------------------------------


def change(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["jat_quantization"] |= fields
    path.write_text(json.dumps(config))


def replace(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": 2}, r"config\.json: jat_quantization: version: expected 1, got 2; load it with the release"),
        ({"dtype": "int3"}, "dtype: expected one of .*int4.*, got 'int3'"),
        ({"group_size": 64}, "group_size: expected 32, got 64"),
        ({"matrices": {"qkv": "int4"}}, "matrices: expected an object with qkv, out_proj"),
        ({"matrices": dict.fromkeys(KINDS, "int2")}, "matrices: qkv: expected one of .*int4.*, got 'int2'"),
    ],
)
def test_refused_fields(copy: Path, fields: dict[str, Any], message: str) -> None:
    change(copy, **fields)
    for load in (JatEngine.from_pretrained, JatModel.from_pretrained):
        with pytest.raises(CheckpointError, match=message):
            load(copy)


@pytest.mark.parametrize(
    ("part", "damage", "message"),
    [
        ("row_scales", lambda x: None, r"missing parameter .*row_scales"),
        ("row_scales", lambda x: x * torch.nan, "row_scales: expected finite values"),
        ("row_scales", lambda x: x[1:].clone(), r"row_scales: expected shape \[256\], got \[255\]"),
        ("row_scales", lambda x: torch.full_like(x, 3e38), "weights of its codes: expected finite values"),
        ("codes", lambda x: x.short(), "codes: expected [UI]8, got I16"),
    ],
)
def test_refused_tensors(
    copy: Path, part: str, damage: Callable[[torch.Tensor], torch.Tensor | None], message: str
) -> None:
    name = f"{MLP_IN}.{part}"
    replace(copy, name, damage(load_file(copy / "model.safetensors")[name]))
    for load in (JatEngine.from_pretrained, JatModel.from_pretrained):
        with pytest.raises(CheckpointError, match=message):
            load(copy)


def test_scales_of_large_weights_load(copy: Path) -> None:
    """Row scales that some codes would make infinite are right with others."""
    path = copy / "model.safetensors"
    tensors = load_file(path)
    tensors[f"{MLP_IN}.codes"].zero_()
    if f"{MLP_IN}.minima" in tensors:
        tensors[f"{MLP_IN}.minima"].zero_()
    tensors[f"{MLP_IN}.row_scales"].fill_(3e38)
    save_file(tensors, path, metadata={"format": "pt"})
    weight = JatModel.from_pretrained(copy).state_dict()[MLP_IN]
    assert not weight.any()


def test_a_byte_of_minus_128_is_refused(copy: Path) -> None:
    name = "multi_discrete_encoder.4.weight.codes"  # int8 in both
    codes = load_file(copy / "model.safetensors")[name]
    codes[0, 0] = -128
    replace(copy, name, codes)
    with pytest.raises(CheckpointError, match=f"{name}: expected -127 to 127, got -128"):
        JatEngine.from_pretrained(copy)


def test_codes_and_configurations_of_two_checkpoints(copy: Path, tiny_folder: Path, tmp_path: Path) -> None:
    quantized = (copy / "config.json").read_text()
    shutil.copy(tiny_folder / "config.json", copy)
    with pytest.raises(CheckpointError, match=r"these are codes, and config\.json lacks jat_quantization"):
        JatEngine.from_pretrained(copy)
    tensors = load_file(copy / "model.safetensors")
    ends = (".scales", ".minima", ".row_scales")  # in a shard without codes
    some = {name: tensor for name, tensor in tensors.items() if name.endswith(ends)}
    save_file(some, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"these are codes, and config\.json lacks jat_quantization"):
        JatEngine.from_pretrained(copy)
    floats = Path(shutil.copytree(tiny_folder, tmp_path / "floats"))
    (floats / "config.json").write_text(quantized)
    with pytest.raises(CheckpointError, match=r"int[48] codes are stored for it"):
        JatEngine.from_pretrained(floats)


def test_a_part_of_another_layout(copy: Path) -> None:
    """Parts that the configured kind of a matrix does not have: the remedy is the configuration of these weights."""
    name = "multi_discrete_encoder.4.weight.minima"  # int8 in both
    replace(copy, name, torch.zeros(63, 7, dtype=torch.uint8))
    message = f"unexpected parameter {name}; .*int8 codes are stored for it: copy the config.json of the weights"
    with pytest.raises(CheckpointError, match=message):
        JatEngine.from_pretrained(copy)
