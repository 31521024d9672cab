"""Choose which columns of a table are observations, actions, rewards and ends of episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...errors import DataError
from ...keywords import did_you_mean

USES: dict[str, tuple[str, ...]] = {
    "observation": ("observations", "observation", "obs", "states", "state"),
    "action": ("actions", "action", "act"),
    "reward": ("rewards", "reward", "rew"),
    "episode": ("episode", "episode_id", "episode_index", "ep_id"),
    "done": ("terminals", "terminations", "terminated", "dones", "done"),
    "timeout": ("timeouts", "truncations", "truncated"),
    "text": (),
}
"""Use of a column -> names that are recognised without --columns, the first that is there."""

_SEVERAL = ("observation", "action")


@dataclass(frozen=True)
class ColumnMap:
    """Columns of a table by their use.

    Attributes:
        observation, action: columns that are joined, in this order; at least one.
        reward: None if there is none.
        episode: number or name of each step's episode; None if `ends` tell.
        ends: columns that are true in an episode's last step; empty if `episode` tells, or if a file is an episode.
        text: a string for each step; None if there is none.
    """

    observation: tuple[str, ...]
    action: tuple[str, ...]
    reward: str | None
    episode: str | None
    ends: tuple[str, ...]
    text: str | None

    @property
    def used(self) -> list[str]:
        """All columns, each once."""
        single = [name for name in (self.reward, self.episode, self.text) if name is not None]
        return list(dict.fromkeys([*self.observation, *self.action, *single, *self.ends]))

    @property
    def by_use(self) -> dict[str, list[str]]:
        """Use -> its columns, for people; unused uses are left out."""
        named = {
            "observation": list(self.observation),
            "action": list(self.action),
            "reward": [self.reward] if self.reward else [],
            "episode": [self.episode] if self.episode else [],
            "end": list(self.ends),
            "text": [self.text] if self.text else [],
        }
        return {use: names for use, names in named.items() if names}


def parse_columns(given: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Parse `use=column` arguments, such as "observation=x,y" and "reward=rew".

    Args:
        given: the values of --columns.

    Returns:
        Use -> its columns.

    Raises:
        ValueError: an argument is not of that form, or names an unknown use, or a use twice.
    """
    parsed: dict[str, tuple[str, ...]] = {}
    for text in given:
        use, equals, value = text.partition("=")
        names = tuple(name.strip() for name in value.split(","))
        if not equals or not all(names):
            raise ValueError(f"--columns: expected use=column or use=column,column, such as reward=rew, got {text!r}")
        if use not in USES:
            hint = did_you_mean(use, USES, f"uses are {', '.join(USES)}")
            raise ValueError(f"--columns {text}: no column has the use {use!r}; {hint}")
        if use in parsed:
            raise ValueError(f"--columns: expected {use}= once, got it twice; join columns with a comma")
        if len(names) > 1 and use not in _SEVERAL:
            raise ValueError(
                f"--columns {text}: expected one column, got {len(names)}; only those of observation and "
                "action are joined"
            )
        parsed[use] = names
    return parsed


def choose_columns(
    given: Mapping[str, tuple[str, ...]],
    names: Sequence[str],
    *,
    source: str,
    file_per_episode: bool = False,
    known: Mapping[str, tuple[str, ...]] = USES,
) -> ColumnMap:
    """Choose the columns of a table: those that are given, and for other uses those with a recognised name.

    Args:
        given: the return value of `parse_columns`.
        names: all columns of the table.
        source: the file, for error messages.
        file_per_episode: a file can be an episode, so that no column has to tell where episodes end.
        known: use -> recognised names.

    Raises:
        DataError: a column is not there, or nothing tells observations, actions or ends of episodes.
    """
    chosen: dict[str, tuple[str, ...]] = {}
    for use, wanted in given.items():
        for name in wanted:
            if name not in names:
                hint = did_you_mean(name, names, f"its columns are {', '.join(names) or 'none'}")
                raise DataError(f"--columns {use}={','.join(wanted)}: {source} has no column {name!r}; {hint}")
        chosen[use] = wanted
    for use, candidates in known.items():
        found = [name for name in candidates if name in names]
        if use not in chosen and found:
            chosen[use] = (found[0],)

    for use in _SEVERAL:
        if use not in chosen:
            raise DataError(
                f"{source}: expected a column of {use}s, such as {known[use][0]!r}, got {', '.join(names) or 'none'}; "
                f"name it with --columns {use}=NAME"
            )
    if "episode" in given or "done" not in given:  # the number of the episode tells more than its last step
        ends: tuple[str, ...] = () if "episode" in chosen else chosen.get("done", ()) + chosen.get("timeout", ())
        episode = chosen.get("episode")
    else:
        ends, episode = chosen["done"] + chosen.get("timeout", ()), None
    if not ends and episode is None and not file_per_episode:
        raise DataError(
            f"{source}: expected a column that tells episodes apart, got {', '.join(names)}; name it with --columns "
            "episode=NAME, or done=NAME for one that is true in the last steps (timeout=NAME for those cut off), or "
            "give a folder with one file per episode"
        )
    reward, text = chosen.get("reward"), chosen.get("text")
    return ColumnMap(
        observation=chosen["observation"],
        action=chosen["action"],
        reward=reward[0] if reward else None,
        episode=episode[0] if episode else None,
        ends=ends,
        text=text[0] if text else None,
    )
