"""What is measured: observations of the three kinds, and checkpoints with random weights of the published sizes."""

from __future__ import annotations

import math
import sys
import zlib
from pathlib import Path
from typing import Any

import torch

from .context import ROOT, Context

# ---- checkpoints ---------------------------------------------------------------------------------------------------


def golden() -> Any:
    """tests/golden.py: the recorded answers of the published implementation."""
    if str(ROOT / "tests") not in sys.path:
        sys.path.insert(0, str(ROOT / "tests"))
    import golden as module

    return module


def tiny_checkpoint(work: Path) -> Path:
    """The recorded answers' checkpoint."""
    folder = work / "tiny"
    if not (folder / "complete").exists():
        golden().write_checkpoint(folder)
        (folder / "complete").touch()
    return folder


def small_checkpoint(work: Path) -> Path:
    """The published size with random weights that keep activations and attention scores of order one."""
    folder = work / "small"
    if not (folder / "complete").exists():
        from jat_engine import JatConfig, JatModel, JatProcessor

        config = JatConfig.from_preset("small")
        with torch.device("meta"):
            model = JatModel(config)
        tensors = {name: _weight(name, tuple(p.shape), config) for name, p in model.named_parameters()}
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        config.save_pretrained(folder)
        JatProcessor.byte_level(config).save_pretrained(folder)
        (folder / "complete").touch()
    return folder


def _weight(name: str, shape: tuple[int, ...], config: Any) -> torch.Tensor:
    """The recipe of tests/golden.py; queries and keys scaled so that a score's spread is the tiny model's."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if len(shape) == 1:
        return 1 + 0.1 * x if name.endswith(".weight") else 0.05 * x
    if name in ("transformer.wte.weight", "transformer.wpe.weight"):
        return 0.5 * x
    gain = 1.0
    if ".q_proj." in name or ".k_proj." in name:
        gain = 0.7 * (16 / (config.hidden_size // config.num_heads)) ** 0.25
    elif name.startswith("single_discrete_decoder"):
        gain = 2.0
    return x * (gain / math.sqrt(math.prod(shape[1:])))


def checkpoint(context: Context) -> Path:
    """What is measured: the published size, or in the reduced form the tiny model."""
    return tiny_checkpoint(context.folder) if context.quick else small_checkpoint(context.folder)


# ---- bytes of a step -----------------------------------------------------------------------------------------------


def block_bytes(config: Any, dtype: str) -> int:
    """Bytes of the blocks' weights: a step reads each once. int8 has a float32 scale an output."""
    hidden, size = config.hidden_size, {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}[dtype]
    scales = 4 * 9 * hidden if dtype == "int8" else 0
    vectors = 4 * 10 * hidden  # norms and biases
    return int(config.num_layers * (12 * hidden**2 * size + scales + vectors))


def encoder_bytes(config: Any, kind: str, dtype: str) -> int:
    """Bytes of the large layer of an observation's encoder."""
    size = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}[dtype]
    features = {"babyai": config.max_discrete_value * (config.hidden_size // 50), "atari": 128 * 11 * 11}
    return int(features.get(kind, 0) * config.hidden_size * size)


def cached_bytes(config: Any, tokens: int, dtype: str) -> int:
    """Bytes of keys and values that a step reads: global layers see all tokens, local ones at most their window."""
    seen = sum(min(tokens, config.window_size) if a == "local" else tokens for a in config.attention_layers)
    return int(seen * 2 * config.hidden_size * (4 if dtype == "float32" else 2))


if __name__ == "__main__":  # writes both checkpoints, while something else is being built
    tiny_checkpoint(Path(sys.argv[1]))
    if sys.argv[2:] != ["tiny"]:
        small_checkpoint(Path(sys.argv[1]))
