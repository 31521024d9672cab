"""Describe what all steps of one kind have in common: sizes of an agent's token rows, addresses of their encoders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor

from ...observation import ActionSpace
from ..base import STEP_TOKENS


@dataclass(frozen=True, slots=True)
class AgentLayout:
    """Token rows of an agent, in order, and its head.

    Attributes:
        sizes: numbers of values of each row, 0 for finished embeddings.
        num_values: of all rows.
        addresses: of each row's encoder; of the embeddings of all choices for an action that was one; 0 for the
            finished embedding of an observation.
        head, head_bias: addresses; 0 for no bias.
        head_size: numbers of a prediction.
        one_agent: what `StepInputs.write_one_agent` takes of this.
        in_use: what lies at the addresses.
    """

    sizes: tuple[int, ...]
    num_values: int
    addresses: tuple[int, ...]
    head: int
    head_bias: int
    head_size: int
    one_agent: tuple[int, ...]
    in_use: list[Tensor]


def make_layout(
    continuous_encoder: Callable[[int], Tensor],
    choices: Callable[[int], Tensor],
    head: Callable[[ActionSpace], tuple[Tensor, Tensor | None]],
    num_again: int,
    observation_size: int,
    action_space: ActionSpace | None,
    space: ActionSpace,
) -> AgentLayout:
    """Build the layout of a kind of steps.

    Args:
        continuous_encoder: see `CudaWeights`.
        choices: see `CudaWeights`.
        head: see `CudaWeights`.
        num_again: tokens before the newest observation: 2, 1 or 0, see `Group`.
        observation_size: numbers of an observation with its reward; 0 if its embedding is finished.
        action_space: of the action that is fed again; None if there is none.
        space: to predict for.
    """
    observation = (observation_size, continuous_encoder(observation_size) if observation_size else None)
    rows: list[tuple[int, Tensor | None]] = [observation]
    if num_again and action_space is not None:
        size = action_space.size
        is_continuous = action_space.kind == "continuous"
        rows.insert(0, (size, continuous_encoder(size)) if is_continuous else (0, choices(size)))
    if num_again == 2:
        rows.insert(0, observation)

    weight, bias = head(space)
    head_ptrs = weight.data_ptr(), 0 if bias is None else bias.data_ptr()
    sizes = tuple(size for size, _ in rows)
    *starts, num_values = accumulate(sizes, initial=0)
    padding = (0,) * (STEP_TOKENS - len(rows))
    return AgentLayout(
        sizes=sizes,
        num_values=num_values,
        addresses=tuple(0 if source is None else source.data_ptr() for _, source in rows),
        head=head_ptrs[0],
        head_bias=head_ptrs[1],
        head_size=space.size,
        one_agent=(*head_ptrs, space.size, 0, len(rows), *sizes, *padding, *starts, *padding),
        in_use=[tensor for tensor in (*(source for _, source in rows), weight, bias) if tensor is not None],
    )
