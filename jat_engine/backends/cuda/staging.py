"""Stage a step's inputs: write its groups into the buffer that travels to the GPU.

A token row is a source address and a number of values. With values, the source is an encoder float32 [X, H] that the
first kernel multiplies them with; without, it is the finished embedding, float32 [H].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..base import PAGE_SIZE, STEP_TOKENS, Group
from .inputs import StepInputs
from .weights import CudaWeights

_NO_VALUES = np.empty(0, np.float32)


class Staged(NamedTuple):
    """A step that is ready to run.

    Attributes:
        embeddings: of each group's observations: float32 [N, X + 1] values with the reward, or [N, H] on the device,
            which the step writes.
        in_use: must stay alive until the step is done.
    """

    embeddings: list[Any]
    in_use: list[Any]


class _Row(NamedTuple):
    address: int
    values: np.ndarray
    source: Tensor  # where the address lies: packed weights may be dropped for those of other sizes within a step


def num_values(groups: Sequence[Group]) -> int:
    """Return an upper bound of the floats that a step's continuous tokens have together."""
    total = 0
    for group in groups:
        observation, last = group.observations, group.last
        size = len(observation.values[0]) + 1 if observation.modality == "continuous" else 0
        action = last.space.size if last is not None and last.space.kind == "continuous" else 0
        total += group.num_agents * (2 * size + action)
    return total


def stage(
    inputs: StepInputs, weights: CudaWeights, groups: Sequence[Group], encoded: Sequence[Any] | None = None
) -> Staged:
    """Write a step's groups into its inputs.

    Args:
        inputs: of a bucket that the step fits into.
        weights: whose encoders and heads it needs.
        groups: of the step.
        encoded: for each group the embeddings of its observations, if something else encodes them, or None.
    """
    embeddings = [
        _make_embeddings(weights, group) if rows is None else rows
        for group, rows in zip(groups, encoded or [None] * len(groups), strict=True)
    ]
    if inputs.host["context_lens"].size == 1:
        in_use = _stage_one(inputs, weights, groups[0], embeddings[0])
    elif len(groups) > 1 or groups[0].num_agents == 1:
        in_use = _stage_agents(inputs, weights, groups, embeddings)
    else:
        in_use = _stage_batch(inputs, weights, groups[0], embeddings[0])
    if "frames" in inputs.host or "tokens" in inputs.host:
        _stage_observations(inputs.host, groups, embeddings)
    return Staged(embeddings, in_use)


def _make_embeddings(weights: CudaWeights, group: Group) -> Any:
    observations = group.observations
    if observations.modality == "continuous":
        if group.num_agents == 1:
            values = observations.values[0]
            row = np.empty(values.size + 1, np.float32)
            row[:-1] = values
            row[-1] = observations.rewards[0]
            return [row]
        rewards = np.asarray(observations.rewards, np.float32)
        return np.concatenate((observations.values, rewards[:, None]), axis=1)
    return torch.empty(group.num_agents, weights.config.hidden_size, device=weights.device, dtype=torch.float32)


def _stage_observations(host: dict[str, np.ndarray], groups: Sequence[Group], embeddings: Sequence[Any]) -> None:
    """Write images and integers, which are encoded first, into the rows of `embeddings`."""
    for name in ("frame_targets", "token_targets"):
        if name in host:
            host[name].fill(0)
    num_frames = num_tokens = 0
    for group, rows in zip(groups, embeddings, strict=True):
        observations, agents = group.observations, group.num_agents
        if observations.modality == "image" and "frames" in host:
            place = slice(num_frames, num_frames + agents)
            num_frames += agents
            host["frames"][place] = observations.values
            host["frame_targets"][place] = _addresses(rows, np.arange(agents))
        elif observations.modality.startswith("discrete") and "tokens" in host:
            place = slice(num_tokens, num_tokens + agents)
            num_tokens += agents
            size = len(observations.values[0])
            host["tokens"][place, :size] = observations.values
            if group.missions is not None:
                host["tokens"][place, size:] = group.missions
            host["rewards"][place] = observations.rewards
            host["token_targets"][place] = _addresses(rows, np.arange(agents))


# ---- agent by agent ------------------------------------------------------------------------------------------------


