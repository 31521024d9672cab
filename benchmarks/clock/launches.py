"""List the launches of a step by graphs, as the engine makes them at the published size, without a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jat_engine.backends.base import STEP_TOKENS, TextRows
from jat_engine.backends.cuda.backend import CudaBackend
from jat_engine.bench.workload import batch_arguments
from jat_engine.config import JatConfig
from jat_engine.engine.engine import JatEngine
from jat_engine.kernels.launch import PAGE_SIZE

from ..kernel_variants import variants
from ..no_kernels import Zeros, make_engine, without_kernels
from ..triton_launches import Launch
from .kernels import NUM_MULTIPROCESSORS

WINDOW = 4
"""Tokens of the recorded batches: launches depend on the agents alone, and short windows fill soon."""


def record(engine: JatEngine, launches: list[Launch], agents: int, context: int) -> list[Launch]:
    """Return the launches of a step of so many agents with continuous observations and actions.

    Args:
        engine: made by `make_engine`.
        launches: where its launches are noted.
        agents: in the batch.
        context: cached tokens of each, written over what the short recorded episode had.
    """
    with engine.open_batch(agents, WINDOW, seed=0) as batch:
        for step in range(WINDOW):
            launches.clear()
            batch.get_next_actions(**batch_arguments(agents, step))
    for launch in launches:
        set_context(launch, context)
        use_pdl(launch)
    return list(launches)


def image_launches(frames: int) -> list[Launch]:
    """Return the launches that encode so many Atari frames."""
    launches = variants(torch.bfloat16, frames * STEP_TOKENS, pdl=True)
    images = [launch for launch in launches if "image" in launch.kernel.fn.__module__]
    for launch in images:
        for value in launch.arguments.values():
            if isinstance(value, Tensor) and value.dtype == torch.int64:
                # Addresses of embeddings. 0 would be padding, and so might one of which a half is 0.
                value.copy_((1 << 40) + 4096 * torch.arange(1, value.numel() + 1).view(value.shape))
    return images


def text_launches(counts: Sequence[int], context: int) -> list[Launch]:
    """Return the launches of a step of texts, each of which has so many new rows and predicts from the last.

    Args:
        counts: rows of the texts.
        context: cached rows of each.
    """
    config, pages = JatConfig(), -(-(context + max(counts)) // PAGE_SIZE)
    with without_kernels(NUM_MULTIPROCESSORS) as launches:
        weights: Any = Zeros(config)
        backend = CudaBackend(config, weights, "bfloat16", torch.device("cpu"), persistent=False)
        backend.allocate_cache(len(counts) * pages)
        launches.clear()
        tables = np.arange(len(counts) * pages, dtype=np.int32).reshape(-1, pages)
        backend.run_text(
            [TextRows(None, np.zeros(n, np.int64), context, table, 1) for n, table in zip(counts, tables, strict=True)]
        )
    for launch in launches:
        use_pdl(launch)
    return list(launches)


def use_pdl(launch: Launch) -> None:
    """Launch as on a GPU of sm_90: a kernel starts while the one before still runs. An engine without GPU does not."""
    if "USE_PDL" in launch.arguments:
        launch.arguments["USE_PDL"] = True
        launch.options["launch_pdl"] = True


def set_context(launch: Launch, context: int) -> None:
    """Give every session of a launch of the attention so many cached tokens, each in pages of its own."""
    lengths, table, pages = (launch.arguments.get(f"{name}_ptr") for name in ("context_lens", "page_table", "kv_layer"))
    if not (isinstance(lengths, Tensor) and isinstance(table, Tensor) and isinstance(pages, Tensor)):
        return
    sessions, per_session = table.shape
    lengths.fill_(context)
    needed = max(per_session, -(-(context + STEP_TOKENS) // PAGE_SIZE))
    launch.arguments["page_table_ptr"] = torch.arange(sessions * needed, dtype=table.dtype).view(sessions, needed)
    if "pages_per_session" in launch.arguments:
        launch.arguments["pages_per_session"] = needed

    # Memory that is never touched: only addresses are wanted.
    for name, value in launch.arguments.items():
        if (
            isinstance(value, Tensor)
            and value.dim() > 1
            and len(value) == len(pages)
            and not name.startswith("page_table")
        ):
            launch.arguments[name] = torch.empty(sessions * needed, *value.shape[1:], dtype=value.dtype)


@contextlib.contextmanager
def step_launches(most: int, **options: Any) -> Iterator[tuple[JatEngine, list[Launch]]]:
    """Yield an engine without kernels, and the list of its launches.

    Args:
        most: agents of the largest batch.
        options: of the engine, e.g. kv_dtype.
    """
    with without_kernels(NUM_MULTIPROCESSORS) as launches:
        yield make_engine(JatConfig(), max_cached_tokens=most * (WINDOW + 2 * PAGE_SIZE), **options), launches


def key(launch: Launch) -> tuple[object, ...]:
    """Return what makes two launches alike to the clock."""
    values: list[object] = []
    for name, value in launch.arguments.items():
        values.append((name, tuple(value.shape), value.dtype) if isinstance(value, Tensor) else (name, str(value)))
    return launch.name, launch.grid, tuple(sorted(launch.options.items())), tuple(values)
