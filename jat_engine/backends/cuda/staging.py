"""Stage a step's inputs: write its groups into the buffer that travels to the GPU.

A token row is a source address and a number of values. With values, the source is an encoder float32 [X, H] that the
first kernel multiplies them with; without, it is the finished embedding, float32 [H].
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...observation import Observations
from ..base import PAGE_SIZE, STEP_TOKENS, Group
from .agent_layout import AgentLayout
from .inputs import StepInputs
from .weights import CudaWeights

_pack_float = struct.Struct("=f").pack


def num_values(groups: Sequence[Group]) -> int:
    """Return an upper bound of the floats that a step's continuous tokens have together."""
    total = 0
    for group in groups:
        observations, last, size = group.observations, group.last, 0
        if observations.modality == "continuous":
            size = 2 * len(observations.values[0]) + 2
        if last is not None and last.space.kind == "continuous":
            size += last.space.size
        total += group.num_agents * size
    return total


def stage(
    inputs: StepInputs, weights: CudaWeights, groups: Sequence[Group], encoded: Sequence[Tensor | None] | None = None
) -> tuple[list[Tensor | None], list[Any]]:
    """Write a step's groups into its inputs.

    Args:
        inputs: of a bucket that the step fits into.
        weights: whose encoders and heads it needs.
        groups: of the step.
        encoded: for each group the embeddings of its observations, if something else encodes them, or None.

    Returns:
        The embeddings of each group's observations, [N, H] on the device, which the step writes; None where they are
        continuous, and their numbers are fed again instead. And what must stay alive until the step is done.
    """
    embeddings: list[Tensor | None] = []
    for index, group in enumerate(groups):
        rows = None if encoded is None else encoded[index]
        if rows is None and group.observations.modality != "continuous":
            rows = _make_embeddings(weights, group)
        embeddings.append(rows)

    shape = inputs.shape
    if shape.sessions == 1:
        in_use = _stage_one(inputs, weights, groups[0], embeddings[0])
    else:
        in_use = _stage_many(inputs, weights, groups, embeddings)
    if shape.frames or shape.integers:
        _stage_observations(inputs, groups, embeddings)
    return embeddings, in_use


def stage_encoder(inputs: StepInputs, weights: CudaWeights, group: Group) -> Tensor:
    """Write images or integers for a graph that only encodes them. Returns the embeddings, which it will write."""
    embeddings = _make_embeddings(weights, group)
    _stage_observations(inputs, [group], [embeddings])
    return embeddings


def _make_embeddings(weights: CudaWeights, group: Group) -> Tensor:
    return torch.empty(group.num_agents, weights.hidden_size, device=weights.device, dtype=torch.float32)


def _stage_observations(inputs: StepInputs, groups: Sequence[Group], embeddings: Sequence[Tensor | None]) -> None:
    """Write images and integers, which are encoded first, into the rows of `embeddings`."""
    host, shape = inputs.host, inputs.shape
    num_frames = num_tokens = 0
    for group, rows in zip(groups, embeddings, strict=True):
        observations, agents = group.observations, group.num_agents
        if rows is None:
            continue
        if observations.modality == "image" and shape.frames:
            place = slice(num_frames, num_frames + agents)
            num_frames += agents
            _write(host["frames"], place, observations.values)
            host["frame_targets"][place] = _row_addresses(rows, agents)
        elif observations.modality != "image" and shape.integers:
            place = slice(num_tokens, num_tokens + agents)
            num_tokens += agents
            _stage_integers(host, place, observations, group.missions)
            host["token_targets"][place] = _row_addresses(rows, agents)
    if shape.frames:
        host["frame_targets"][num_frames:] = 0
    if shape.integers:
        host["token_targets"][num_tokens:] = 0


def _stage_integers(
    host: dict[str, np.ndarray],
    place: slice,
    observations: Observations,
    missions: Sequence[np.ndarray] | np.ndarray | None,
) -> None:
    tokens, size = host["tokens"], len(observations.values[0])
    _write(tokens[:, :size], place, observations.values)
    if missions is not None:
        _write(tokens[:, size:], place, missions)
    host["rewards"][place] = observations.rewards


def _write(target: np.ndarray, place: slice, rows: Sequence[np.ndarray] | np.ndarray) -> None:
    """Write arrays at target[place], without making one of a list of one."""
    if len(rows) == 1:
        target[place.start] = rows[0]
    else:
        target[place] = rows


# ---- agent by agent ------------------------------------------------------------------------------------------------


