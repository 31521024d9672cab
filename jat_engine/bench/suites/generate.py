"""Time text: 32 tokens after a prompt of 16, greedily. `JatModel` only: the engine acts and does not write."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..peers import REFERENCE, Unavailable
from ..peers.jat import ModelPeer
from ..peers.published import PublishedPeer
from ..results import make_row
from ..runner import Contender, Context, take_turns
from ..workload import open_checkpoint

SUITE = "generate"

PROMPT_TOKENS, NEW_TOKENS = 16, 32

_ROUNDS = 4


def run(context: Context) -> None:
    options = context.options
    context.note("generate ...")
    prompt = np.random.default_rng(0).integers(0, 250, PROMPT_TOKENS).tolist()
    with open_checkpoint(options.models[0]) as folder:
        writers: dict[str, Any] = {}
        for dtype in ("float32", "bfloat16"):
            if dtype == "float32" or dtype in options.dtypes:
                writers[f"JatModel {dtype}"] = _writer(ModelPeer.load(folder, dtype, options.device).model)
        published = None
        if "published" in options.peers:
            try:
                if options.upstream is None or options.device != "cpu":
                    raise Unavailable("--upstream names no Python with the published package, or this is no CPU")
                published = PublishedPeer(options.upstream, folder)
                writers["published package float32"] = published.generate
            except Unavailable as error:
                context.results.skipped["published package float32"] = str(error)

    written = {name: write(prompt) for name, write in writers.items()}
    contenders = {name: Contender(lambda _: prompt, write) for name, write in writers.items()}
    seconds = take_turns(contenders, min(options.num_iters, _ROUNDS), num_warmup=min(options.num_iters_warmup, 1))
    if published is not None:
        published.close()
    case: dict[str, str | int] = {"model": options.models[0], "prompt": PROMPT_TOKENS, "new tokens": NEW_TOKENS}
    for name, values in seconds.items():
        is_float32 = name.endswith("float32") and name != REFERENCE  # rounding can choose another token: not compared
        row = make_row(
            SUITE,
            case,
            name,
            values,
            reference=seconds[REFERENCE] if is_float32 else None,
            error=float(np.mean(np.not_equal(written[name], written[REFERENCE]))) if is_float32 else None,
            tolerance=0.0 if is_float32 else None,
        )
        row.facts["tokens/s"] = NEW_TOKENS / row.p50
        context.results.rows.append(row)


def _writer(model: Any) -> Any:
    def write(prompt: list[int]) -> list[int]:
        ids = torch.tensor([prompt], device=model.device)
        written = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
        )
        found: list[int] = written[0].tolist()
        return found

    return write
