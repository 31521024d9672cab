from __future__ import annotations

from pathlib import Path

import golden
import pytest
import torch

import jat_engine


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden checkpoint, written as the published code writes one."""
    return golden.write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path) -> jat_engine.JatModel:
    torch.set_num_threads(2)
    return jat_engine.AutoModelForCausalLM.from_pretrained(tiny_folder)


@pytest.fixture(scope="session")
def tiny_processor(tiny_folder: Path) -> jat_engine.JatProcessor:
    return jat_engine.AutoProcessor.from_pretrained(tiny_folder)
