"""Places where a checkpoint is not, or not whole: one line says what is there and what to do, within seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium.spaces import Discrete
from helpers.hub import COMMIT, serve_hub, silent_server

from jat_engine import CheckpointError, InputError, JatConfig, JatEngine, JatModel, JatProcessor
from jat_engine.cli import main
from jat_engine.testing import golden

LOADERS = (JatEngine.from_pretrained, JatModel.from_pretrained, JatConfig.from_pretrained, JatProcessor.from_pretrained)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 123\n"
WEIGHTS = golden.weights()

CLASSES = ("JatEngine", "JatModel", "JatProcessor")

LOAD = """
import json, sys, warnings
import jat_engine
warnings.simplefilter("ignore")
outcomes = []
for source, options in json.loads(sys.argv[1]):
    for name in sys.argv[2:]:
        try:
            outcomes.append(type(getattr(jat_engine, name).from_pretrained(source, **options)).__name__)
        except Exception as error:
            outcomes.append(f"{type(error).__name__}: {error}")
print(json.dumps(outcomes))
"""


def load_from(
    endpoint: str, home: Path, classes: tuple[str, ...], *sources: tuple[str, dict[str, Any]], **environment: str
) -> list[str]:
    """Load from a hub in another process, and return the outcome of each source and class."""
    variables = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_ETAG_TIMEOUT": "1", **environment}
    variables.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", LOAD, json.dumps(sources), *classes]
    done = subprocess.run(command, env=variables, cwd=home, capture_output=True, text=True, check=True, timeout=100)
    outcomes: list[str] = json.loads(done.stdout)
    return outcomes


def test_a_hub_and_its_answers(tmp_path: Path) -> None:
    """A folder here of the same name without a checkpoint does not hide the repository."""
    folder = golden.write_checkpoint(tmp_path / "files")
    home = tmp_path / "home"
    (home / "me" / "jat").mkdir(parents=True)
    (home / "me" / "jat" / "results.json").touch()
    asked: list[tuple[str, dict[str, Any]]] = [
        ("me/jat", {}),
        ("me/jat", {"revision": COMMIT}),
        ("me/jat", {"revision": "v9"}),
        ("me/none", {}),
        ("gated/jat", {}),
    ]
    with serve_hub({"me/jat": folder}) as endpoint:
        outcomes = load_from(endpoint, home, CLASSES, *asked)
    assert outcomes[:6] == [*CLASSES, *CLASSES]
    messages = (
        "CheckpointError: me/jat: revision: expected a branch, a tag or a commit of the repository, got 'v9'",
        "CheckpointError: me/none: expected a folder or a repository on the hub, got neither",
        "CheckpointError: gated/jat: expected a repository that this account may read, got one that is gated; accept",
    )
    for number, outcome in enumerate(outcomes[6:]):
        assert outcome.startswith(messages[number // 3])

    # What was downloaded still loads when the hub does not answer.
    with silent_server() as endpoint:
        classes, cached = CLASSES[::2], ("me/jat", {"local_files_only": False})
        outcomes = load_from(endpoint, home, classes, cached, ("me/none", {}))
    assert outcomes[:2] == list(classes)
    for outcome in outcomes[2:]:
        assert "without a connection to the hub (http" in outcome
        assert "run `hf download me/none` once with a connection, or pass a folder" in outcome


@pytest.mark.parametrize("kind", ["refused", "proxy", "broken"])
def test_without_the_hub_it_takes_seconds(kind: str, tmp_path: Path) -> None:
    """huggingface_hub retries for minutes, which would exceed the time limit of `load_from`."""
    source: tuple[str, dict[str, Any]] = ("me/none", {"local_files_only": False})
    refused = "http://127.0.0.1:9"
    if kind == "broken":
        with serve_hub({}, status=503) as endpoint:
            (outcome,) = load_from(endpoint, tmp_path, ("JatEngine",), source)
    elif kind == "proxy":
        proxies = {"HTTPS_PROXY": refused, "https_proxy": refused}
        (outcome,) = load_from("https://huggingface.co", tmp_path, ("JatEngine",), source, **proxies)
    else:
        (outcome,) = load_from(refused, tmp_path, ("JatEngine",), source)
    assert outcome.startswith("CheckpointError: me/none: expected config.json")
    assert "without a connection to the hub (http" in outcome


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("https://huggingface.co/jat-project/jat", "got a URL; pass 'jat-project/jat'"),
        ("https://huggingface.co/jat-project/jat/tree/main", "got a URL; pass 'jat-project/jat'"),
        ("hf.co/jat-project/jat", "got a URL; pass 'jat-project/jat'"),
        ("https://github.com/huggingface/jat", "got a URL; download it and name its folder"),
        ("jat-mni", "did you mean jat-mini?"),
        ("./agent/model.safetensors", "got a file; name the folder it is in"),
        ("./agnet", "did you mean agent?"),
        ("/nowhere/at/all", "there is no folder /nowhere/at either"),
        ("run", "its subfolder checkpoint-5 has one: name run/checkpoint-5"),
        (None, "expected a folder, a name on the hub or 'jat-mini', got None"),
        (3, "got 3"),
        (b"agent", "got b'agent'"),
        ("", "got ''"),
    ],
)
def test_what_is_no_checkpoint(source: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden.write_checkpoint(tmp_path / "agent")
    golden.write_checkpoint(tmp_path / "run" / "checkpoint-5")
    monkeypatch.chdir(tmp_path)
    for load in LOADERS:
        if source is None and load == JatModel.from_pretrained:
            continue  # there it means a new model
        with pytest.raises(CheckpointError) as error:
            load(source)
        assert message in str(error.value)


def test_commands_say_it_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = golden.write_checkpoint(tmp_path / "agent")
    (folder / "tokenizer.json").write_bytes(POINTER)
    task = ["--tasks", "mujoco-reacher"]
    for source, message in (
        (str(folder), "pointer of Git LFS"),
        ("https://hf.co/a/b", "pass 'a/b'"),
        ("x", "got neither"),
    ):
        for command in (["play", "--task", task[1]], ["eval", *task]):
            assert main([*command, "--model_name_or_path", source]) == 2
            error = capsys.readouterr().err
            assert error.startswith("jat-engine: error: --model_name_or_path")
            assert error.count("\n") == 1
            assert message in error


# ---- folders that are not whole --------------------------------------------------------------------------------------


def point(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(POINTER) and None


def link(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to("../blobs/gone")

    return damage


def rename(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "model.safetensors").rename(folder / name) and None


def adapter(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").touch()


def shards(folder: Path) -> None:
    JatModel.from_pretrained(folder).save_pretrained(folder, max_shard_size="300KB")
    (folder / "model.safetensors").unlink(missing_ok=True)


def shards_alone(folder: Path) -> None:
    shards(folder)
    (folder / "model.safetensors.index.json").unlink()


def half_downloaded(folder: Path) -> None:
    shards(folder)
    sorted(folder.glob("model-*.safetensors"))[-1].rename(folder / "model.incomplete")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (point("config.json"), r"config\.json: .* a pointer of Git LFS to it; run `git lfs pull`"),
        (point("model.safetensors"), r"model\.safetensors: .* a pointer of Git LFS"),
        (link("config.json"), r"config\.json: .* a link to \.\./blobs/gone, which does not exist"),
        (link("model.safetensors"), r"model\.safetensors: .* a link to \.\./blobs/gone"),
        (adapter, "the folder holds an adapter: .*merge_and_unload"),
        (shards_alone, "without their index: copy model.safetensors.index.json, too"),
        (half_downloaded, "which is missing; a download was interrupted"),
        (rename("model.safetensors.incomplete"), "got neither; a download was interrupted"),
        (rename("jat.gguf"), r"jat\.gguf is another format"),
        (rename("jat.onnx"), r"jat\.onnx is another format"),
        (rename("model.fp16.safetensors"), "pass variant='fp16'"),
        (rename("jat.safetensors"), r"rename it to model\.safetensors"),
    ],
)
def test_folders_that_are_not_whole(damage: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    damage(golden.write_checkpoint(tmp_path))
    for load in (JatEngine.from_pretrained, JatModel.from_pretrained):
        with pytest.raises(CheckpointError, match=message):
            load(tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a" * 5000, "got a path that cannot be read .File name too long"),
        ("a\0b", "got a path that cannot be read .embedded null byte"),
        ("~no-such-user/jat", "there is no folder ~no-such-user either"),
        ("me/jat/", "did you mean me/jat\\?"),
        ("me/jat@main", "did you mean me/jat\\?"),
        ("JAT-MINI", "did you mean jat-mini\\?"),
    ],
    ids=["long", "null", "home", "slash", "revision", "case"],
)
def test_names_that_cannot_be_checkpoints(source: str, message: str) -> None:
    for load in LOADERS:
        with pytest.raises(CheckpointError, match=message) as error:
            load(source)
        assert len(str(error.value)) < 500


def test_folders_without_a_checkpoint_say_what_they_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jat-mini").mkdir()
    (tmp_path / "jat-mini/evaluations.json").write_text("{}")
    (tmp_path / "far/below").mkdir(parents=True)
    (tmp_path / "far/below/x.incomplete").touch()
    golden.write_checkpoint(tmp_path / "models--me--jat/snapshots/0123")
    (tmp_path / "download/.cache/huggingface/download").mkdir(parents=True)
    (tmp_path / "download/.cache/huggingface/download/x.incomplete").touch()
    for source, message in (
        ("jat-mini/", "results of an evaluation: for the checkpoint in this package pass jat-mini$"),
        ("far", "got no such file$"),
        ("models--me--jat", "its subfolder snapshots/0123 has one: name models--me--jat/snapshots/0123$"),
        ("download", "a download was interrupted"),
    ):
        with pytest.raises(CheckpointError, match=message):
            JatEngine.from_pretrained(source)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("damage", [point, link])
def test_damaged_tokenizers_are_found_when_an_engine_is_loaded(
    damage: Callable[[str], Callable[[Path], None]], file: str, tmp_path: Path
) -> None:
    damage(file)(golden.write_checkpoint(tmp_path))
    for load in (JatEngine.from_pretrained, JatProcessor.from_pretrained):
        with pytest.raises(CheckpointError, match=f"{file}: expected "):
            load(tmp_path)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("tokenizer.json", {"pre_tokenizer": {"type": "Another"}}, "data did not match"),
        ("tokenizer_config.json", {"pad_token": 5}, "pad_token: expected a token's text or null, got 5"),
        ("tokenizer_config.json", {"pad_token": {"text": "x"}}, "pad_token: expected a token's text or null, got {"),
        ("tokenizer_config.json", {"model_max_length": "long"}, "model_max_length: expected a number of tokens"),
    ],
)
def test_tokenizers_that_cannot_be_used(file: str, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = golden.write_checkpoint(tmp_path) / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    for load in (JatEngine.from_pretrained, JatProcessor.from_pretrained):
        with pytest.raises(CheckpointError, match=message):
            load(tmp_path)


def test_models_refuse_missions_that_they_cannot_read(tmp_path: Path) -> None:
    """The same errors as of an engine, instead of an IndexError of torch."""
    model = JatModel.from_pretrained(golden.write_checkpoint(tmp_path))
    processor = JatProcessor.from_pretrained(tmp_path)
    model.resize_token_embeddings(8)
    mission = {"discrete_observation": [0] * 148, "text_observation": "go", "action_space": Discrete(3)}
    for agent, first in ((model, (processor,)), (JatEngine.from_model(model, processor), ())):
        with pytest.raises(InputError, match="text_observation: expected tokens below vocab_size=8, got"):
            agent.get_next_action(*first, **mission)
    processor.tokenizer.pad_token = None
    with pytest.raises(InputError, match="text_observation: expected a tokenizer with a pad_token"):
        model.get_next_action(processor, **mission)


@pytest.mark.parametrize("count", [1, 2])
def test_the_command_that_converts_pickled_weights_works(count: int, tmp_path: Path, tiny_model: JatModel) -> None:
    folder = golden.write_checkpoint(tmp_path / 'an "odd" $name')
    (folder / "model.safetensors").unlink()
    tensors = {name: torch.from_numpy(value) for name, value in WEIGHTS.items()}
    tensors["single_discrete_encoder.weight"] = tensors["transformer.wte.weight"]  # shared, as the published code saves
    names = list(tensors)
    for number in range(count):
        part = {name: tensors[name] for name in names[number::count]}
        suffix = "" if count == 1 else f"-{number + 1:05}-of-{count:05}"
        torch.save(part, folder / f"pytorch_model{suffix}.bin")
    if count > 1:
        (folder / "pytorch_model.bin.index.json").write_text("{}")

    with pytest.raises(CheckpointError, match="Convert them once: python -c ") as error:
        JatEngine.from_pretrained(folder)
    command = str(error.value).partition("Convert them once: python ")[2]
    subprocess.run(f"{sys.executable} {command}", shell=True, check=True)
    loaded = JatModel.from_pretrained(folder).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in tiny_model.state_dict().items())


# ---- fields of config.json -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [2**70, None])
def test_numbers_of_labels_are_checked_at_once(value: Any, tmp_path: Path) -> None:
    path = golden.write_checkpoint(tmp_path) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_labels": value}))
    with pytest.raises(CheckpointError, match=r"num_labels: expected an integer of at most 100000, got (1180|None)"):
        JatConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "got an empty file"),
        ("[" * 100_000, "got one that is nested too deeply"),
        ("é".encode("latin-1"), "expected JSON in UTF-8"),
        ("{}".encode("utf-16"), "expected JSON in UTF-8"),
        ('{"layer_norm_epsilon": NaN}', "got NaN, which is no number of JSON"),
    ],
    ids=["empty", "deep", "latin-1", "utf-16", "nan"],
)
def test_configurations_that_are_no_json(content: str | bytes, message: str, tmp_path: Path) -> None:
    folder = golden.write_checkpoint(tmp_path)
    (folder / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    for load in LOADERS[:3]:
        with pytest.raises(CheckpointError, match=message):
            load(folder)


@pytest.mark.parametrize(
    "fields",
    [
        {"hidden_size": True},
        {"hidden_size": 64.0},
        {"num_layers": None},
        {"vocab_size": -1},
        {"attention_layers": 3},
        {"attention_types": [[["global"], 10**9]]},
        {"attention_types": "global"},
        {"intermediate_size": 0},
        {"activation_function": None},
        {"resid_dropout": None},
        {"layer_norm_epsilon": "1e-5"},
        {"initializer_range": -1.0},
        {"observation_loss_coef": None},
        {"use_cache": "yes"},
        {"bos_token_id": "x"},
        {"eos_token_id": [1, None, "x"]},
    ],
    ids=str,
)
def test_fields_of_a_wrong_type_are_named(fields: dict[str, Any], tmp_path: Path) -> None:
    path = golden.write_checkpoint(tmp_path) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    for load in LOADERS[:3]:
        with pytest.raises(CheckpointError, match=rf"config\.json: {next(iter(fields))}: expected "):
            load(tmp_path)


@pytest.mark.parametrize(
    ("fields", "dtype"),
    [
        ({"torch_dtype": "auto"}, torch.float32),
        ({"dtype": "auto"}, torch.float32),
        ({"torch_dtype": "torch.bfloat16", "dtype": None}, torch.bfloat16),
        ({"use_cache": None}, torch.float32),
    ],
    ids=str,
)
def test_other_ways_to_write_a_field(fields: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    path = golden.write_checkpoint(tmp_path) / "config.json"
    rest = {key: value for key, value in json.loads(path.read_text()).items() if key not in ("dtype", "torch_dtype")}
    path.write_text("\ufeff" + json.dumps({**rest, **fields}))
    assert JatModel.from_pretrained(tmp_path).dtype == dtype
    JatEngine.from_pretrained(tmp_path, device="cpu")
