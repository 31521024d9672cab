"""Write texts by llama.cpp, through llama-cpp-python: a GPT-2 of equal shape with random weights, for its speed alone.

llama.cpp has no GPT-Neo. GPT-2 of this size has the same matrices, vocabulary and head; it scales scores, and all its
layers see all tokens.
"""

from __future__ import annotations

import ctypes
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ... import JatConfig
from ...machine import available_cores
from ..peers.base import Unavailable
from .base import Choose, StepWriter

INSTALL = "pip install gguf llama-cpp-python"

FILE_TYPES = {"float32": "F32", "bfloat16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}
"""dtype -> llama.cpp's type of the matrices; of those with 4 bits, the one that it has the fastest kernels for."""


def open_writer(folder: Path, dtype: str) -> LlamaWriter:
    """Write a file of weights, and open it.

    Args:
        folder: of the checkpoint whose shape is taken.
        dtype: of the weights.

    Raises:
        Unavailable: a package is missing, or llama.cpp does not read what was written.
    """
    try:
        import gguf  # noqa: F401
        import llama_cpp  # noqa: F401
    except ImportError as error:
        raise Unavailable(f"{error.name} is not installed; {INSTALL}") from None
    return LlamaWriter(JatConfig.from_pretrained(folder), dtype)


class LlamaWriter(StepWriter):
    """Run llama.cpp's decoder: one call a step for all texts."""

    has_weights = False

    def __init__(self, config: JatConfig, dtype: str) -> None:
        import llama_cpp

        self.name, self.dtype = "llama.cpp", dtype
        self.versions = {"llama-cpp-python": llama_cpp.__version__}
        self._lib: Any = llama_cpp
        self._config = config
        self._contexts: dict[int, Any] = {}
        self._quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        options.use_mmap = False
        with tempfile.TemporaryDirectory(prefix="jat-engine-gguf-") as made:
            path = Path(made) / "gpt2.gguf"
            write_gpt2(config, dtype, path)
            self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
        if not self._model:
            raise Unavailable(f"llama.cpp did not load its model in {dtype}")

    def _open_context(self, num_texts: int) -> Any:
        """Return a context for so many texts, with an empty cache; made once for each number."""
        lib = self._lib
        if num_texts not in self._contexts:
            options = lib.llama_context_default_params()
            options.n_ctx = options.n_batch = num_texts * self._config.max_position_embeddings
            options.n_seq_max = num_texts
            options.n_threads = options.n_threads_batch = available_cores()
            self._contexts[num_texts] = lib.llama_init_from_model(self._model, options)
        context = self._contexts[num_texts]
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        return context

    def run(self, prompts: np.ndarray, num_new: int, choose: Choose) -> None:
        lib, num_texts = self._lib, len(prompts)
        context = self._open_context(num_texts)
        batch = lib.llama_batch_init(prompts.size, 0, num_texts)
        logits = np.empty((num_texts, self._config.vocab_size), np.float32)
        try:
            ids, cached = prompts, 0
            for _ in range(num_new):
                self._fill(batch, ids, cached)
                if lib.llama_decode(context, batch):
                    raise RuntimeError("llama_decode failed")
                last = ids.shape[1]
                for text in range(num_texts):
                    found = lib.llama_get_logits_ith(context, (text + 1) * last - 1)
                    logits[text] = np.ctypeslib.as_array(found, (logits.shape[1],))
                cached += last
                ids = choose(logits)[:, None]
        finally:
            lib.llama_batch_free(batch)

    def _fill(self, batch: Any, ids: np.ndarray, first_position: int) -> None:
        """Give the batch tokens [B, S], of which the last of each text is predicted from."""
        num_new = ids.shape[1]
        batch.n_tokens = ids.size
        for index, token in enumerate(ids.ravel().tolist()):
            text, offset = divmod(index, num_new)
            batch.token[index] = token
            batch.pos[index] = first_position + offset
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = text
            batch.logits[index] = offset == num_new - 1

    def close(self) -> None:
        for context in self._contexts.values():
            self._lib.llama_free(context)
        self._contexts.clear()
        self._lib.llama_model_free(self._model)


def write_gpt2(config: JatConfig, dtype: str, path: Path) -> None:
    """Write a GPT-2 of the configuration's shape with random weights; norms, biases and positions are float32."""
    import gguf

    kind = gguf.GGMLQuantizationType[FILE_TYPES[dtype]]
    hidden, inner = config.hidden_size, config.intermediate_size or 4 * config.hidden_size
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(config.num_heads)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config.vocab_size)

    def matrix(name: str, rows: int, columns: int) -> None:
        values = rng.standard_normal((rows, columns), np.float32) / np.float32(columns**0.5)
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    def vector(name: str, values: np.ndarray) -> None:
        writer.add_tensor(name, values.astype(np.float32))

    def norm(name: str) -> None:
        vector(f"{name}.weight", np.ones(hidden))
        vector(f"{name}.bias", np.zeros(hidden))

    matrix("token_embd.weight", config.vocab_size, hidden)
    matrix("output.weight", config.vocab_size, hidden)
    vector("position_embd.weight", rng.standard_normal((config.max_position_embeddings, hidden)))
    for layer in range(config.num_layers):
        at = f"blk.{layer}."
        norm(f"{at}attn_norm")
        norm(f"{at}ffn_norm")
        sizes = {"attn_qkv": (3 * hidden, hidden), "attn_output": (hidden, hidden)}
        sizes |= {"ffn_up": (inner, hidden), "ffn_down": (hidden, inner)}
        for name, (rows, columns) in sizes.items():
            matrix(f"{at}{name}.weight", rows, columns)
            vector(f"{at}{name}.bias", np.zeros(rows))
    norm("output_norm")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
