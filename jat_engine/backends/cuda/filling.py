"""Writing a step's plan into its inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base import BatchPlan, Plan
from .step_inputs import ROWS, StepInputs
from .tokens import Token
from .weights import CudaWeights

PAGE_SIZE = 16


def fill(inputs: StepInputs, weights: CudaWeights, plan: Plan) -> Any:
    """Write a plan into a step's inputs. Returns what must stay alive until the step is done."""
    if inputs.host["context_lens"].size == 1:
        return _fill_one(inputs, weights, plan)
    host = inputs.host
    count, tokens = len(plan.num_new), plan.embeddings
    rows = len(tokens)
    starts, positions, slots = [0], [], []
    for num_new, context, offset, table in zip(
        plan.num_new, plan.context_lens, plan.start_offsets, plan.page_tables, strict=True
    ):
        starts.append(starts[-1] + num_new)
        for position in range(context, context + num_new):
            page, slot = divmod(position + offset, PAGE_SIZE)
            positions.append(position)
            slots.append(int(table[page]) * PAGE_SIZE + slot)
    host["query_start"][: count + 1] = starts
    host["query_start"][count + 1 :] = rows
    host["context_lens"][:count] = plan.context_lens
    host["start_offsets"][:count] = plan.start_offsets
    for row, table in zip(host["page_table"], plan.page_tables, strict=False):
        row[: table.size] = table
    host["positions"][:rows] = positions
    host["slot_mapping"][:rows] = slots
    host["slot_mapping"][rows:] = -1
    host["source_ptrs"][:rows] = [token.address for token in tokens]
    host["source_ptrs"][rows:] = 0
    sizes = [token.values.size for token in tokens]
    host["source_sizes"][:rows] = sizes
    ends = np.cumsum(sizes)
    host["value_starts"][:rows] = ends - sizes
    if ends[-1]:
        np.concatenate([token.values for token in tokens], out=host["values"][: ends[-1]])
    heads = [weights.head(space) for space in plan.spaces]
    host["head_ptrs"][:count] = [rows.data_ptr() for rows, _ in heads]
    host["head_bias_ptrs"][:count] = [0 if bias is None else bias.data_ptr() for _, bias in heads]
    host["head_sizes"][:count] = [space.size for space in plan.spaces]
    host["has_noise"][:count] = [noise is not None for noise in plan.noise]
    for row, noise in zip(host["log_noise"], plan.noise, strict=False):
        if noise is not None:
            row[: noise.size] = noise
    _fill_observations(host, tokens)
    return heads


def _fill_one(inputs: StepInputs, weights: CudaWeights, plan: Plan) -> Any:
    """`fill` for one session: the same in a quarter of the time."""
    host, tokens, table = inputs.host, plan.embeddings, plan.page_tables[0]
    context, offset, space, noise = plan.context_lens[0], plan.start_offsets[0], plan.spaces[0], plan.noise[0]
    rows = len(tokens)
    padding = [0] * (ROWS - rows)
    sizes = [token.values.size for token in tokens]
    positions, slots, starts, used = [], [], [], 0
    for position, size in enumerate(sizes, context):
        page, slot = divmod(position + offset, PAGE_SIZE)
        positions.append(position)
        slots.append(int(table[page]) * PAGE_SIZE + slot)
        starts.append(used)
        used += size
    rows_and_more = [0, rows, context, offset, space.size, noise is not None, *positions, *padding]
    inputs.write_one_session([*rows_and_more, *slots, *([-1] * len(padding)), *sizes, *padding, *starts, *padding])
    host["page_table"][0, : table.size] = table
    host["source_ptrs"][:] = [token.address for token in tokens] + padding
    head, bias = weights.head(space)
    host["head_ptrs"][0] = head.data_ptr()
    host["head_bias_ptrs"][0] = 0 if bias is None else bias.data_ptr()
    if used:
        np.concatenate([token.values for token in tokens], out=host["values"][:used])
    if noise is not None:
        host["log_noise"][0, : noise.size] = noise
    _fill_observations(host, tokens)
    return head, bias


def _fill_observations(host: dict[str, np.ndarray], tokens: list[Token]) -> None:
    """What is to be encoded first: at most one observation a session, its newest."""
    if "frames" in host:
        images = [token for token in tokens if token.frame is not None]
        for frame, token in zip(host["frames"], images, strict=False):
            frame[...] = token.frame
        host["frame_targets"].fill(0)
        host["frame_targets"][: len(images)] = [token.address for token in images]
    if "tokens" in host:
        discrete = [token for token in tokens if token.integers is not None]
        for integers, token in zip(host["tokens"], discrete, strict=False):
            integers[...] = token.integers
        host["rewards"][: len(discrete)] = [token.reward for token in discrete]
        host["token_targets"].fill(0)
        host["token_targets"][: len(discrete)] = [token.address for token in discrete]


# ---- a batch of one kind -------------------------------------------------------------------------------------------


def values_per_agent(plan: BatchPlan) -> int:
    """Floats of an agent's continuous tokens: two observations with their rewards, and an action."""
    observation = 0 if plan.modality != "continuous" else plan.values.shape[1] + 1
    return 2 * observation + (plan.last_space.size if plan.last_space.kind == "continuous" else 0)


