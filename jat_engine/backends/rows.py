"""Token rows of a step's groups, for backends that encode observations before they run the layers.

S: agents of all groups, N: agents of a group, H: hidden size, X: numbers of an observation, n: choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..observation import ActionSpace
from .base import Group, LastStep, Result

Embedding = Any
"""Embedding of one token without its position, float32 [H]; an array or tensor of the backend."""


class Encoder(Protocol):
    """Token encoders of a backend."""

    def embed_continuous(self, values: np.ndarray, reward: float | None) -> Embedding:
        """Encode a continuous observation, float32 [X], with its reward, or a continuous action without one."""
        ...

    def embed_choice(self, choice: int, num_choices: int) -> Embedding:
        """Return the embedding of a discrete action."""
        ...

    def embed_discrete(
        self, values: list[np.ndarray], missions: list[np.ndarray | None], rewards: list[float]
    ) -> list[Embedding]:
        """Encode discrete observations.

        Args:
            values: int64 [max_discrete_value] each, 64 fewer with a mission.
            missions: tokens, int64 [64] each, or None.
            rewards: of the previous actions.
        """
        ...

    def embed_images(self, frames: list[np.ndarray]) -> list[Embedding]:
        """Encode image observations, uint8 [84, 84, 4] each."""
        ...


class Rows(NamedTuple):
    """Token rows of a step, agent by agent.

    Attributes:
        embeddings: of all rows.
        num_new: [S], rows of each agent.
        context_lens: [S], as in `Group`.
        start_offsets: [S], as in `Group`.
        page_tables: [S], as in `Group`.
        spaces: [S], the action space to predict for at each agent's last row.
    """

    embeddings: list[Embedding]
    num_new: list[int]
    context_lens: list[int]
    start_offsets: list[int]
    page_tables: list[np.ndarray]
    spaces: list[ActionSpace]


def encode(encoder: Encoder, groups: Sequence[Group]) -> list[list[Embedding]]:
    """Encode the observations of all groups. Images are encoded in one call, as are discrete observations.

    Args:
        encoder: the backend.
        groups: of the step.

    Returns:
        For each group the embeddings of its N observations.
    """
    encoded: list[list[Embedding]] = [[] for _ in groups]
    images, discrete = [], []
    for index, group in enumerate(groups):
        observations, missions = group.observations, group.missions
        values, rewards = observations.values, observations.rewards
        if observations.modality == "continuous":
            encoded[index] = [encoder.embed_continuous(v, float(r)) for v, r in zip(values, rewards, strict=True)]
        elif observations.modality == "image":
            images += [(index, frame) for frame in values]
        else:
            found: Any = [None] * len(values) if missions is None else missions
            discrete += [(index, *fields) for fields in zip(values, found, rewards, strict=True)]

    if images:
        owners, frames = zip(*images, strict=True)
        for owner, embedding in zip(owners, encoder.embed_images(list(frames)), strict=True):
            encoded[owner].append(embedding)
    if discrete:
        owners, integers, texts, given = zip(*discrete, strict=True)
        rows = encoder.embed_discrete(list(integers), list(texts), [float(reward) for reward in given])
        for owner, embedding in zip(owners, rows, strict=True):
            encoded[owner].append(embedding)
    return encoded


def lay_out(encoder: Encoder, groups: Sequence[Group], encoded: Sequence[Sequence[Embedding]]) -> Rows:
    """Arrange the tokens of a step as rows.

    Args:
        encoder: encodes the actions that are fed again.
        groups: of the step.
        encoded: for each group the embeddings of its observations.
    """
    rows = Rows([], [], [], [], [], [])
    for group, observed in zip(groups, encoded, strict=True):
        last = group.last
        for agent, embedding in enumerate(observed):
            num_again = int(group.num_again[agent])
            if num_again and last is not None:
                if num_again == 2:
                    rows.embeddings.append(last.embeddings[agent])
                rows.embeddings.append(_embed_action(encoder, last, agent))
            rows.embeddings.append(embedding)

            rows.num_new.append(1 + num_again)
            rows.context_lens.append(int(group.context_lens[agent]))
            rows.start_offsets.append(int(group.start_offsets[agent]))
            rows.page_tables.append(group.page_table[agent])
            rows.spaces.append(group.space)
    return rows


def _embed_action(encoder: Encoder, last: LastStep, agent: int) -> Embedding:
    if last.space.kind == "continuous":
        return encoder.embed_continuous(last.actions[agent], None)
    return encoder.embed_choice(int(last.actions[agent]), last.space.size)


def make_results(
    groups: Sequence[Group],
    encoded: Sequence[Sequence[Embedding]],
    predictions: Sequence[np.ndarray],
    finite: Sequence[bool],
) -> list[Result]:
    """Split predictions by group, and choose discrete actions.

    Args:
        groups: of the step.
        encoded: for each group the embeddings of its observations.
        predictions: [S] of float32 [A] or [n], the agents of all groups in order.
        finite: [S], True where all numbers of an agent's prediction are finite.
    """
    results, begin = [], 0
    for group, observed in zip(groups, encoded, strict=True):
        end = begin + len(observed)
        values: Any = predictions[begin:end]
        if len(observed) > 1:
            values = np.stack(values)
        choices = choose(values, group.noise) if group.space.kind == "discrete" else None
        results.append(Result(values, finite[begin:end], choices, observed))
        begin = end
    return results


def choose(logits: Sequence[np.ndarray] | np.ndarray, noise: np.ndarray | None) -> Sequence[int] | np.ndarray:
    """Return argmax(logits - noise): the most likely choices or, with noise from `Sampler`, sampled ones.

    Args:
        logits: float32 [N, n], finite.
        noise: float32 [N, n], or None for 0.

    Returns:
        [N] integers.
    """
    if len(logits) == 1:
        return [int((logits[0] if noise is None else logits[0] - noise[0]).argmax())]
    scores = np.asarray(logits) if noise is None else np.asarray(logits) - noise
    found: np.ndarray = scores.argmax(axis=1)
    return found


def patch_rows(pixel_values: np.ndarray, patch_size: int) -> np.ndarray:
    """Return an image's patches as the inputs of a linear layer, float32 [P, C * patch_size^2], row by row.

    Args:
        pixel_values: float32 [C, S, S].
        patch_size: pixels of a patch's side.
    """
    channels, size, _ = pixel_values.shape
    side = size // patch_size
    patches = pixel_values.reshape(channels, side, patch_size, side, patch_size).transpose(1, 3, 0, 2, 4)
    return np.ascontiguousarray(patches).reshape(side * side, -1)
