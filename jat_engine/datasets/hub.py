"""Publish a dataset on the Hugging Face hub."""

from __future__ import annotations

import tempfile
from pathlib import Path

from huggingface_hub import HfApi

from ..errors import DataError
from ..hub_account import hub_reason
from .card import card, collections
from .collection import FILE_NAME, Collection


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
            f"--push_to_hub {repo_id}: {hub_reason(error)}; the episodes are in {folder}, and the same command uploads "
            "them"
        ) from error


def _upload(folder: Path, repo_id: str, stored: list[Collection], api: HfApi) -> str:
    repo = api.create_repo(repo_id=repo_id, repo_type="dataset", exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        upload = Path(temporary)
        for collection in stored:
            name = collection.as_task().folder_name
            source, target = (folder / name).resolve(), upload / name
            target.mkdir()
            for file in (FILE_NAME, *(file for files in collection.files.values() for file in files)):
                (target / file).symlink_to(source / file)

        (upload / "README.md").write_text(card(repo_id, stored), encoding="utf-8")
        api.upload_folder(
            repo_id=repo_id,
            repo_type="dataset",
            folder_path=upload,
            commit_message=f"Upload {len(stored)} tasks",
            delete_patterns=[f"{collection.as_task().folder_name}/*" for collection in stored],
        )
    return str(repo)