def _rows(weights: CudaWeights, group: Group, observed: Any, agent: int) -> list[_Row]:
    """Return the token rows of an agent, in order."""
    rows, last = [], group.last
    num_again = int(group.num_again[agent])
    if num_again and last is not None:
        if num_again == 2:
            rows.append(_observation_row(weights, last.embeddings, agent))
        if last.space.kind == "continuous":
            encoder = weights.continuous_encoder(last.space.size)
            rows.append(_Row(encoder.data_ptr(), last.actions[agent], encoder))
        else:
            choices = weights.choices(last.space.size)
            address = choices.data_ptr() + int(last.actions[agent]) * _row_bytes(choices)
            rows.append(_Row(address, _NO_VALUES, choices))
    rows.append(_observation_row(weights, observed, agent))
    return rows


def _observation_row(weights: CudaWeights, embeddings: Any, agent: int) -> _Row:
    if isinstance(embeddings, Tensor):
        return _Row(embeddings.data_ptr() + agent * _row_bytes(embeddings), _NO_VALUES, embeddings)
    values = embeddings[agent]
    encoder = weights.continuous_encoder(values.size)
    return _Row(encoder.data_ptr(), values, encoder)


def _stage_one(inputs: StepInputs, weights: CudaWeights, group: Group, observed: Any) -> list[Any]:
    """Write token rows and head of a step of one agent, in few writes. Returns what must stay alive."""
    host, space, noise = inputs.host, group.space, group.noise
    rows = _rows(weights, group, observed, 0)
    context, offset, table = int(group.context_lens[0]), int(group.start_offsets[0]), group.page_table[0]
    count = len(rows)
    padding = [0] * (STEP_TOKENS - count)

    slots, lengths, starts, end = [], [], [], 0
    for number, (_, values, _) in enumerate(rows, context + offset):
        page, slot = divmod(number, PAGE_SIZE)
        slots.append(int(table[page]) * PAGE_SIZE + slot)
        lengths.append(values.size)
        starts.append(end)
        end += values.size
    if end:
        np.concatenate([row.values for row in rows], out=host["values"][:end])

    weight, bias = weights.head(space)
    inputs.write_one_agent(
        *[row.address for row in rows], *padding,
        weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        0, count, context, offset, space.size,
        *range(context, context + count), *padding,
        *slots, *[-1] * len(padding),
        *lengths, *padding,
        *starts, *padding,
        noise is not None,
    )  # fmt: skip
    host["page_table"][0, : table.size] = table
    if noise is not None:
        host["log_noise"][0, : space.size] = noise[0]
    return [weight, bias, rows]


def _stage_agents(
    inputs: StepInputs, weights: CudaWeights, groups: Sequence[Group], embeddings: Sequence[Any]
) -> list[Any]:
    """Write token rows and heads agent by agent. Returns what must stay alive."""
    host = inputs.host
    rows: list[_Row] = []
    counts, contexts, offsets, tables, heads, sizes, noises = [], [], [], [], [], [], []
    for group, observed in zip(groups, embeddings, strict=True):
        head = weights.head(group.space)
        for agent in range(group.num_agents):
            own = _rows(weights, group, observed, agent)
            rows += own
            counts.append(len(own))
            contexts.append(int(group.context_lens[agent]))
            offsets.append(int(group.start_offsets[agent]))
            tables.append(group.page_table[agent])
            heads.append(head)
            sizes.append(group.space.size)
            noises.append(None if group.noise is None else group.noise[agent])

    positions, slots = [], []
    for count, context, offset, table in zip(counts, contexts, offsets, tables, strict=True):
        for position in range(context, context + count):
            page, slot = divmod(position + offset, PAGE_SIZE)
            positions.append(position)
            slots.append(int(table[page]) * PAGE_SIZE + slot)
    lengths = [row.values.size for row in rows]
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    if starts[-1]:
        np.concatenate([row.values for row in rows], out=host["values"][: starts[-1]])

    agents, used = len(counts), len(rows)
    ends = np.cumsum(counts)
    host["query_start"][0] = 0
    host["query_start"][1 : agents + 1] = ends
    host["query_start"][agents + 1 :] = used
    host["context_lens"][:agents] = contexts
    host["start_offsets"][:agents] = offsets
    host["head_sizes"][:agents] = sizes
    host["has_noise"][:agents] = [noise is not None for noise in noises]
    host["positions"][:used] = positions
    host["slot_mapping"][:used] = slots
    host["slot_mapping"][used:] = -1
    host["source_sizes"][:used] = lengths
    host["value_starts"][:used] = starts[:-1]

    host["source_ptrs"][:used] = [row.address for row in rows]
    host["source_ptrs"][used:] = 0
    host["head_ptrs"][:agents] = [weight.data_ptr() for weight, _ in heads]
    host["head_bias_ptrs"][:agents] = [0 if bias is None else bias.data_ptr() for _, bias in heads]
    for row, table in zip(host["page_table"], tables, strict=False):
        row[: table.size] = table
    for row, noise in zip(host["log_noise"], noises, strict=False):
        if noise is not None:
            row[: noise.size] = noise
    return [heads, rows]


