"""Checkpoints that load, and the errors for those that do not."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

import jat_engine
from jat_engine import CheckpointError, InputError, JatConfig, JatEngine, JatModel, JatProcessor
from jat_engine.checkpoint.weights import EMBEDDING, EMBEDDING_ALIASES, checkpoint_shapes
from jat_engine.testing import golden

WEIGHTS = golden.weights()


def same_parameters(a: JatModel, b: JatModel) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.versions
@pytest.mark.parametrize(
    "names",
    [[alias] for alias in EMBEDDING_ALIASES] + [[EMBEDDING, *EMBEDDING_ALIASES]],
    ids=["single", "multi", "all"],
)
def test_embedding_under_any_of_its_names(names: list[str], tmp_path: Path, tiny_model: JatModel) -> None:
    tensors = dict(WEIGHTS)
    embedding = tensors.pop(EMBEDDING)
    tensors |= dict.fromkeys(names, embedding)
    assert same_parameters(JatModel.from_pretrained(golden.write_checkpoint(tmp_path, tensors)), tiny_model)


def test_attention_buffers_of_older_files_are_skipped(tmp_path: Path, tiny_model: JatModel) -> None:
    tensors = {
        **WEIGHTS,
        "transformer.h.0.attn.attention.bias": np.ones((1, 1, 48, 48), np.uint8),
        "transformer.h.1.attn.attention.masked_bias": np.array(-1e9, np.float32),
    }
    assert same_parameters(JatModel.from_pretrained(golden.write_checkpoint(tmp_path, tensors)), tiny_model)


@pytest.mark.versions
def test_save_and_load(tmp_path: Path, tiny_model: JatModel, tiny_processor: JatProcessor) -> None:
    tiny_model.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="np") as file:
        assert set(file.keys()) == set(json.loads((golden.FOLDER / "keys.json").read_text()))
    assert "auto_map" not in "".join(path.read_text() for path in tmp_path.glob("*.json"))
    assert same_parameters(jat_engine.AutoModelForCausalLM.from_pretrained(tmp_path), tiny_model)
    text = "go to the red ball"
    assert jat_engine.AutoProcessor.from_pretrained(tmp_path)(text=text) == tiny_processor(text=text)


@pytest.mark.versions
def test_sharded(tmp_path: Path, tiny_model: JatModel) -> None:
    tiny_model.save_pretrained(tmp_path, max_shard_size="500KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert same_parameters(JatModel.from_pretrained(tmp_path), tiny_model)
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=f"index.json.*{shards[1].name}.*missing"):
        JatModel.from_pretrained(tmp_path)


@pytest.mark.versions
def test_dtype(tiny_folder: Path) -> None:
    model = JatModel.from_pretrained(tiny_folder, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"dtype": "auto"}, torch.float32),
        ({"torch_dtype": "auto"}, torch.float32),
        ({"dtype": "torch.float32"}, torch.float32),
        ({"dtype": torch.float64}, torch.float64),
        ({"torch_dtype": "float16"}, torch.float16),
        ({"dtype": None}, torch.float32),
    ],
    ids=str,
)
def test_ways_to_name_a_dtype(options: dict[str, Any], dtype: torch.dtype, tiny_folder: Path) -> None:
    for cls in (JatModel, jat_engine.AutoModelForCausalLM):
        assert cls.from_pretrained(tiny_folder, **options).dtype == dtype
    for wrong in ("fp8", torch.int8, 3):
        with pytest.raises(InputError, match="dtype: expected auto or one of float32, bfloat16, float16, float64, got"):
            JatModel.from_pretrained(tiny_folder, dtype=wrong)


@pytest.mark.parametrize("count", [200, 300])
def test_a_model_with_another_number_of_tokens_is_saved_whole(count: int, tmp_path: Path, tiny_folder: Path) -> None:
    model = JatModel.from_pretrained(tiny_folder)
    before = model.single_discrete_decoder.weight.detach().clone()
    assert model.resize_token_embeddings(count).num_embeddings == model.config.vocab_size == count
    model.save_pretrained(tmp_path)
    loaded = JatModel.from_pretrained(tmp_path)
    assert same_parameters(loaded, model)
    kept = min(count, len(before))
    assert torch.equal(loaded.single_discrete_decoder.weight[:kept], before[:kept])
    assert loaded(input_ids=torch.zeros(1, 3, dtype=torch.long), return_loss=False).logits.shape == (1, 3, count)
    JatEngine.from_pretrained(tmp_path)


def set_nan(tensors: dict[str, np.ndarray]) -> None:
    tensors["transformer.ln_f.bias"] = np.full((64,), np.nan, np.float32)


def set_inf(tensors: dict[str, np.ndarray]) -> None:
    tensors["image_encoder.module.fc.weight"] = tensors["image_encoder.module.fc.weight"].copy()
    tensors["image_encoder.module.fc.weight"][3, 5] = -np.inf


def drop(tensors: dict[str, np.ndarray]) -> None:
    del tensors["transformer.h.2.mlp.c_fc.weight"]


def drop_embedding(tensors: dict[str, np.ndarray]) -> None:
    del tensors[EMBEDDING]


def add(tensors: dict[str, np.ndarray]) -> None:
    tensors["transformer.h.4.ln_1.weight"] = np.ones(64, np.float32)


def reshape(tensors: dict[str, np.ndarray]) -> None:
    tensors["transformer.wpe.weight"] = tensors["transformer.wpe.weight"][:40]


def integers(tensors: dict[str, np.ndarray]) -> None:
    tensors["transformer.ln_f.weight"] = np.ones(64, np.int32)


def contradict(tensors: dict[str, np.ndarray]) -> None:
    tensors["single_discrete_encoder.weight"] = tensors[EMBEDDING] + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_nan, "model.safetensors: transformer.ln_f.bias: expected finite values"),
        (set_inf, "model.safetensors: image_encoder.module.fc.weight: expected finite values"),
        (drop, "model.safetensors: missing parameter transformer.h.2.mlp.c_fc.weight"),
        (drop_embedding, "model.safetensors: missing parameter transformer.wte.weight"),
        (add, "model.safetensors: unexpected parameter transformer.h.4.ln_1.weight"),
        (reshape, r"transformer.wpe.weight: expected shape \[48, 64\], got \[40, 64\]"),
        (integers, "transformer.ln_f.weight: expected a floating-point type of 16 bits or more, got I32"),
        (contradict, "differs from .* both name the one embedding matrix"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_wrong_parameters_are_refused(
    change: Callable[[dict[str, np.ndarray]], None], message: str, tmp_path: Path
) -> None:
    tensors = dict(WEIGHTS)
    change(tensors)
    with pytest.raises(CheckpointError, match=message):
        JatModel.from_pretrained(golden.write_checkpoint(tmp_path, tensors))


def truncated(raw: bytes) -> bytes:
    return raw[:-1000]


def cut_in_header(raw: bytes) -> bytes:
    return raw[:100]


def empty(raw: bytes) -> bytes:
    return b""


def broken_header(raw: bytes) -> bytes:
    return raw[:8] + b"x" + raw[9:]


def huge_header(raw: bytes) -> bytes:
    return struct.pack("<Q", 2**62) + raw[8:]


def twice(raw: bytes) -> bytes:
    """Return a file with a duplicate name, which the safetensors library accepts."""
    (length,) = struct.unpack("<Q", raw[:8])
    header = raw[8 : 8 + length]
    return raw[:8] + header.replace(b"transformer.h.1.ln_1.weight", b"transformer.h.0.ln_1.weight") + raw[8 + length :]


@pytest.mark.versions
@pytest.mark.parametrize("damage", [truncated, cut_in_header, empty, broken_header, huge_header, twice])
def test_damaged_files_are_refused(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    file = golden.write_checkpoint(tmp_path) / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        JatModel.from_pretrained(tmp_path)


def test_shards_of_another_save_than_the_index_are_refused(tmp_path: Path, tiny_model: JatModel) -> None:
    """As with a parameter in two shards, of which either could be the stale one."""
    tiny_model.save_pretrained(tmp_path, max_shard_size="500KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[-1]
    with safe_open(shard, framework="np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    name = next(name for name in WEIGHTS if name not in tensors and name != EMBEDDING)
    save_file({**tensors, name: WEIGHTS[name]}, shard)
    message = f"index.json: {name}: expected in {shard.name} and in the weight_map, or in neither"
    for load in (JatModel.from_pretrained, JatEngine.from_pretrained):
        with pytest.raises(CheckpointError, match=message):
            load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"expected config\.json, got no such file"),
        ("{", r"config\.json: expected a JSON object"),
        ("[]", r"config\.json: expected a JSON object"),
        ({"model_type": "gpt2"}, "model_type: expected 'jat', got 'gpt2'"),
        ({"num_heads": 0}, "num_heads: expected an integer >= 1, got 0"),
        ({"patch_size": 0}, "patch_size: expected an integer >= 1, got 0"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"num_layers": 6}, "expected one attention for each of num_layers=6"),
        ({"max_position_embeddings": 2}, "at least the 5 of one step, got 2"),
        ({"max_discrete_value": 64}, "more than the 64 tokens of a mission, got 64"),
    ],
)
def test_configurations_are_checked(content: Any, message: str, tmp_path: Path) -> None:
    file = golden.write_checkpoint(tmp_path) / "config.json"
    if isinstance(content, dict):
        content = json.dumps({**json.loads(file.read_text()), **content})
    file.unlink()
    if content is not None:
        file.write_text(content)
    with pytest.raises(CheckpointError, match=message):
        JatModel.from_pretrained(tmp_path)


def test_pickles_are_not_read(tmp_path: Path) -> None:
    golden.write_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"expected model\.safetensors or .*got neither"):
        JatModel.from_pretrained(tmp_path)
    marker = tmp_path / "unpickled"

    class Payload:
        def __reduce__(self) -> Any:
            return (Path.touch, (marker,))

    torch.save({"x": Payload()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"got only pytorch_model\.bin"):
        JatModel.from_pretrained(tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config: expected none"),
        ({"dtype": "nonsense"}, "dtype: expected one of float32, bfloat16, float16, float64, got 'nonsense'"),
        ({"dtype": "float8_e4m3fn"}, "dtype: expected one of float32, .* got 'float8_e4m3fn'"),
        ({"torch_dtype": 32}, "torch_dtype: expected one of float32, .* got 32"),
        ({"text_config": {"model_type": "gpt2"}}, "text_config: expected none, got one"),
        ({"decoder": {}}, "decoder: expected none, got one"),
        ({"num_attention_heads": 2}, "num_attention_heads: expected num_heads=4, got 2"),
        ({"activation_function": "softsign"}, "activation_function: expected one of gelu_new"),
        ({"resid_dropout": 2.0}, r"resid_dropout: expected a rate in \[0, 1\), got 2.0"),
        ({"window_size": None}, "window_size"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_wrong_configurations_are_refused(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = golden.write_checkpoint(tmp_path)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    for load in (JatConfig.from_pretrained, JatModel.from_pretrained, JatEngine.from_pretrained):
        with pytest.raises(CheckpointError, match=message):
            load(folder)


def test_a_field_given_twice_is_refused(tmp_path: Path) -> None:
    """JSON readers take the last one, silently."""
    folder = golden.write_checkpoint(tmp_path)
    path = folder / "config.json"
    path.write_text(path.read_text().rstrip().removesuffix("}") + ', "num_heads": 2}')
    for load in (JatConfig.from_pretrained, JatModel.from_pretrained, JatEngine.from_pretrained):
        with pytest.raises(CheckpointError, match=r"config\.json: expected a JSON object, got num_heads twice"):
            load(folder)


def test_fields_that_lead_elsewhere_have_no_effect(tmp_path: Path, tiny_model: JatModel) -> None:
    """transformers would read another file, take fields from others, and look for code of experts."""
    folder = golden.write_checkpoint(tmp_path)
    path = folder / "config.json"
    fields = {
        "transformers_weights": "other.safetensors",
        "attribute_map": {"window_size": "num_layers"},
        "_experts_implementation": "someone/kernel",
        "compile_config": {},
    }
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    model = JatModel.from_pretrained(folder)
    assert same_parameters(model, tiny_model)
    assert model.config.window_size == tiny_model.config.window_size
    assert "someone" not in json.dumps(model.config.to_dict())
    JatEngine.from_pretrained(folder)


def test_names_of_foreign_kernels_have_no_effect(tmp_path: Path) -> None:
    """Without our check, transformers would load attention code from a hub repository that `config.json` names."""
    folder = golden.write_checkpoint(tmp_path)
    path = folder / "config.json"
    names = dict.fromkeys(("attn_implementation", "_attn_implementation", "experts_implementation"), "someone/kernel")
    path.write_text(json.dumps({**json.loads(path.read_text()), **names}))
    assert "someone" not in json.dumps(JatModel.from_pretrained(folder).config.to_dict())


def test_replaced_fields_are_checked_and_lead_to_others(tiny_folder: Path, tmp_path: Path) -> None:
    config = JatConfig.from_pretrained(tiny_folder, attention_types=[[["global"], 4]])
    assert config.attention_layers == ["global"] * 4
    model = JatModel.from_pretrained(tiny_folder, attention_types=[[["global"], 4]])
    assert not any(block.is_local for block in model.transformer.h)
    model.save_pretrained(tmp_path)
    assert JatConfig.from_pretrained(tmp_path).attention_layers == ["global"] * 4
    for fields in ({"window_size": 0}, {"num_heads": 5}, {"attention_types": [[["x"], 4]]}, {"num_layers": 2}):
        with pytest.raises(CheckpointError, match="attention_types" if "num_layers" in fields else next(iter(fields))):
            JatModel.from_pretrained(tiny_folder, **fields)


def test_an_adapter_is_not_ignored(tmp_path: Path) -> None:
    folder = golden.write_checkpoint(tmp_path)
    (folder / "adapter_config.json").write_text("{}")
    for load in (JatModel.from_pretrained, JatEngine.from_pretrained):
        with pytest.raises(CheckpointError, match="expected whole weights, got an adapter"):
            load(folder)


def test_a_damaged_generation_config_is_named(tmp_path: Path) -> None:
    folder = golden.write_checkpoint(tmp_path)
    for text in ("{", "[]"):
        (folder / "generation_config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"generation_config\.json: "):
            JatModel.from_pretrained(folder)


def test_shapes_of_a_checkpoint_are_those_of_a_model(tiny_model: JatModel) -> None:
    """Loading uses a separate table of names and shapes, since building a model for them would take seconds."""
    shapes = {name: tuple(parameter.shape) for name, parameter in tiny_model.named_parameters()}
    assert checkpoint_shapes(tiny_model.config) == shapes


def test_config() -> None:
    small = JatConfig.from_preset("small")
    with torch.device("meta"):
        model = JatModel(small)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 192.7
    assert JatConfig.from_preset("medium").attention_layers == ["global", "local"] * 12
    assert JatConfig.from_preset("large").max_position_embeddings == 2048
    with pytest.raises(ValueError, match="expected one of small, medium, large, got 'tiny'"):
        JatConfig.from_preset("tiny")
    with pytest.raises(ValueError, match="hidden_size: expected at least 50 and a multiple of num_heads=12, got 770"):
        JatConfig(hidden_size=770)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cpu"}, "^device: .* pass device_map"),
        ({"device_map": "cuda:99"}, "^device_map: expected 'auto' or a device that torch has here"),
        ({"device_map": {"": 99}}, "^device_map: expected 'auto' or a device that torch has here"),
        ({"load_in_8bit": True}, '^load_in_8bit: .* pass dtype="int8" to JatEngine'),
        ({"state_dict": {}}, "^state_dict: .* `load_state_dict`"),
        ({"gguf_file": "jat.gguf"}, "^gguf_file: .* only safetensors"),
        ({"atn_implementation": "sdpa"}, "^atn_implementation: expected an option of from_pretrained"),
    ],
)
def test_options_that_a_model_does_not_have(options: dict[str, Any], message: str, tiny_folder: Path) -> None:
    with pytest.raises(InputError, match=message):
        JatModel.from_pretrained(tiny_folder, **options)


def test_options_that_ask_for_nothing(tiny_folder: Path) -> None:
    options = {"device": None, "load_in_8bit": False, "from_tf": False, "resume_download": True, "device_map": "cpu"}
    assert JatModel.from_pretrained(tiny_folder, **options).device.type == "cpu"
