"""Define the source of an import: demonstrations as they are stored elsewhere, one episode at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class RawEpisode:
    """One episode as it is stored elsewhere, L steps.

    Attributes:
        where: file and number of the episode, for error messages.
        observations: what the agent saw before each action: an array [L, ...], or, for a source with spaces, dicts and
            tuples of such arrays.
        actions: an array [L, ...].
        rewards: [L]; None if the source has none.
        texts: L strings; None if the source has none.
        seed: of the environment's reset; None if it is not known.
        key: number or name that the source gives the episode; None if it gives none.
    """

    where: str
    observations: Any
    actions: Any
    rewards: Any = None
    texts: Sequence[Any] | None = None
    seed: int | None = None
    key: Any = None


@dataclass(frozen=True)
class Source:
    """Demonstrations that can be imported.

    Attributes:
        format: "minari", "lerobot", "npz" or "parquet".
        name: file, folder or id, as it was given.
        describe: names the demonstrations in a data card.
        read: returns an iterator over all episodes, which holds one of them in memory.
        columns: use of a column ("observation", ...) -> the columns that are read; empty for Minari.
        dropped: what the source has and is not imported, each in a few words.
        notes: what else to tell the user. Complete once all episodes are read.
        env_id: gymnasium id of the environment; None if it is not known.
        spaces: its spaces of observations and of actions; None if they are not known.
        versions: packages that read it -> their versions.
    """

    format: str
    name: str
    describe: str
    read: Callable[[], Iterator[RawEpisode]]
    columns: dict[str, list[str]]
    dropped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    env_id: str | None = None
    spaces: tuple[Any, Any] | None = None
    versions: dict[str, str] = field(default_factory=dict)
