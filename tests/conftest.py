from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

# The tiny model gains nothing from threads, and on a busy machine loses a lot. Subprocesses inherit this.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is defined: before anything imports one

from helpers import ROOT, cuda_emulator

from jat_engine.testing import golden

if os.environ.get("TRITON_INTERPRET") == "1" and util.find_spec("triton"):
    from helpers import interpreter

    interpreter.install()

import jat_engine


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden checkpoint, written as the published code writes one."""
    return golden.write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path) -> jat_engine.JatModel:
    return jat_engine.AutoModelForCausalLM.from_pretrained(tiny_folder)


@pytest.fixture(scope="session")
def tiny_processor(tiny_folder: Path) -> jat_engine.JatProcessor:
    return jat_engine.AutoProcessor.from_pretrained(tiny_folder)


@pytest.fixture(scope="module")
def load(tiny_folder: Path) -> Callable[..., jat_engine.JatEngine]:
    """Engines with the golden weights, each made once."""
    made: dict[tuple[Any, ...], jat_engine.JatEngine] = {}

    def load(**options: Any) -> jat_engine.JatEngine:
        key = tuple(sorted(options.items()))
        if key not in made:
            made[key] = jat_engine.JatEngine.from_pretrained(tiny_folder, device="cpu", **options)
        return made[key]

    return load


@pytest.fixture(scope="session")
def cuda_emulator_folder() -> Path:
    """Return the folder where the persistent kernel is built for the CPU, the same for all test files."""
    if cuda_emulator.missing_tools():
        pytest.skip(cuda_emulator.missing_tools())
    return ROOT / "build" / f"tests-{sys.implementation.cache_tag}"


@pytest.fixture(scope="session")
def cuda_emulator_module(cuda_emulator_folder: Path) -> ModuleType:
    """`jat_engine._cuda` with its kernel executed on the CPU."""
    return cuda_emulator.load(cuda_emulator.build(cuda_emulator_folder, "cuda_emulator")[0])
