"""A checkpoint with the configuration, layout and tokenizer size of the published one, and random weights."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jat_engine import JatConfig, JatModel
from jat_engine.testing import golden

VOCAB_SIZE = 50257

_NUM_BYTES = 256
_NUMBERS = np.random.default_rng(0).standard_normal(1_000_003, np.float32)
_END = "<|endoftext|>"
_MERGES = ["g o", "t o", "h e", "Ġ t", "Ġt he", "Ġt o", "r e", "Ġ re", "Ġre d", "l l", "b a", "Ġ ba"]
"""A few of GPT-2's, of the words of missions; Ġ is a space."""


def write(folder: Path, num_layers: int = 12) -> Path:
    """Write a folder as the published code does: float32, 192.7 M parameters (771 MB) with all 12 layers."""
    sizes: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": 512,
        "hidden_size": 768,
        "num_layers": num_layers,
        "num_heads": 12,
        "window_size": 256,
        "image_size": 224,
        "patch_size": 16,
        "attention_layers": ["global", "local"] * (num_layers // 2),
        "attention_types": [[["global", "local"], num_layers // 2]],
        "bos_token_id": VOCAB_SIZE - 1,
        "eos_token_id": VOCAB_SIZE - 1,
        "tokenizer_class": "GPT2TokenizerFast",
    }
    config = json.loads((golden.FOLDER / "checkpoint/config.json").read_text()) | sizes
    with torch.device("meta"):
        model = JatModel(JatConfig(num_layers=num_layers))
    tensors = {name: _weight(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()}
    golden.write_checkpoint(folder, tensors)
    (folder / "config.json").write_text(json.dumps(config))
    _change(folder / "generation_config.json", bos_token_id=VOCAB_SIZE - 1, eos_token_id=VOCAB_SIZE - 1)
    _change(folder / "preprocessor_config.json", crop_size={"height": 224, "width": 224}, size={"shortest_edge": 224})
    _write_tokenizer(folder)
    return folder


def _weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Make a parameter like the golden weights, from a million numbers repeated: ten times as fast."""
    start = zlib.crc32(name.encode()) % len(_NUMBERS)
    return golden.scaled(name, np.resize(np.roll(_NUMBERS, start), shape))


def _write_tokenizer(folder: Path) -> None:
    """Write GPT-2's files with fewer merges: bytes, merged and unused tokens, and the end-of-text token."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    texts = [text for text, index in tokenizer["model"]["vocab"].items() if index < _NUM_BYTES]
    texts += [merge.replace(" ", "") for merge in _MERGES]
    texts += [f"<{index}>" for index in range(len(texts), VOCAB_SIZE - 1)]
    vocab = {text: index for index, text in enumerate([*texts, _END])}
    tokenizer["model"] |= {"vocab": vocab, "merges": list(_MERGES)}
    end = {"content": _END, "single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": True}
    tokenizer["added_tokens"] = [{"id": VOCAB_SIZE - 1, **end}]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *_MERGES, ""]), encoding="utf-8")
    _change(
        folder / "tokenizer_config.json",
        add_prefix_space=False,
        added_tokens_decoder={str(VOCAB_SIZE - 1): end},
        model_max_length=512,
        tokenizer_class="GPT2Tokenizer",
    )


def _change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
