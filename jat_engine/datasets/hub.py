"""Publish a dataset on the Hugging Face hub."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from ..errors import DataError
from .card import card, collections
from .collection import FILE_NAME, Collection

_REACH_SECONDS = 5.0
"""Longest wait for the hub's first answer."""


def check_access(repo_id: str, *, api: HfApi | None = None) -> None:
    """Check that this user can upload to the hub, before hours are spent on what is to be uploaded.

    Args:
        repo_id: name of the repository, "owner/name".
        api: as in `push_to_hub`.

    Raises:
        ValueError: the name is malformed, or this user is not logged in.
        OSError: the hub cannot be reached.
    """
    api = api or HfApi()
    if repo_id.count("/") != 1 or not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise ValueError(f"--repo_id: expected owner/name, got {repo_id!r}")
    if api.token is None and get_token() is None:
        raise ValueError("--push_to_hub: expected a user, got none; run `hf auth login` or set HF_TOKEN")
    try:
        api.repo_info(repo_id, repo_type="dataset", timeout=_REACH_SECONDS)
    except RepositoryNotFoundError:  # it will be created
        pass
    except Exception as error:  # of the HTTP client, whose name changes between releases of huggingface_hub
        raise OSError(
            f"--push_to_hub: expected to reach {repo_id} on the hub: {_words(error)}; leave the flag out"
        ) from error
    try:
        api.whoami()
    except HfHubHTTPError as error:
        raise ValueError(f"--push_to_hub: expected a valid token: {_words(error)}; run `hf auth login`") from error


def _words(error: Exception) -> str:
    return " ".join(str(error).split()).partition(" For more information")[0]


def push_to_hub(folder: Path, repo_id: str, *, api: HfApi | None = None) -> str:
    """Upload all finished tasks of `folder` and their data card in one commit.

    The repository's files of these tasks are replaced, and shards that no longer exist are deleted. Its other folders
    stay, but the card lists only the uploaded tasks.

    Args:
        folder: of the dataset.
        repo_id: name of the repository, "owner/name"; created if it does not exist.
        api: client with the token to use; None takes that of `hf auth login` or `HF_TOKEN`.

    Returns:
        The repository's address.

    Raises:
        DataError: `folder` has no finished task.
        OSError: the upload failed.
    """
    stored = collections(folder)
    if not stored:
        raise DataError(f"{folder}: expected tasks that `jat-engine collect` finished, got none")

    api = api or HfApi()
    try:
        return _upload(folder, repo_id, stored, api)
    except Exception as error:  # of the HTTP client, whose name changes between releases of huggingface_hub
        raise OSError(
            f"--push_to_hub {repo_id}: {_words(error)}; the episodes are in {folder}, and the same command uploads them"
        ) from error


def _upload(folder: Path, repo_id: str, stored: list[Collection], api: HfApi) -> str:
    repo = api.create_repo(repo_id=repo_id, repo_type="dataset", exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        upload = Path(name)
        for collection in stored:
            source, target = (folder / collection.task).resolve(), upload / collection.task
            target.mkdir()
            for file in (FILE_NAME, *(file for files in collection.files.values() for file in files)):
                (target / file).symlink_to(source / file)

        (upload / "README.md").write_text(card(repo_id, stored), encoding="utf-8")
        api.upload_folder(
            repo_id=repo_id,
            repo_type="dataset",
            folder_path=upload,
            commit_message=f"Upload {len(stored)} tasks",
            delete_patterns=[f"{collection.task}/*" for collection in stored],
        )
    return str(repo)
