"""Load a split of a dataset that `datasets` knows: on the hub, or in a folder whose card says where its files are."""

from __future__ import annotations

import contextlib
import difflib
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError, one_line
from ..hub_account import hub_reason

_REACH_SECONDS = 5.0
"""Longest wait for the hub's first answer; `datasets` itself would ask six times."""

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def load_split(name: str, config: str, split: str, *, cache_dir: str | None = None, streaming: bool = False) -> Any:
    """Load one split of a dataset.

    Args:
        name: a folder, or the name of a dataset on the hub, as "owner/name".
        config: its configuration, that is the task.
        split: "train" or "test".
        cache_dir: folder for downloads; None takes that of `datasets`.
        streaming: read hub data when it is needed, without keeping it on disk.

    Returns:
        A dataset of `datasets`; None if the configuration does not have this split.

    Raises:
        DataError: there is no such folder or dataset, no way to the hub, or no such configuration, of which those that
            there are are listed.
    """
    import datasets

    local = Path(name).is_dir()
    if not local and not _HUB_NAME.fullmatch(name):
        raise DataError(f"--dataset: expected a folder or the name of a dataset on the hub, got {_nearby(name)}")
    unreachable = None if local else _reach(name)

    try:
        with _offline(local or unreachable is not None):
            # A folder is cached under a hash of its card alone: the cache would return what was there before.
            mode = "force_redownload" if local and not streaming else None
            return datasets.load_dataset(
                name, config, split=split, cache_dir=cache_dir, streaming=streaming, download_mode=mode
            )
    except Exception as error:  # of `datasets`, which raises many kinds
        # Asked for this way, since a list of the splits cannot be had without the hub.
        if re.match(r"(Unknown|Bad) split", str(error)):
            return None
        words = one_line(error.__cause__ or error)
        if found := re.search(r"BuilderConfig '.*' not found\. Available: \[(.*)\]", words):
            raise DataError(_no_config(name, config, re.findall(r"'([^']*)'", found[1]))) from None
        if unreachable is not None:
            _reach.cache_clear()
            cached = re.search(r"Available configs in the cache: \[(.*)\]", words)
            in_cache = (
                f"the cache of `datasets` has of it only {cached[1]}"
                if cached
                else "it is not in the cache of `datasets`"
            )
            raise DataError(
                f"--dataset {name}: {config}: there is no such folder, the hub cannot be reached ({unreachable}), and "
                f"{in_cache}; name a folder that `jat-engine collect` wrote{_or_near(name)}, or run it with a network"
            ) from None
        raise DataError(f"--dataset {name}: {config}: {words}") from error


def local_files(folder: Path, config: str, split: str) -> list[Path]:
    """Return the files of a split of a folder whose card says where they are.

    Args:
        folder: has a README.md.
        config: the configuration, that is the task.
        split: "train" or "test".

    Returns:
        The files in order; an empty list if the configuration does not have this split.

    Raises:
        DataError: there is no such configuration, or the card cannot be read.
    """
    import datasets

    try:
        with _offline(True):
            files = datasets.load_dataset_builder(str(folder), config).config.data_files or {}
    except Exception as error:  # of `datasets`, which raises many kinds
        words = one_line(error.__cause__ or error)
        if found := re.search(r"BuilderConfig '.*' not found\. Available: \[(.*)\]", words):
            raise DataError(_no_config(str(folder), config, re.findall(r"'([^']*)'", found[1]))) from None
        words = words.partition(" with any supported extension")[0]
        raise DataError(
            f"--dataset {folder}: {config}: README.md: expected a card that names files: {words}"
        ) from error
    return [Path(file) for file in files.get(split, ())]


def _no_config(name: str, config: str, available: list[str]) -> str:
    near = difflib.get_close_matches(config, available, n=3)
    listed = ", ".join(near or available[:10])
    more = f" and {len(available) - 10} more" if not near and len(available) > 10 else ""
    what = "did you mean" if near else "it has"
    return f"--dataset {name}: expected a task that it has, got {config}; {what} {listed}{more}"


@functools.lru_cache
def _reach(name: str) -> str | None:
    """Ask the hub for a dataset, once per process.

    Returns:
        None if the dataset is there; else what keeps this process from asking, in words.

    Raises:
        DataError: the hub does not have the dataset, or does not give it to this user.
    """
    import datasets
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    if datasets.config.HF_HUB_OFFLINE or constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        HfApi().dataset_info(name, timeout=_REACH_SECONDS)
    except GatedRepoError:
        raise DataError(
            f"--dataset {name}: expected a dataset that you may read; accept its terms at "
            f"{constants.ENDPOINT}/datasets/{name} and run `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise DataError(
            f"--dataset {name}: expected a folder or a dataset on the hub, got neither{_or_near(name)}; if it is "
            "private, run `hf auth login`"
        ) from None
    except HfHubHTTPError as error:
        return f"{constants.ENDPOINT}: {hub_reason(error)}"
    except Exception as error:  # of the HTTP client, whose name changes between releases of huggingface_hub
        return f"{constants.ENDPOINT}: {error}"
    return None


@contextlib.contextmanager
def _offline(yes: bool) -> Iterator[None]:
    """Let `datasets` use its cache without asking the hub, which takes half a minute without a network."""
    import datasets
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    if yes:
        datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


def _nearby(name: str) -> str:
    """Return `name` with what there is instead of a folder of that name, in words."""
    path = Path(name)
    if path.is_file():
        return f"{name!r}, a file; name the folder that has the folders of the tasks{_parent_of_task(path)}"
    if path.is_symlink():
        return f"{name!r}, a link to {path.readlink()}, which is not there"
    if "://" in name:
        return f"{name!r}, an address; name a dataset on the hub as owner/name"
    return f"{name!r}{_or_near(name)}"


def _parent_of_task(file: Path) -> str:
    return f", such as {file.parent.parent}" if file.suffix == ".parquet" else ""


def _or_near(name: str) -> str:
    """Return the folders next to a mistyped one, as the end of a sentence."""
    path = Path(name).absolute()
    parent = path.parent
    if not parent.is_dir():
        if _HUB_NAME.fullmatch(name):
            return ""
        while not parent.is_dir():
            parent = parent.parent
        return f" (the last folder of that path that exists is {parent})"
    try:
        folders = sorted(entry.name for entry in parent.iterdir() if entry.is_dir() and entry.name[0] != ".")
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, folders, n=3)
    return f" (folders there: {', '.join(near)})" if near else ""
