"""Location of a checkpoint's files: a folder, a repository on the hub (downloaded and cached), or this package."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .errors import CheckpointError

JAT_MINI = "jat-mini"
"""Name of the small trained checkpoint that comes with the package."""

JAT_MINI_FOLDER = Path(__file__).parent / "checkpoints" / JAT_MINI
"""Folder with weights, configuration, tokenizer, model card and scores; `make train-mini` writes it."""

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
"""Options of `from_pretrained` for finding files."""


def resolve(source: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Return `JAT_MINI_FOLDER` for "jat-mini", and any other `source` unchanged.

    A folder "jat-mini" in the working directory takes precedence over the checkpoint of that name.

    Raises:
        CheckpointError: the weights of jat-mini are not installed.
    """
    if source != JAT_MINI or Path(JAT_MINI).is_dir():
        return source
    if not (JAT_MINI_FOLDER / "model.safetensors").exists():
        raise CheckpointError(f"{JAT_MINI}: its weights are not there; in a checkout `make train-mini` makes them")
    return JAT_MINI_FOLDER


def take_hub_options(options: dict[str, Any]) -> dict[str, Any]:
    """Remove the options for finding files (`HUB_OPTIONS`) from `options` and return them."""
    return {key: options.pop(key) for key in HUB_OPTIONS if key in options}


def find_file(source: str | os.PathLike[str], name: str, hub: dict[str, Any], *, required: bool = False) -> Path | None:
    """Return the path of a checkpoint's file, after downloading it if `source` is a repository on the hub.

    Args:
        source: a folder, or a repository id on the hub.
        name: name of the file.
        hub: options out of `HUB_OPTIONS`; for a folder only `subfolder` matters.
        required: raise an error if there is no such file, instead of returning None.

    Raises:
        CheckpointError: there is no such folder, repository or revision, or a required file is missing.
    """
    folder = Path(source)
    if folder.is_dir():
        path = folder / (hub.get("subfolder") or "") / name
        if path.is_file():
            return path
        reason = "no such file"
    elif folder.exists():
        raise CheckpointError(f"{source}: expected a folder or a repository id, got a file; name the folder it is in")
    else:
        try:
            return Path(hf_hub_download(str(source), name, **hub))
        except HFValidationError:
            raise CheckpointError(
                f"{source}: expected a folder or a repository id (user/name), got neither; check the path"
            ) from None
        except LocalEntryNotFoundError:
            reason = "no such folder, no such file in the hub's cache, and no answer from the hub (offline?)"
        except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError) as error:
            raise CheckpointError(f"{source}: {_EXPECTED[type(error)]}, got: {str(error).splitlines()[-1]}") from error
        except EntryNotFoundError:
            reason = "no such file in the repository"
        except (HfHubHTTPError, OSError) as error:
            raise CheckpointError(f"{source}: expected to download {name}, got {error}") from error

    if required:
        raise CheckpointError(f"{source}: expected {name}, got {reason}")
    return None


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        CheckpointError: the file does not hold a JSON object, or an object in it has a key twice.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected a JSON object, got {error}") from None
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(fields).__name__}")
    return fields


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of a JSON file. Of a key that occurs twice, only one value would count, silently."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)} twice")
    return fields


_EXPECTED = {
    GatedRepoError: "expected a repository that this account may read",
    RepositoryNotFoundError: "expected a folder or a repository on the hub",
    RevisionNotFoundError: "expected a revision of the repository",
}
