"""Making engines from checkpoints and models in memory; several engines, threads and processes."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import spaces
from helpers.engines import EPISODE, TOLERANCE, Load, native, play

from jat_engine import CheckpointError, InputError, JatEngine, JatModel, JatProcessor, NativeModuleWarning
from jat_engine.backends import choose_backend
from jat_engine.backends.options import take_transformers_options
from jat_engine.backends.select import warn_of_plain_torch
from jat_engine.testing import golden
from jat_engine.testing.golden import relative_error

SIX = spaces.Discrete(6)
CONTINUOUS, BABYAI, ATARI = EPISODE["continuous_cw16"], EPISODE["babyai_greedy_full"], EPISODE["atari_greedy_full"]


# ---- loading -------------------------------------------------------------------------------------------------------


def test_choices(tiny_folder: Path) -> None:
    for options, message in [
        ({"dtype": "float8"}, "dtype: expected one of auto, float32"),
        (
            {"dtype": "float16", "backend": "cpu"},
            "dtype: expected one of float32, bfloat16, int8, int4 on the cpu backend",
        ),
        (
            {"dtype": "int4", "backend": "torch"},
            "dtype: expected one of float32, bfloat16, float16, int8 on the torch backend, got 'int4'; "
            "pass device='cpu', backend='cpu'",
        ),
        ({"backend": "onnx"}, "backend: expected one of auto, torch"),
        ({"device": "nowhere"}, "device: expected auto or a device"),
        ({"device": 2**70}, "device: expected auto or a device"),
        ({"device": np.array(["auto", "cpu"])}, "device: expected auto or a device"),
        ({"backend": np.array(["auto", "cpu"])}, "backend: expected one of auto, torch"),
        ({"kv_dtype": np.array(["auto", "int8"])}, "kv_dtype: expected one of auto, bfloat16, int8, float8_e4m3"),
        (
            {"kv_dtype": "int8", "backend": "torch"},
            "kv_dtype: expected 'auto' on the torch backend, got 'int8', which the cpu",
        ),
        ({"device": "meta", "backend": "cpu"}, "backend: expected torch or cuda on device meta"),
        ({"num_threads": 0}, "num_threads: expected an integer >= 1"),
        ({"num_threads": 5000}, "num_threads: expected at most 1024, got 5000"),
        ({"spin_us": 10**30}, "spin_us: expected at most 1000000"),
        ({"spin_us": -1}, "spin_us: expected an integer >= 0"),
        ({"threads": 2}, "threads: expected an engine option, got an unknown one; did you mean num_threads?"),
        ({"qqq": 2}, "qqq: expected an engine option, got an unknown one; expected one of num_threads, .*revision"),
    ]:
        with pytest.raises(InputError, match=message):
            JatEngine.from_pretrained(tiny_folder, **options)  # type: ignore[arg-type]
    engine = JatEngine.from_pretrained(tiny_folder, dtype=torch.bfloat16, backend="torch", trust_remote_code=True)
    assert (engine.choice.backend, engine.choice.dtype) == ("torch", "bfloat16")
    assert repr(engine) == "JatEngine(backend='torch', dtype='bfloat16', device='cpu')"


@native
def test_auto_takes_the_native_backend(tiny_folder: Path) -> None:
    engine = JatEngine.from_pretrained(tiny_folder)
    assert (engine.choice.backend, engine.choice.dtype, engine.choice.device.type) == ("cpu", "bfloat16", "cpu")
    with pytest.raises(
        InputError, match=r"instruction_set: expected one of auto, .*generic on this processor, got 'sse9'"
    ):
        JatEngine.from_pretrained(tiny_folder, instruction_set="sse9")


def test_without_the_native_module_plain_torch_is_taken(monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> None:
    """Warn once per process and say how to get the module; do not warn if plain torch was requested."""
    monkeypatch.setitem(sys.modules, "jat_engine._cpu", None)
    warn_of_plain_torch.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        JatEngine.from_pretrained(tiny_folder, device="cpu", backend="torch")
    with pytest.warns(NativeModuleWarning, match="install a C\\+\\+17 compiler .* or install a wheel") as caught:
        engine = JatEngine.from_pretrained(tiny_folder, device="cpu")
    assert [Path(one.filename).name for one in caught] == [Path(__file__).name]
    assert (engine.choice.backend, engine.choice.dtype) == ("torch", "float32")
    assert "does not load" in engine.choice.reason
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        JatEngine.from_model(JatModel.from_pretrained(tiny_folder), device="cpu")
    with pytest.raises(InputError, match="install a C\\+\\+17 compiler"):
        JatEngine.from_pretrained(tiny_folder, device="cpu", backend="cpu")


def test_checkpoints_of_all_forms(tmp_path: Path, tiny_folder: Path) -> None:
    """Aliases and shards give the same engine. Damage is refused, in parameters for training too."""
    tensors = golden.weights()
    embedding = tensors.pop("transformer.wte.weight")
    renamed = golden.write_checkpoint(tmp_path / "renamed", {**tensors, "single_discrete_encoder.weight": embedding})
    tensors["transformer.wte.weight"] = embedding
    JatModel.from_pretrained(tiny_folder).save_pretrained(tmp_path / "sharded", max_shard_size="200KB")
    (tmp_path / "sharded" / "tokenizer.json").write_text((tiny_folder / "tokenizer.json").read_text())
    expected = None
    for folder in (tiny_folder, renamed, tmp_path / "sharded"):
        with JatEngine.from_pretrained(folder, dtype="float32").open_session() as session:
            results = [play(session, CONTINUOUS, t)[1] for t in range(3)]
        expected = results if expected is None else expected
        assert np.array_equal(results, expected)

    def refused(name: str, change: dict[str, np.ndarray | None], message: str) -> None:
        changed = {k: v for k, v in {**tensors, **change}.items() if v is not None}
        folder = golden.write_checkpoint(tmp_path / name, changed)
        with pytest.raises(CheckpointError, match=message):
            JatEngine.from_pretrained(folder)
        with pytest.raises(CheckpointError, match=message):
            JatModel.from_pretrained(folder)

    bias = tensors["transformer.h.1.mlp.c_fc.bias"]
    refused("missing", {"transformer.h.1.mlp.c_fc.bias": None}, "missing parameter transformer.h.1.mlp.c_fc.bias")
    refused("shape", {"transformer.h.1.mlp.c_fc.bias": bias[1:]}, "expected shape")
    refused("nan", {"transformer.h.1.mlp.c_fc.bias": bias * np.nan}, "c_fc.bias: expected finite")
    head = tensors["single_discrete_decoder.weight"].copy()
    head[200, 3] = np.inf
    refused("head", {"single_discrete_decoder.weight": head}, "single_discrete_decoder.weight: expected finite")
    refused("decoder", {"image_decoder.module.fc.bias": None}, "missing parameter image_decoder.module.fc.bias")
    patches = tensors["vit_encoder.projection.weight"]
    refused("patches", {"vit_encoder.projection.weight": patches * np.nan}, "projection.weight: expected finite")
    layer = tensors["transformer.h.0.ln_1.weight"]
    refused("layers", {"transformer.h.4.ln_1.weight": layer}, "has fewer layers than the file")
    buffer = {"transformer.h.4.attn.attention.masked_bias": np.array(-1e9, np.float32)}
    refused("layers of masks", buffer, "has fewer layers than the file")
    lora = np.ones((4, 64), np.float32)
    refused("lora", {"transformer.h.0.attn.attention.q_proj.lora_A.weight": lora}, "merge the adapter into the model")
    refused("lm_head", {"lm_head.weight": embedding}, r"unexpected parameter lm_head\.weight")
    refused("integers", {"transformer.h.0.ln_1.weight": layer.astype(np.int32)}, "expected a floating-point type")
    refused("twins", {"single_discrete_encoder.weight": embedding + 1}, "both name the one embedding")


def test_what_another_save_left_behind_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    """Refuse a single file of an older save next to the shards of a newer one, and the reverse."""
    model = JatModel.from_pretrained(tiny_folder)
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    (tmp_path / "model.safetensors").write_bytes((tiny_folder / "model.safetensors").read_bytes())
    for load in (JatEngine.from_pretrained, JatModel.from_pretrained):
        with pytest.raises(CheckpointError, match=r"expected model\.safetensors or .*index\.json, got both"):
            load(tmp_path)


@pytest.mark.parametrize("kinds", [["global", "sliding"], ["global", None]])
def test_unknown_attention_is_refused(kinds: list[Any], tmp_path: Path) -> None:
    folder = golden.write_checkpoint(tmp_path / "checkpoint")
    fields = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"attention_types": [[kinds, 2]]}, "attention_types: expected 'global' and 'local' layers"),
        ({"attention_layers": kinds * 2}, "attention_layers: expected .* which follows from attention_types"),
        ({"attention_types": 3}, "attention_types: expected groups like"),
    ):
        (folder / "config.json").write_text(json.dumps({**fields, **change}))
        for load in (JatEngine.from_pretrained, JatModel.from_pretrained):
            with pytest.raises(CheckpointError, match=message):
                load(folder)


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("tokenizer_config.json", {"add_prefix_space": True}, "got different values of add_prefix_space"),
        ("tokenizer_config.json", {"mask_token": "red"}, "got different special tokens"),
        ("tokenizer_config.json", {"extra_special_tokens": ["red"]}, "got different special tokens"),
        ("processor_config.json", {"audio_tokenizer": {}}, "audio_tokenizer: expected none"),
        ("audio_tokenizer_config.json", {}, "names a model of another repository"),
    ],
    ids=["space", "mask", "extra", "audio", "audio_file"],
)
def test_what_transformers_would_add_to_a_tokenizer_is_refused(
    file: str, fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """An engine reads `tokenizer.json` alone, so what other files add to it would give a model other tokens."""
    folder = golden.write_checkpoint(tmp_path / "checkpoint")
    path = folder / file
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **fields}))
    observation = {"discrete_observation": [0] * 148, "text_observation": "go to the red ball"}
    with pytest.raises(CheckpointError, match=message):
        JatProcessor.from_pretrained(folder)
    with pytest.raises(CheckpointError, match=message):
        JatEngine.from_pretrained(folder).get_next_action(**observation, action_space=SIX)


@pytest.mark.parametrize("file", ["vocab.json", "merges.txt", "special_tokens_map.json"])
def test_files_of_two_tokenizers_are_refused(file: str, tmp_path: Path) -> None:
    folder = golden.write_checkpoint(tmp_path / "checkpoint")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in tokenizer["merges"]]
    pad = json.loads((folder / "tokenizer_config.json").read_text())["pad_token"]
    right = {
        "vocab.json": json.dumps(tokenizer["vocab"]),
        "merges.txt": "\n".join(["#version: 0.2", *merges]),
        "special_tokens_map.json": json.dumps({"pad_token": pad}),
    }
    wrong = {
        "vocab.json": json.dumps({**tokenizer["vocab"], "a": 3}),
        "merges.txt": "\n".join(["#version: 0.2", *merges, "Ġ Ġ"]),
        "special_tokens_map.json": json.dumps({"pad_token": "!"}),
    }
    observation = {"discrete_observation": [0] * 148, "text_observation": "go to the red ball"}
    (folder / file).write_text(right[file])
    JatProcessor.from_pretrained(folder)
    JatEngine.from_pretrained(folder).get_next_action(**observation, action_space=SIX)
    (folder / file).write_text(wrong[file])
    with pytest.raises(CheckpointError, match=f"{file}.* of one tokenizer, got different"):
        JatProcessor.from_pretrained(folder)
    with pytest.raises(CheckpointError, match=f"{file}.* of one tokenizer, got different"):
        JatEngine.from_pretrained(folder).get_next_action(**observation, action_space=SIX)


MISSION: dict[str, Any] = {"discrete_observation": [0] * 148, "text_observation": "go to the red ball"}


def test_the_tokenizer_is_read_with_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another working directory, and a folder that was removed, do not matter afterwards."""
    folder = golden.write_checkpoint(tmp_path / "agent")
    expected = JatEngine.from_pretrained(folder, dtype="float32").get_next_action(
        **MISSION, action_space=SIX, deterministic=True
    )
    monkeypatch.chdir(tmp_path)
    engine = JatEngine.from_pretrained("agent", dtype="float32")
    monkeypatch.chdir("/")
    shutil.rmtree(folder)
    assert engine.get_next_action(**MISSION, action_space=SIX, deterministic=True) == expected


