"""Stage a step of texts: divide their rows among programs of the attention, and write the inputs of its kernels.

A *part* is up to `TextShape.queries` rows of a text, a session of the attention. With float8 pages a part's keys and
values are quantised by the attention of that part, so that a text's parts have to be computed one after the other: each
is in another round. Otherwise all are in one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from ...kernels.launch import MAX_QUERIES
from ...kernels.prompt_attention import MAX_PROMPT_QUERIES
from ..base import PAGE_SIZE, TextRows
from .buckets import bucket
from .inputs import HostBuffer

_LEAST_ROWS = 16
"""Least rows of a step that reads prompts; with `_LEAST_PARTS` it keeps small ones in one bucket."""

_LEAST_PARTS = 4


class TextShape(NamedTuple):
    """Sizes that the kernels of a step are launched for; smaller steps are padded to them.

    Attributes:
        rows: tokens and patches, of all texts together.
        queries: the most rows of a part.
        parts: of a round.
        rounds: of the attention, one after the other.
        predictions: rows that are predicted from. If they are as many as `rows`, all rows are.
    """

    rows: int
    queries: int
    parts: int
    rounds: int
    predictions: int


def text_shape(texts: Sequence[TextRows], is_kv_quantized: bool) -> TextShape:
    """Return the bucket of a step. Few distinct ones, since each is captured once."""
    counts = [text.num_rows for text in texts]
    rows, predictions = sum(counts), sum([text.num_predicted for text in texts])
    if rows == len(texts):  # each is written, or has one row left to be read
        size = bucket(rows)
        return TextShape(size, 1, size, 1, size if predictions else 0)

    size = _next_power(rows, _LEAST_ROWS)
    predicted = min(bucket(predictions), size) if predictions else 0
    if is_kv_quantized:
        rounds = _next_power(-(-max(counts) // MAX_QUERIES), 1)
        return TextShape(size, MAX_QUERIES, bucket(len(texts)), rounds, predicted)
    parts = sum([-(-count // MAX_PROMPT_QUERIES) for count in counts])
    return TextShape(size, MAX_PROMPT_QUERIES, _next_power(parts, _LEAST_PARTS), 1, predicted)


def make_inputs(shape: TextShape, max_pages: int, device: torch.device) -> HostBuffer:
    """Return the buffer of a step's inputs, at first without rows.

    Fields, S = parts * rounds: source_ptrs int64 [rows], addresses of embeddings, float32 [H]; positions, slot_mapping,
    source_sizes, value_starts int32 [rows]; query_start [S + 1], context_lens, start_offsets [S], page_table
    [S, max_pages] int32; predicted int32 [predictions], rows.
    """
    sessions = shape.parts * shape.rounds
    by_row, by_session = ((shape.rows,), torch.int32), ((sessions,), torch.int32)
    fields = {
        "source_ptrs": ((shape.rows,), torch.int64),
        "positions": by_row,
        "slot_mapping": by_row,
        "source_sizes": by_row,  # zeros, as the next: embeddings are finished
        "value_starts": by_row,
        "query_start": ((sessions + 1,), torch.int32),
        "context_lens": by_session,
        "start_offsets": by_session,  # zeros: a text's first row is in the first slot
        "page_table": ((sessions, max_pages), torch.int32),
        "predicted": ((shape.predictions,), torch.int32),
    }
    inputs = HostBuffer(fields, device)
    inputs.host["slot_mapping"].fill(-1)
    return inputs


def stage_text(
    inputs: HostBuffer, shape: TextShape, texts: Sequence[TextRows], embedding_ptr: int, row_bytes: int
) -> np.ndarray:
    """Write a step of texts into its inputs.

    Args:
        inputs: of `make_inputs`.
        shape: of the step.
        texts: of the step.
        embedding_ptr: address of the embeddings of all tokens, and
        row_bytes: of one.

    Returns:
        Where the predictions of the texts, one text after the other, are among those of the step, int64.
    """
    host = inputs.host
    counts = np.array([text.num_rows for text in texts])
    begins = counts.cumsum() - counts  # of the texts, if their rows lay one behind the other
    contexts = np.array([text.context_len for text in texts])

    # Parts: round after round or, if there is one round, text after text.
    owner, first, session = _parts(counts, shape)
    num_queries = np.minimum(counts[owner] - first, shape.queries)
    by_session = np.zeros(shape.parts * shape.rounds, np.int64)
    by_session[session] = num_queries
    by_session.cumsum(out=host["query_start"][1:])
    host["context_lens"][session] = contexts[owner] + first
    page_table = host["page_table"]
    width = page_table.shape[1]
    for place, index in zip(session.tolist(), owner.tolist(), strict=True):
        table = texts[index].page_table[:width]
        page_table[place, : len(table)] = table

    # Rows: their parts and texts, where they are within their texts, and where among the rows of all texts.
    part = np.repeat(np.arange(len(session)), num_queries)
    rows = len(part)
    starts = num_queries.cumsum() - num_queries
    within = first[part] + np.arange(rows) - starts[part]
    positions = contexts[owner[part]] + within
    flat = begins[owner[part]] + within
    page, slot = np.divmod(positions, PAGE_SIZE)
    host["positions"][:rows] = positions
    host["slot_mapping"][:rows] = page_table[session[part], page] * PAGE_SIZE + slot
    host["slot_mapping"][rows:] = -1
    host["source_ptrs"][:rows] = _sources(texts, embedding_ptr, row_bytes)[flat]
    host["source_ptrs"][rows:] = 0

    row_of = np.empty(rows, np.int64)
    row_of[flat] = np.arange(rows)
    ends = begins + counts
    ranges = [np.arange(end - text.num_predicted, end) for end, text in zip(ends, texts, strict=True)]
    predicted: np.ndarray = row_of[np.concatenate(ranges)]
    if shape.predictions == shape.rows:
        return predicted
    host["predicted"][: len(predicted)] = predicted
    host["predicted"][len(predicted) :] = 0
    return np.arange(len(predicted))


def _parts(counts: np.ndarray, shape: TextShape) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the parts of texts of `counts` rows: their texts, first rows within them, and sessions, in order."""
    num_parts = -(-counts // shape.queries)
    owner = np.repeat(np.arange(len(counts)), num_parts)
    index = np.arange(len(owner)) - np.repeat(num_parts.cumsum() - num_parts, num_parts)
    if shape.rounds == 1:
        return owner, index * shape.queries, np.arange(len(owner))
    order = np.lexsort((owner, index))
    owner, index = owner[order], index[order]
    return owner, index * shape.queries, index * shape.parts + owner


def _sources(texts: Sequence[TextRows], embedding_ptr: int, row_bytes: int) -> np.ndarray:
    """Return the addresses of the embeddings of all texts' rows, one text after the other, int64."""
    pieces: list[np.ndarray] = []
    for text in texts:
        if text.patches is not None:
            pieces.append(text.patches.data_ptr() + np.arange(len(text.patches)) * row_bytes)
        pieces.append(embedding_ptr + text.tokens * row_bytes)
    addresses: np.ndarray = np.concatenate(pieces)
    return addresses


def _next_power(count: int, least: int) -> int:
    return max(least, 1 << (count - 1).bit_length())
