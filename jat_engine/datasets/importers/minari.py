"""Read datasets of Minari, local ones and those of its hub, by its own code."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import DataError, one_line
from .source import RawEpisode, Source

if TYPE_CHECKING:
    from minari import MinariDataset


def open_minari(name: str) -> Source:
    """Open a dataset of Minari. One that is not on this machine is downloaded by `minari.load_dataset`.

    Args:
        name: id of the dataset, as "mujoco/ant/expert-v0", or its folder.

    Raises:
        ImportError: Minari is not installed.
        DataError: there is no such dataset, or Minari cannot read it.
    """
    dataset = _load(name)
    metadata = dataset.storage.metadata
    spec = dataset.env_spec
    notes: list[str] = []
    if spec is not None and (options := _options(spec)):
        notes.append(f"the episodes were played in {spec.id} with {options}, without which it is made here")
    if dataset.storage.jpeg_encoding and _has_frames(dataset.observation_space):
        notes.append("Minari has stored the frames as JPEG files, which changes them slightly")

    described = f"the Minari dataset `{dataset.id}`"
    if metadata.get("algorithm_name"):
        described += f", played by {metadata['algorithm_name']}"
    return Source(
        "minari",
        name,
        described,
        lambda: _episodes(dataset, name),
        {},
        ["the observation after the last action", "infos"],
        notes,
        env_id=None if spec is None else spec.id,
        spaces=(dataset.observation_space, dataset.action_space),
        versions={"minari": _version()},
    )


def _options(spec: Any) -> str:
    """Return the arguments of a dataset's environment that are not the usual ones of its id, in words."""
    import gymnasium

    registered = gymnasium.registry.get(spec.id)
    usual = {} if registered is None else registered.kwargs
    return ", ".join(f"{key}={value!r}" for key, value in spec.kwargs.items() if usual.get(key, ...) != value)


def _version() -> str:
    from importlib import metadata

    return metadata.version("minari")


def _load(name: str) -> MinariDataset:
    """Load a dataset.

    Raises:
        ImportError: Minari is not installed.
        DataError: Minari cannot load it.
    """
    try:
        import minari
    except ImportError as error:
        raise ImportError(
            f"importing from Minari needs minari, which cannot be imported here ({error}); "
            "pip install 'jat-engine[minari]'"
        ) from None

    folder = Path(name)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # it tells of its downloads there, and ours is for results
            if folder.is_dir():
                return minari.MinariDataset(folder / "data" if (folder / "data").is_dir() else folder)
            return minari.load_dataset(name, download=True)
    except Exception as error:  # of Minari, of its storages, or of its hub's HTTP client
        words = one_line(error)
        raise DataError(f"{name}: expected a dataset that Minari loads, got {type(error).__name__}: {words}") from error


def _episodes(dataset: MinariDataset, name: str) -> Iterator[RawEpisode]:
    described = dataset.storage.get_episode_metadata(dataset.episode_indices)
    with contextlib.closing(_read(dataset, name)) as episodes:
        for episode, metadata in zip(episodes, described, strict=True):
            where = f"{name}: episode {episode.id}"
            steps = len(episode.rewards)
            seed = metadata.get("seed")
            yield RawEpisode(
                where,
                cut(episode.observations, steps, where, "observations"),
                episode.actions,
                episode.rewards,
                seed=None if seed is None else int(seed),
                key=int(episode.id),
            )


def _read(dataset: MinariDataset, name: str) -> Generator[Any, None, None]:
    try:
        yield from dataset.iterate_episodes()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        words = one_line(error)
        raise DataError(
            f"{name}: expected episodes that Minari reads, got {type(error).__name__}: {words}; download it again"
        ) from error


def cut(values: Any, steps: int, where: str, name: str) -> Any:
    """Return the first `steps` entries of observations, which Minari stores with the one after the last action.

    Args:
        values: an array, a list of strings, or dicts and tuples of those.
        steps: number of actions.
        where: the episode, for error messages.
        name: of the values, for error messages.

    Raises:
        DataError: there are not `steps` + 1 entries.
    """
    if isinstance(values, dict):
        return {key: cut(value, steps, where, f"{name}[{key!r}]") for key, value in values.items()}
    if isinstance(values, tuple):
        return tuple(cut(value, steps, where, f"{name}[{index}]") for index, value in enumerate(values))
    if len(values) != steps + 1:
        raise DataError(f"{where}: {name}: expected {steps + 1} for {steps} actions, got {len(values)}")
    return values[:steps]


def _has_frames(space: Any) -> bool:
    """Return whether a space has, somewhere, uint8 images that Minari stores as JPEG files."""
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        return any(map(_has_frames, space.spaces.values()))
    if isinstance(space, spaces.Tuple):
        return any(map(_has_frames, space.spaces))
    return isinstance(space, spaces.Box) and space.dtype == "uint8" and len(space.shape) == 3