@pytest.mark.parametrize("lacking", ["tokenizer.json", "pad_token"])
def test_without_a_tokenizer_all_but_missions_works(lacking: str, tmp_path: Path) -> None:
    folder = golden.write_checkpoint(tmp_path / "agent")
    if lacking == "pad_token":
        for path in (folder / "tokenizer_config.json", folder / "special_tokens_map.json"):
            path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "pad_token"}))
    else:
        (folder / "tokenizer.json").unlink()
    with JatEngine.from_pretrained(folder, dtype="float32").open_session() as session:
        play(session, CONTINUOUS, 0)
        session.reset()
        with pytest.raises(InputError, match=f"text_observation: expected .*{lacking}"):
            session.get_next_action(**MISSION, action_space=SIX)
        tokens = JatEngine.from_pretrained(tiny(tmp_path))._runner._missions.encode(MISSION["text_observation"])
        session.get_next_action(discrete_observation=[0] * 148 + tokens.tolist(), action_space=SIX)


def tiny(folder: Path) -> Path:
    return golden.write_checkpoint(folder / "whole")


@pytest.mark.parametrize(
    ("options", "device", "dtype"),
    [
        ({"torch_dtype": torch.float32}, "cpu", "float32"),
        ({"torch_dtype": "torch.bfloat16", "dtype": "bfloat16"}, "cpu", "bfloat16"),
        ({"torch_dtype": "auto", "dtype": "float32"}, "cpu", "float32"),
        ({"device_map": "auto", "dtype": None}, "cpu", None),
        ({"device_map": "cpu"}, "cpu", None),
        ({"device_map": {"": "cpu"}, "device": "cpu"}, "cpu", None),
        ({"device_map": "meta", "backend": "torch"}, "meta", None),
        (
            {
                "use_safetensors": True,
                "low_cpu_mem_usage": True,
                "attn_implementation": "eager",
                "quantization_config": None,
                "weights_only": True,
            },
            "cpu",
            None,
        ),
    ],
    ids=str,
)
def test_options_of_transformers(options: dict[str, Any], device: str, dtype: str | None) -> None:
    given = {key: options[key] for key in options if key not in ("device", "dtype", "backend")}
    found, asked = take_transformers_options(given, options.get("device", "auto"), options.get("dtype", "auto"))
    assert given == {}
    choice = choose_backend(found, asked, options.get("backend", "auto"))
    assert choice.device.type == device
    assert dtype in (None, choice.dtype)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"torch_dtype": torch.float32, "dtype": "bfloat16"}, "torch_dtype: expected the value of dtype, 'bfloat16'"),
        ({"torch_dtype": torch.float64}, "dtype: expected one of auto, float32"),
        ({"device_map": {"a": 0, "b": "cpu"}}, 'device_map: expected one device, .*pass device="cuda"'),
        ({"device_map": "balanced"}, 'device_map: expected one device, got .balanced.; pass device="cuda"'),
        ({"device_map": "cuda", "device": "cpu"}, "device_map: expected the value of device, 'cpu', got 'cuda'"),
        ({"use_safetensors": False}, "use_safetensors: expected True or nothing, got False"),
        ({"attn_implementation": "flash_attention_2"}, "an engine has its own attention"),
        ({"load_in_8bit": True}, 'pass dtype="int8"'),
        ({"revison": "main"}, "revison: .* did you mean revision"),
    ],
    ids=str,
)
def test_options_that_an_engine_does_not_have(options: dict[str, Any], message: str, tiny_folder: Path) -> None:
    with pytest.raises(InputError, match=message):
        JatEngine.from_pretrained(tiny_folder, **options)