# ---- a batch, as arrays --------------------------------------------------------------------------------------------


def _stage_batch(inputs: StepInputs, weights: CudaWeights, group: Group, embeddings: Any) -> list[Any]:
    """Write token rows and heads of a group of many agents, by array operations. Returns what must stay alive."""
    host, last, space = inputs.host, group.last, group.space
    agents = np.arange(group.num_agents)
    num_again = np.asarray(group.num_again)
    context_lens, start_offsets = np.asarray(group.context_lens), np.asarray(group.start_offsets)
    page_table = np.asarray(group.page_table)

    counts = 1 + num_again
    ends = np.cumsum(counts)
    starts, rows = ends - counts, int(ends[-1])
    host["query_start"][0] = 0
    host["query_start"][1 : agents.size + 1] = ends
    host["query_start"][agents.size + 1 :] = rows
    host["context_lens"][: agents.size] = context_lens
    host["start_offsets"][: agents.size] = start_offsets
    host["page_table"][: agents.size, : page_table.shape[1]] = page_table

    owner = np.repeat(agents, counts)
    positions = np.arange(rows) + (context_lens - starts)[owner]
    page, slot = np.divmod(positions + start_offsets[owner], PAGE_SIZE)
    host["positions"][:rows] = positions
    host["slot_mapping"][:rows] = page_table[owner, page] * PAGE_SIZE + slot
    host["slot_mapping"][rows:] = -1
    host["source_ptrs"][rows:] = 0

    # Newest observations, then those that are fed again, then actions.
    in_use: list[Any] = []
    used = _stage_observed(host, weights, embeddings, agents, ends - 1, 0)
    again, acting = np.flatnonzero(num_again == 2), np.flatnonzero(num_again)
    if last is not None and again.size:
        in_use.append(last.embeddings)
        used = _stage_observed(host, weights, last.embeddings, again, starts[again], used)
    if last is not None and acting.size:
        actions = np.asarray(last.actions)[acting]
        if last.space.kind == "continuous":
            encoder = weights.continuous_encoder(last.space.size)
            _stage_values(host, used, encoder.data_ptr(), actions, ends[acting] - 2)
        else:
            encoder = weights.choices(last.space.size)
            _stage_finished(host, ends[acting] - 2, _addresses(encoder, actions))
        in_use.append(encoder)

    head, bias = weights.head(space)
    host["head_ptrs"][: agents.size] = head.data_ptr()
    host["head_bias_ptrs"][: agents.size] = 0 if bias is None else bias.data_ptr()
    host["head_sizes"][: agents.size] = space.size
    host["has_noise"][: agents.size] = group.noise is not None
    if group.noise is not None:
        host["log_noise"][: agents.size, : space.size] = group.noise
    return [*in_use, head, bias]


def _stage_observed(
    host: dict[str, np.ndarray], weights: CudaWeights, embeddings: Any, which: np.ndarray, rows: np.ndarray, used: int
) -> int:
    """Write the observations of the agents `which` [K] at `rows` [K]. Returns where the next values go."""
    if isinstance(embeddings, Tensor):
        _stage_finished(host, rows, _addresses(embeddings, which))
        return used
    values = embeddings[which]
    return _stage_values(host, used, weights.continuous_encoder(values.shape[1]).data_ptr(), values, rows)


def _stage_values(host: dict[str, np.ndarray], used: int, encoder: int, values: np.ndarray, rows: np.ndarray) -> int:
    """Write tokens made from `values` [K, X], at `rows` [K]. Returns where the next values go."""
    count, size = values.shape
    host["values"][used : used + values.size] = values.ravel()
    host["source_ptrs"][rows] = encoder
    host["source_sizes"][rows] = size
    host["value_starts"][rows] = used + size * np.arange(count)
    return used + values.size


def _stage_finished(host: dict[str, np.ndarray], rows: np.ndarray, addresses: np.ndarray) -> None:
    """Write tokens whose embeddings are finished rows."""
    host["source_ptrs"][rows] = addresses
    host["source_sizes"][rows] = 0
    host["value_starts"][rows] = 0


def _addresses(matrix: Tensor, index: np.ndarray) -> np.ndarray:
    """Return the addresses of rows of a contiguous matrix."""
    return matrix.data_ptr() + np.asarray(index, np.int64) * _row_bytes(matrix)


def _row_bytes(matrix: Tensor) -> int:
    return matrix.shape[1] * matrix.itemsize