def _add_sources(
    weights: CudaWeights,
    group: Group,
    observed: Tensor | None,
    agent: int,
    addresses: list[int],
    values: list[Any],
) -> AgentLayout:
    """Add the sources of an agent's token rows, and return their layout.

    Args:
        weights: whose encoders and heads it needs.
        group: of the agent.
        observed: embeddings of the group's observations, or None.
        agent: in the group.
        addresses: of sources; the rows' are appended.
        values: float32, in pieces; those of the rows are appended.
    """
    observations, last = group.observations, group.last
    size = len(observations.values[agent]) + 1 if observed is None else 0
    if last is None:
        layout = weights.layout(0, size, None, group.space)
        own = list(layout.addresses)
    else:
        num_again = group.num_again[agent]
        layout = weights.layout(num_again, size, last.space, group.space)
        own = list(layout.addresses)
        if num_again == 2:
            if last.embeddings is None:
                values += (last.observations.values[agent], _pack_float(last.observations.rewards[agent]))
            else:
                own[0] = last.embeddings.data_ptr() + agent * weights.row_bytes
        if num_again:
            if last.space.kind == "continuous":
                values.append(last.actions[agent])
            else:
                own[-2] += int(last.actions[agent]) * weights.row_bytes
    if observed is None:
        values += (observations.values[agent], _pack_float(observations.rewards[agent]))
    else:
        own[-1] = observed.data_ptr() + agent * weights.row_bytes
    addresses += own
    return layout


