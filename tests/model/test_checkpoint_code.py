"""Code in a checkpoint is never run, by any entry point, for any key that can name code, locally or on the hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jat_engine.testing import golden

AUTO_MAP = {
    "AutoConfig": "planted.Config",
    "AutoFeatureExtractor": "planted.FeatureExtractor",
    "AutoImageProcessor": ["planted.ImageProcessor", "planted.ImageProcessorFast"],
    "AutoModel": "planted.Model",
    "AutoModelForCausalLM": "planted.Model",
    "AutoModelForImageTextToText": "planted.Model",
    "AutoModelForVision2Seq": "planted.Model",
    "AutoProcessor": "planted.Processor",
    "AutoTokenizer": ["planted.Tokenizer", "planted.TokenizerFast"],
    "AutoVideoProcessor": "planted.VideoProcessor",
}
JSON_FILES = ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")

ATTEMPTS = """
import sys
import jat_engine
from jat_engine import AutoConfig, AutoModelForCausalLM, AutoProcessor, JatConfig, JatEngine, JatModel, JatProcessor
from jat_engine.cli import main

source, expect_jat = sys.argv[1], sys.argv[2] == "jat"
for options in ({}, {"trust_remote_code": True}):
    for cls in (AutoConfig, AutoModelForCausalLM, JatConfig, JatModel, JatEngine):
        try:
            made = cls.from_pretrained(source, **options)
        except jat_engine.CheckpointError as error:
            assert not expect_jat and "model_type: expected 'jat'" in str(error), (cls, error)
        else:
            assert expect_jat and type(made).__module__.startswith("jat_engine."), cls
    for cls in (AutoProcessor, JatProcessor):  # of a fixed class, whatever the configuration says
        processor = cls.from_pretrained(source, **options)
        assert type(processor) is JatProcessor
        assert type(processor.tokenizer).__module__.startswith("transformers.")
        assert type(processor.image_processor).__module__.startswith("transformers.")
    if expect_jat:
        text = processor(text="go", return_tensors="pt")
        JatModel.from_pretrained(source, **options).generate(**text, max_new_tokens=2)
play = ["play", "--task", "mujoco-reacher", "--use_cpu", "--model_name_or_path", source, "--trust_remote_code"]
for backend in ("torch", "reference"):
    assert (main([*play, "--num_episodes", "1", "--backend", backend]) == 0) == expect_jat
print("done")
"""


def plant(folder: Path, marker: Path, model_type: str | None) -> None:
    """Add code that leaves a mark, and name it in every place where transformers looks for code."""
    code = f"open({str(marker)!r}, 'w').close()\n"
    for name in ("planted", "configuration_jat", "modeling_jat", "processing_jat", "tokenization_jat"):
        (folder / f"{name}.py").write_text(code)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code + "def generate(model, **kwargs): ...\n")
    for name in JSON_FILES:
        path = folder / name
        fields = json.loads(path.read_text()) if path.exists() else {"processor_class": "JatProcessor"}
        fields["auto_map"] = AUTO_MAP
        if name == "config.json":
            del fields["model_type"]
            if model_type is not None:
                fields["model_type"] = model_type
        path.write_text(json.dumps(fields))


def in_hub_cache(folder: Path, home: Path) -> str:
    """Copy the files into the layout of a downloaded repository, and return the repository's name."""
    repository = home / "hub" / "models--someone--agent"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, repository / "snapshots" / ("0" * 40))
    return "someone/agent"


@pytest.mark.parametrize("place", ["folder", "hub"])
@pytest.mark.parametrize("model_type", ["jat", "jat2", "gpt2", None])
def test_code_in_a_checkpoint_is_never_run(model_type: str | None, place: str, tmp_path: Path) -> None:
    pytest.importorskip("mujoco", reason="needs the mujoco extra")
    folder, marker, home = golden.write_checkpoint(tmp_path / "agent"), tmp_path / "ran", tmp_path / "home"
    plant(folder, marker, model_type)
    source = str(folder) if place == "folder" else in_hub_cache(folder, home)
    result = subprocess.run(
        [sys.executable, "-c", ATTEMPTS, source, str(model_type)],
        env={**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,  # no question can be answered
        capture_output=True,
        text=True,
        check=False,
    )
    assert not marker.exists()
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "done"


def test_the_planted_code_would_leave_a_mark(tmp_path: Path) -> None:
    """transformers' own auto class runs it with `trust_remote_code=True`."""
    folder, marker = golden.write_checkpoint(tmp_path / "agent"), tmp_path / "ran"
    plant(folder, marker, "jat2")
    code = "import sys, transformers; transformers.AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=True)"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", code, str(folder)], env=environment, capture_output=True, check=False)
    assert marker.exists()
