"""Time texts on the CUDA backend at the published size: what a token costs that is written, and a prompt that is read.

Whole calls of `Backend.run_text`, from rows to logits on the host, and the device alone. Weights are random, since
times do not depend on them. Floor: the weights of the blocks and of the head of texts, and the keys and values of every
text, once, over the rate of a device-to-device copy.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from jat_engine.backends.base import PAGE_SIZE, TextRows
from jat_engine.bench import costs
from jat_engine.config import JatConfig

from .device_time import GraphSpy, isolated
from .latency import bandwidth
from .section import SectionRun, describe
from .tiles import RandomWeights

DTYPE = "bfloat16"
COUNTS = (1, 8, 64)
"""Texts that are written at once."""

CONTEXT = 300
"""Rows before the token that is written."""

PROMPTS = (16, 256, 400)


def run(section: SectionRun) -> None:
    from jat_engine.backends.cuda.backend import CudaBackend

    config = JatConfig.from_preset("small")
    device = torch.device(section.device, torch.cuda.current_device())
    backend = CudaBackend(config, RandomWeights(config), DTYPE, device, persistent=False)  # type: ignore[arg-type]
    pages = -(-config.max_position_embeddings // PAGE_SIZE)
    backend.allocate_cache(max(COUNTS) * pages)
    tables = np.random.default_rng(0).permutation(max(COUNTS) * pages).astype(np.int32).reshape(-1, pages)

    rate = bandwidth(section)
    section.record("copy bandwidth GB/s", rate / 1e9)
    weight_bytes = costs.matrix_bytes(config, DTYPE) + config.vocab_size * config.hidden_size * 2

    written: list[dict[str, Any]] = []
    for count in COUNTS:
        texts = [TextRows(None, np.array([7]), CONTEXT, table, 1) for table in tables[:count]]
        row = _measure(lambda texts=texts: backend.run_text(texts))
        floor = (weight_bytes + count * costs.cache_bytes(config, CONTEXT, DTYPE)) / rate
        written.append({"texts": count, **row, "floor ms": floor * 1e3, "tokens/s": count / row.get("p50 ms", 1) * 1e3})
        section.record("written", written)

    read: list[dict[str, Any]] = []
    for length in PROMPTS:
        tokens = np.random.default_rng(1).integers(0, config.vocab_size, length)
        steps = [
            TextRows(None, part, begin, tables[0], int(begin + len(part) == length))
            for begin in range(0, length, backend.max_text_rows)
            for part in [tokens[begin : begin + backend.max_text_rows]]
        ]
        row = _measure(lambda steps=steps: [backend.run_text([step]) for step in steps])
        read.append({"rows": length, "steps": len(steps), **row, "rows/s": length / row.get("p50 ms", 1) * 1e3})
        section.record("read", read)


def _measure(call: Callable[[], object], repeats: int = 200) -> dict[str, Any]:
    """Return milliseconds of a call, whole and on the device alone."""
    try:
        for _ in range(5):  # compiles, captures and compares with plain torch
            call()
        seconds = []
        with GraphSpy() as spy:
            for _ in range(repeats):
                begin = time.perf_counter()
                call()
                seconds.append(time.perf_counter() - begin)
        row = {"p50 ms": float(np.median(seconds)) * 1e3, "p99 ms": float(np.percentile(seconds, 99)) * 1e3}
        if spy.count >= repeats:
            row["graphs ms"] = isolated(spy.last(spy.count // repeats), 20)["in a row us"] / 1e3
        return row
    except Exception as error:
        return {"error": describe(error)}