def _stage_one(inputs: StepInputs, weights: CudaWeights, group: Group, observed: Tensor | None) -> list[Any]:
    """Write token rows and head of a step of one agent, in few writes. Returns what must stay alive."""
    space, noise = group.space, group.noise
    addresses: list[int] = []
    values: list[Any] = []
    layout = _add_sources(weights, group, observed, 0, addresses, values)
    count = len(addresses)
    padding = (0,) * (STEP_TOKENS - count)
    context, offset, table = int(group.context_lens[0]), int(group.start_offsets[0]), group.page_table[0]
    slots = []
    for place in range(context + offset, context + offset + count):
        slots.append(table.item(place // PAGE_SIZE) * PAGE_SIZE + place % PAGE_SIZE)

    inputs.write_one_agent(
        *addresses, *padding,
        *range(context, context + count), *padding,
        *slots, *(-1,) * len(padding),
        context, offset, noise is not None,
        *layout.one_agent,
    )  # fmt: skip
    inputs.write_values(values, layout.num_values)
    inputs.write_page_table(0, table)
    if noise is not None:
        inputs.host["log_noise"][0, : space.size] = noise[0]
    return [layout]


# ---- many agents, as arrays ----------------------------------------------------------------------------------------


def _stage_many(
    inputs: StepInputs, weights: CudaWeights, groups: Sequence[Group], embeddings: Sequence[Tensor | None]
) -> list[Any]:
    """Write token rows and heads. Returns what must stay alive."""
    host = inputs.host
    counts = 1 + _flatten([group.num_again for group in groups])
    context_lens = _flatten([group.context_lens for group in groups])
    start_offsets = _flatten([group.start_offsets for group in groups])
    ends = np.cumsum(counts)
    starts, agents, rows = ends - counts, len(counts), int(ends[-1])
    host["query_start"][0] = 0
    host["query_start"][1 : agents + 1] = ends
    host["query_start"][agents + 1 :] = rows
    host["context_lens"][:agents] = context_lens
    host["start_offsets"][:agents] = start_offsets

    _stage_pages_and_noise(inputs, groups)

    owner = np.repeat(np.arange(agents), counts)
    positions = np.arange(rows) + (context_lens - starts)[owner]
    page, slot = np.divmod(positions + start_offsets[owner], PAGE_SIZE)
    host["positions"][:rows] = positions
    host["slot_mapping"][:rows] = host["page_table"][owner, page] * PAGE_SIZE + slot
    host["slot_mapping"][rows:] = -1

    host["source_ptrs"][rows:] = 0
    if len(groups) == 1:
        return _stage_batch_sources(host, weights, groups[0], embeddings[0], starts, ends)
    return _stage_sources(inputs, weights, groups, embeddings)


def _flatten(fields: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
    """Return the entries of all groups' agents as one array."""
    if len(fields) == 1:
        return np.asarray(fields[0])
    values: Iterable[int] = chain.from_iterable(fields)
    return np.array(list(values), np.int64)


def _stage_pages_and_noise(inputs: StepInputs, groups: Sequence[Group]) -> None:
    page_table, log_noise = inputs.host["page_table"], inputs.host["log_noise"]
    has_noise: list[bool] = []
    begin = 0
    for group in groups:
        end = begin + group.num_agents
        if group.num_agents == 1:
            inputs.write_page_table(begin, group.page_table[0])
        else:
            tables = np.asarray(group.page_table)
            page_table[begin:end, : tables.shape[1]] = tables
        if group.noise is not None:
            log_noise[begin:end, : group.space.size] = group.noise
        has_noise += [group.noise is not None] * group.num_agents
        begin = end
    inputs.host["has_noise"][:begin] = has_noise


def _stage_sources(
    inputs: StepInputs, weights: CudaWeights, groups: Sequence[Group], embeddings: Sequence[Tensor | None]
) -> list[Any]:
    """Write sources of token rows and heads, agent by agent. Returns what must stay alive."""
    addresses: list[int] = []
    values: list[Any] = []
    layouts: list[AgentLayout] = []
    for group, observed in zip(groups, embeddings, strict=True):
        for agent in range(group.num_agents):
            layouts.append(_add_sources(weights, group, observed, agent, addresses, values))

    host, agents, rows = inputs.host, len(layouts), len(addresses)
    host["head_ptrs"][:agents] = [layout.head for layout in layouts]
    host["head_bias_ptrs"][:agents] = [layout.head_bias for layout in layouts]
    host["head_sizes"][:agents] = [layout.head_size for layout in layouts]
    host["source_ptrs"][:rows] = addresses
    sizes = np.array(list(chain.from_iterable([layout.sizes for layout in layouts])))
    ends = sizes.cumsum()
    host["source_sizes"][:rows] = sizes
    host["value_starts"][:rows] = ends - sizes
    inputs.write_values(values, int(ends[-1]))
    return layouts


def _stage_batch_sources(
    host: dict[str, np.ndarray],
    weights: CudaWeights,
    group: Group,
    embeddings: Tensor | None,
    starts: np.ndarray,
    ends: np.ndarray,
) -> list[Any]:
    """Write sources and heads of the token rows [starts, ends) of a group's agents, by array operations.

    Returns:
        What must stay alive.
    """
    agents, last, num_again = np.arange(group.num_agents), group.last, np.asarray(group.num_again)

    # Newest observations, then those that are fed again, then actions.
    in_use: list[Any] = []
    used, encoder = _stage_observed(host, weights, group.observations, embeddings, agents, ends - 1, 0)
    in_use.append(encoder)
    again, acting = np.flatnonzero(num_again == 2), np.flatnonzero(num_again)
    if last is not None and again.size:
        used, encoder = _stage_observed(host, weights, last.observations, last.embeddings, again, starts[again], used)
        in_use.append(encoder)
    if last is not None and acting.size:
        actions = np.asarray(last.actions)[acting]
        if last.space.kind == "continuous":
            encoder = weights.continuous_encoder(last.space.size)
            _stage_values(host, used, encoder, ends[acting] - 2, actions)
        else:
            encoder = weights.choices(last.space.size)
            _stage_finished(host, ends[acting] - 2, _addresses(encoder, actions))
        in_use.append(encoder)

    head, bias = weights.head(group.space)
    host["head_ptrs"][: agents.size] = head.data_ptr()
    host["head_bias_ptrs"][: agents.size] = 0 if bias is None else bias.data_ptr()
    host["head_sizes"][: agents.size] = group.space.size
    return [*in_use, head, bias]


def _stage_observed(
    host: dict[str, np.ndarray],
    weights: CudaWeights,
    observations: Observations,
    embeddings: Tensor | None,
    which: np.ndarray,
    rows: np.ndarray,
    used: int,
) -> tuple[int, Tensor]:
    """Write the observations of the agents `which` [K] at `rows` [K].

    Returns:
        Where the next values go, and the tensor whose addresses were written.
    """
    if embeddings is not None:
        _stage_finished(host, rows, _addresses(embeddings, which))
        return used, embeddings
    values, rewards = np.asarray(observations.values), np.asarray(observations.rewards, np.float32)
    encoder = weights.continuous_encoder(values.shape[1] + 1)
    return _stage_values(host, used, encoder, rows, values[which], rewards[which, None]), encoder


def _stage_values(
    host: dict[str, np.ndarray], used: int, encoder: Tensor, rows: np.ndarray, *columns: np.ndarray
) -> int:
    """Write tokens made from the columns [K, ...] of values, at `rows` [K]. Returns where the next values go."""
    count, size = len(rows), encoder.shape[0]
    values = host["values"][used : used + count * size]
    np.concatenate(columns, axis=1, out=values.reshape(count, size))
    host["source_ptrs"][rows] = encoder.data_ptr()
    host["source_sizes"][rows] = size
    host["value_starts"][rows] = used + size * np.arange(count)
    return used + count * size


def _stage_finished(host: dict[str, np.ndarray], rows: np.ndarray, addresses: np.ndarray) -> None:
    """Write tokens whose embeddings are finished rows."""
    host["source_ptrs"][rows] = addresses
    host["source_sizes"][rows] = 0
    host["value_starts"][rows] = 0


def _row_addresses(matrix: Tensor, count: int) -> np.ndarray | int:
    """Return the addresses of all rows of a contiguous matrix."""
    return matrix.data_ptr() if count == 1 else _addresses(matrix, np.arange(count))


def _addresses(matrix: Tensor, index: np.ndarray) -> np.ndarray:
    """Return the addresses of rows of a contiguous matrix."""
    return matrix.data_ptr() + np.asarray(index, np.int64) * _row_bytes(matrix)


def _row_bytes(matrix: Tensor) -> int:
    return matrix.shape[1] * matrix.itemsize
