"""Divide a step into parts of fewer agents, and join their results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ...observation import Observations
from ..base import Group, LastStep, Result


def split(groups: Sequence[Group], most: int) -> list[list[Group]]:
    """Return steps of at most `most` agents each, which together are the step of `groups`, in the same order."""
    parts: list[list[Group]] = [[]]
    room = most
    for group in groups:
        begin = 0
        while begin < group.num_agents:
            end = min(begin + room, group.num_agents)
            parts[-1].append(group if end - begin == group.num_agents else _slice(group, begin, end))
            room -= end - begin
            begin = end
            if room == 0:
                parts.append([])
                room = most
    return parts if parts[-1] else parts[:-1]


def join(groups: Sequence[Group], results: Sequence[Result]) -> list[Result]:
    """Return a result for each of `groups` from those of all groups of its parts, in order."""
    joined, rest = [], list(results)
    for group in groups:
        own, count = [], 0
        while count < group.num_agents:
            own.append(rest.pop(0))
            count += len(own[-1].finite)
        joined.append(own[0] if len(own) == 1 else _concatenate(own))
    return joined


def _slice(group: Group, begin: int, end: int) -> Group:
    """Return the step of some of a group's agents."""
    place = slice(begin, end)
    last = group.last
    return Group(
        num_agents=end - begin,
        observations=_slice_observations(group.observations, place),
        missions=None if group.missions is None else group.missions[place],
        space=group.space,
        noise=None if group.noise is None else group.noise[place],
        num_again=group.num_again[place],
        context_lens=group.context_lens[place],
        start_offsets=group.start_offsets[place],
        page_table=group.page_table[place],
        last=None if last is None else _slice_last(last, place),
    )


def _slice_last(last: LastStep, place: slice) -> LastStep:
    observations = _slice_observations(last.observations, place)
    embeddings = None if last.embeddings is None else last.embeddings[place]
    return LastStep(observations, embeddings, last.space, last.actions[place])


def _slice_observations(observations: Observations, place: slice) -> Observations:
    texts = None if observations.texts is None else observations.texts[place]
    return replace(observations, values=observations.values[place], texts=texts, rewards=observations.rewards[place])


def _concatenate(results: Sequence[Result]) -> Result:
    choices: Any = None
    if results[0].choices is not None:
        choices = np.concatenate([np.asarray(result.choices) for result in results])
    embeddings = None if results[0].embeddings is None else torch.cat([result.embeddings for result in results])
    values = np.concatenate([np.asarray(result.values) for result in results])
    return Result(values, np.concatenate([np.asarray(result.finite) for result in results]), choices, embeddings)