def fill_batch(inputs: StepInputs, weights: CudaWeights, plan: BatchPlan) -> tuple[Any, Any]:
    """As `fill`. Returns the observations' embeddings, too: float32 [N, X + 1], or [N, H] on the device."""
    host = inputs.host
    agents = np.arange(len(plan.context_lens))
    counts = 1 + plan.feeds_action + plan.feeds_observation
    ends = np.cumsum(counts)
    starts, rows = ends - counts, int(ends[-1])
    host["query_start"][0] = 0
    host["query_start"][1 : agents.size + 1] = ends
    host["query_start"][agents.size + 1 :] = rows
    host["context_lens"][: agents.size] = plan.context_lens
    host["start_offsets"][: agents.size] = plan.start_offsets
    host["page_table"][: agents.size, : plan.page_table.shape[1]] = plan.page_table
    owner = np.repeat(agents, counts)
    positions = np.arange(rows) + (plan.context_lens - starts)[owner]
    page, slot = np.divmod(positions + plan.start_offsets[owner], PAGE_SIZE)
    host["positions"][:rows] = positions
    host["slot_mapping"][:rows] = plan.page_table[owner, page] * PAGE_SIZE + slot
    host["slot_mapping"][rows:] = -1
    host["source_ptrs"][rows:] = 0

    newest, acting, again = ends - 1, plan.feeds_action, plan.feeds_observation
    in_use: list[Any] = []
    used = 0
    if plan.modality == "continuous":
        embeddings: Any = np.concatenate((plan.values, plan.rewards[:, None]), axis=1)
        encoder = weights.continuous_encoder(embeddings.shape[1])
        in_use.append(encoder)
        used = _fill_values(host, used, encoder.data_ptr(), embeddings, newest)
        if again.any():
            used = _fill_values(host, used, encoder.data_ptr(), plan.last_embeddings[again], starts[again])
    else:
        embeddings = torch.empty(agents.size, weights.config.hidden_size, device=weights.device)
        in_use.append(plan.last_embeddings)
        targets = _addresses(embeddings, agents)
        _fill_rows(host, newest, targets)
        if again.any():
            _fill_rows(host, starts[again], _addresses(plan.last_embeddings, agents[again]))
        _fill_raw(host, plan, targets)
    if acting.any():
        rows_of_actions = ends[acting] - 2
        if plan.last_space.kind == "continuous":
            encoder = weights.continuous_encoder(plan.last_space.size)
            in_use.append(encoder)
            _fill_values(host, used, encoder.data_ptr(), plan.last_actions[acting], rows_of_actions)
        else:
            choices = weights.choices(plan.last_space.size)
            in_use.append(choices)
            _fill_rows(host, rows_of_actions, _addresses(choices, plan.last_actions[acting]))

    head, bias = weights.head(plan.space)
    host["head_ptrs"][: agents.size] = head.data_ptr()
    host["head_bias_ptrs"][: agents.size] = 0 if bias is None else bias.data_ptr()
    host["head_sizes"][: agents.size] = plan.space.size
    host["has_noise"][: agents.size] = plan.noise is not None
    if plan.noise is not None:
        host["log_noise"][: agents.size, : plan.space.size] = plan.noise
    return embeddings, [in_use, head, bias]


def _fill_values(host: dict[str, np.ndarray], used: int, encoder: int, values: np.ndarray, rows: np.ndarray) -> int:
    """Tokens made from `values` [K, X], at `rows` [K]. Returns where the next values go."""
    count, size = values.shape
    host["values"][used : used + values.size] = values.ravel()
    host["source_ptrs"][rows] = encoder
    host["source_sizes"][rows] = size
    host["value_starts"][rows] = used + size * np.arange(count)
    return used + values.size


def _fill_rows(host: dict[str, np.ndarray], rows: np.ndarray, addresses: np.ndarray) -> None:
    """Tokens whose embeddings are finished rows."""
    host["source_ptrs"][rows] = addresses
    host["source_sizes"][rows] = 0
    host["value_starts"][rows] = 0


def _addresses(matrix: Tensor, index: np.ndarray) -> np.ndarray:
    """Of rows of a contiguous matrix."""
    return matrix.data_ptr() + index.astype(np.int64) * (matrix.shape[1] * matrix.itemsize)


def _fill_raw(host: dict[str, np.ndarray], plan: BatchPlan, targets: np.ndarray) -> None:
    """Images or integers, to be encoded into `targets` [N]."""
    count = len(targets)
    kind = "frames" if plan.modality == "image" else "tokens"
    host[f"{kind[:-1]}_targets"].fill(0)
    host[f"{kind[:-1]}_targets"][:count] = targets
    if kind == "frames":
        host["frames"][:count] = plan.values
        return
    size = plan.values.shape[1]
    host["tokens"][:count, :size] = plan.values
    if plan.missions is not None:
        host["tokens"][:count, size:] = plan.missions
    host["rewards"][:count] = plan.rewards