# ---- models in memory ----------------------------------------------------------------------------------------------


class Subclass(JatModel):
    """Model with another name and the same computation."""


class OtherComputation(JatModel):
    """Model with another computation."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


def replace_parameter(model: JatModel, dtype: torch.dtype) -> JatModel:
    weight = model.continuous_encoder.weight.detach().to(dtype)
    model.continuous_encoder.weight = torch.nn.Parameter(weight, requires_grad=False)
    return model


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: torch.compile(model, backend="eager"),
        torch.nn.DataParallel,
        lambda model: torch.nn.Sequential(torch.nn.Identity(), model),
        lambda model: model.train().requires_grad_(False),
        lambda model: model.double(),
    ],
    ids=["compiled", "DataParallel", "Sequential", "training", "float64"],
)
def test_wrapped_models(wrap: Callable[[JatModel], Any], tiny_folder: Path) -> None:
    model = JatModel.from_pretrained(tiny_folder)
    with JatEngine.from_model(wrap(model), dtype="float32").open_session(CONTINUOUS.context_window) as session:
        predictions = [play(session, CONTINUOUS, t)[1] for t in range(3)]
    assert relative_error(predictions, CONTINUOUS.predictions[:3]) <= TOLERANCE


def test_a_subclass_and_tied_parameters(tiny_folder: Path) -> None:
    JatEngine.from_model(Subclass.from_pretrained(tiny_folder))
    model = JatModel.from_pretrained(tiny_folder)
    model.single_discrete_decoder.weight = model.transformer.wte.weight
    JatEngine.from_model(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model, folder: folder, "model: expected a JatModel, got the path .*; use JatEngine.from_pretrained"),
        (lambda model, folder: str(folder), "model: expected a JatModel, got the path"),
        (lambda model, folder: None, "model: expected a JatModel, got NoneType"),
        (lambda model, folder: model.state_dict(), "model: expected a JatModel, got OrderedDict"),
        (lambda model, folder: torch.nn.Linear(2, 2), "model: expected a JatModel, got Linear"),
        (lambda model, folder: OtherComputation.from_pretrained(folder), "OtherComputation, which has another forward"),
        (lambda model, folder: model.to("meta"), "a parameter on the meta device"),
        (lambda model, folder: replace_parameter(model, torch.int8), 'a quantised model .*dtype="int8"'),
        (lambda model, folder: replace_parameter(model, torch.float8_e4m3fn), "a quantised model"),
    ],
    ids=["path", "str", "none", "state", "other", "subclass", "meta", "int8", "fp8"],
)
def test_models_that_are_none(change: Callable[[JatModel, Path], Any], message: str, tiny_folder: Path) -> None:
    with pytest.raises(InputError, match=message):
        JatEngine.from_model(change(JatModel.from_pretrained(tiny_folder), tiny_folder))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_quantised_model_is_refused(tiny_folder: Path) -> None:
    model = torch.ao.quantization.quantize_dynamic(JatModel.from_pretrained(tiny_folder), {torch.nn.Linear})
    with pytest.raises(InputError, match=r'a quantised model .*dtype="int8"'):
        JatEngine.from_model(model)


def test_a_processor_of_another_class_is_refused(tiny_folder: Path, tiny_processor: JatProcessor) -> None:
    model = JatModel.from_pretrained(tiny_folder)
    for processor in ("agent", tiny_processor.tokenizer):
        with pytest.raises(InputError, match="processor: expected a JatProcessor or nothing, got"):
            JatEngine.from_model(model, processor)


def test_a_model_that_was_changed_is_refused(tiny_folder: Path) -> None:
    """Refuse an added bias and an adapter's parameters, which the engine's step would ignore."""
    model = JatModel.from_pretrained(tiny_folder)
    model.transformer.h[0].attn.attention.q_proj = torch.nn.Linear(64, 64)
    with pytest.raises(InputError, match=r"model: unexpected parameter transformer\.h\.0.*q_proj\.bias"):
        JatEngine.from_model(model)
    with pytest.raises(InputError, match=r"a wrapper without parameters, got WithHead with head\.weight"):
        JatEngine.from_model(WithHead(JatModel.from_pretrained(tiny_folder)))


class WithHead(torch.nn.Module):
    """Model inside another module that adds something."""

    def __init__(self, model: JatModel) -> None:
        super().__init__()
        self.module, self.head = model, torch.nn.Linear(2, 2)


def test_engine_of_a_model_keeps_its_weights(tiny_folder: Path, tiny_processor: JatProcessor) -> None:
    """Further training of the model does not change the engine."""
    model = JatModel.from_pretrained(tiny_folder)
    engine = JatEngine.from_model(model, tiny_processor, dtype="float32")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for episode in (BABYAI, CONTINUOUS):
        with engine.open_session(episode.context_window) as session:
            predictions = [play(session, episode, t)[1] for t in range(8)]
        assert relative_error(predictions, episode.predictions[:8]) <= TOLERANCE
    with JatEngine.from_model(model).open_session() as session, pytest.raises(InputError, match="made without"):
        play(session, BABYAI, 0)


def test_missions(tiny_folder: Path, load: Load, tiny_processor: JatProcessor) -> None:
    """The engine's tokens equal the processor's; long missions are truncated with a warning."""
    missions = load(backend="auto", dtype="float32")._runner._missions
    for text in (*golden.MISSIONS, "", "Größe: 3 €", "go  to\nthe door", "<|endoftext|>"):
        assert missions.encode(text).tolist() == tiny_processor.encode_mission(text)
    with pytest.warns(UserWarning, match="at most 64 tokens, got 70; the rest is cut off"):
        assert missions.encode("x" * 70).tolist() == tiny_processor.encode_mission("x" * 70)


# ---- threads and processes -----------------------------------------------------------------------------------------


def test_two_engines_and_many_threads(tiny_folder: Path) -> None:
    """Eight threads play sessions of two engines at once."""
    engines = [JatEngine.from_pretrained(tiny_folder, dtype="float32", spin_us=spin) for spin in (0, 200)]
    failures: list[str] = []

    def run(number: int) -> None:
        episode = [CONTINUOUS, BABYAI, ATARI, EPISODE["image_box"]][number % 4]
        with engines[number % 2].open_session(episode.context_window) as session:
            predictions = [play(session, episode, t)[1] for t in range(12)]
        if relative_error(predictions, episode.predictions[:12]) > TOLERANCE:
            failures.append(episode.name)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert failures == []


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_processes(method: str, tiny_folder: Path) -> None:
    """An engine works in a new process, and in a forked one although threads do not survive a fork."""
    import multiprocessing

    engine = JatEngine.from_pretrained(tiny_folder, dtype="float32", num_threads=2) if method == "fork" else None
    if engine is not None:
        with engine.open_session(16) as session:
            play(session, CONTINUOUS, 0)
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=_act, args=(queue, engine, tiny_folder))
    process.start()
    predictions = queue.get(timeout=180)
    process.join(timeout=180)
    assert process.exitcode == 0
    assert relative_error(predictions, CONTINUOUS.predictions[:4]) <= TOLERANCE


def _act(queue: Any, engine: JatEngine | None, folder: Path) -> None:
    if engine is None:
        engine = JatEngine.from_pretrained(folder, dtype="float32", num_threads=2)
    with engine.open_session(16) as session:
        queue.put([play(session, CONTINUOUS, t)[1] for t in range(4)])
