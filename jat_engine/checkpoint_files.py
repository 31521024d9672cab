"""Location of a checkpoint's files: a folder, a repository on the hub (downloaded and cached), or this package."""

from __future__ import annotations

import difflib
import json
import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, is_offline_mode
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

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "tokenizer_config.json", "tokenizer.json")
"""Files that a folder with a processor alone has."""

_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_URL = re.compile(r"(?:https?://|hf://)?(?:(?:www\.)?(?:huggingface\.co|hf\.co)/)?([\w.-]+/[\w.-]+?)(?:\.git)?(?:/.*)?")
_REPOSITORY_AND_MORE = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:/|[@:].*)")

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""Beginning of the placeholder that git leaves for a large file."""

_UNREACHABLE = "unreachable"
"""Key of the options for finding files with the reason why the hub does not answer; "" if it does."""

_CONNECTION_SECONDS = 5
"""Seconds to wait for an answer of the hub, unless HF_HUB_ETAG_TIMEOUT gives others."""


def resolve(
    source: str | os.PathLike[str], subfolder: str | None = None, markers: tuple[str, ...] = ("config.json",)
) -> str | Path:
    """Return the folder of a checkpoint, or the name of a repository on the hub.

    A folder takes precedence over "jat-mini" and over a repository of the same name if it holds one of `markers`.

    Args:
        source: a folder, a repository id on the hub, or "jat-mini".
        subfolder: of the folder; the checkpoint is in it.
        markers: files by which a folder counts as a checkpoint.

    Raises:
        CheckpointError: `source` is not a name, or the weights of jat-mini are not installed.
    """
    if not isinstance(source, str | os.PathLike) or not isinstance(os.fspath(source), str) or not os.fspath(source):
        raise CheckpointError(f"checkpoint: expected a folder, a name on the hub or {JAT_MINI!r}, got {source!r:.80}")
    if not isinstance(subfolder, str | os.PathLike | None):
        raise CheckpointError(f"subfolder: expected the name of a folder, got {subfolder!r:.80}")
    name = os.fspath(source)
    folder = local_path(name)
    try:
        folder.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # too long, a NUL character, a folder that may not be entered
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"{name:.200}: expected a folder, a repository id (user/name) or {JAT_MINI}, got a path that cannot be "
            f"read ({reason}); check the path"
        ) from None
    if any(os.path.lexists(folder / (subfolder or "") / marker) for marker in markers):
        return folder
    if name != JAT_MINI:
        return name
    if not (JAT_MINI_FOLDER / "model.safetensors").exists():
        raise CheckpointError(f"{JAT_MINI}: its weights are not there; in a checkout `make train-mini` makes them")
    return JAT_MINI_FOLDER


def local_path(source: str | os.PathLike[str]) -> Path:
    """Return the path that `source` names, with the home folder for `~`; of an unknown user, `~` stays."""
    path = Path(source)
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []


def take_hub_options(options: dict[str, Any]) -> dict[str, Any]:
    """Remove the options for finding files (`HUB_OPTIONS`) from `options` and return them."""
    return {key: options.pop(key) for key in HUB_OPTIONS if key in options}


def find_file(source: str | os.PathLike[str], name: str, hub: dict[str, Any], *, required: bool = False) -> Path | None:
    """Return the path of a checkpoint's file, after downloading it if `source` is a repository on the hub.

    The first call for a repository asks whether the hub answers, and notes it in `hub`. If it does not, this call and
    later ones with the same options take files from the cache without waiting.

    Args:
        source: a folder, or a repository id on the hub; as `resolve` returns it.
        name: name of the file.
        hub: options out of `HUB_OPTIONS`; for a folder only `subfolder` matters.
        required: raise an error if there is no such file, instead of returning None.

    Raises:
        CheckpointError: there is no such folder, repository or revision, or a required file is missing.
    """
    folder = Path(source)
    if folder.is_dir() and (isinstance(source, Path) or not _REPOSITORY.fullmatch(str(source))):
        path = folder / (hub.get("subfolder") or "") / name
        if path.is_file():
            return path
        if path.is_symlink():
            raise CheckpointError(
                f"{path}: expected a file, got a link to {path.readlink()}, which does not exist; copy or download the "
                "checkpoint again"
            )
        if required:
            raise CheckpointError(f"{source}: expected {name}, got no such file{describe_folder(path.parent)}")
        return None

    path_or_reason = _find_on_hub(str(source), name, hub)
    if isinstance(path_or_reason, str):
        if not required:
            return None
        here = f". The folder {source} has none either{describe_folder(folder)}" if folder.is_dir() else ""
        raise CheckpointError(f"{source}: expected {name}, got {path_or_reason}{here}")
    return path_or_reason


def _find_on_hub(source: str, name: str, hub: dict[str, Any]) -> Path | str:
    """Return the path of a downloaded file, or the reason why there is none."""
    _check_repository(source)
    revision = hub.get("revision")
    of_revision = f" of revision {revision!r}" if revision is not None else ""
    get_it = f"hf download {source}{'' if revision is None else f' --revision {revision}'}"

    if not hub.get("local_files_only") and _UNREACHABLE not in hub:
        hub[_UNREACHABLE] = why = _why_unreachable(source, name, hub)
        if why and hub.get("force_download"):
            raise CheckpointError(f"{source}: force_download: expected a connection to the hub, got none ({why})")
        hub["local_files_only"] = bool(why)

    options = {key: hub[key] for key in HUB_OPTIONS if key in hub}
    try:
        return Path(hf_hub_download(source, name, **options))
    except HFValidationError:
        raise CheckpointError(
            f"{source}: expected a folder or a repository id (user/name), got neither; check the path"
        ) from None
    except LocalEntryNotFoundError as error:
        reason = hub.get(_UNREACHABLE) or "local_files_only is set"
        if not hub.get("local_files_only"):  # it answered, but not as the hub does, as the page of a proxy
            reason = f"{constants.ENDPOINT}: {_first_line(error.__cause__ or error)}"
        return (
            f"no such folder, and no such file{of_revision} in the hub's cache, without a connection to the hub "
            f"({reason}); run `{get_it}` once with a connection, or pass a folder"
        )
    except RevisionNotFoundError:
        raise CheckpointError(
            f"{source}: revision: expected a branch, a tag or a commit of the repository, got {revision!r}"
        ) from None
    except GatedRepoError:
        raise CheckpointError(
            f"{source}: expected a repository that this account may read, got one that is gated; accept its terms at "
            f"{constants.ENDPOINT}/{source}, then run `hf auth login` or pass token=..."
        ) from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"{source}: expected a folder or a repository on the hub, got neither; check the name and, if the "
            "repository is private, run `hf auth login` or pass token=..."
        ) from None
    except EntryNotFoundError:
        return f"no such file{of_revision} in the repository"
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise CheckpointError(f"{source}: expected to download {name}, got {_first_line(error)}") from error


def _why_unreachable(source: str, name: str, hub: dict[str, Any]) -> str:
    """Return the reason why the hub does not answer; "" if it does, whatever the answer is."""
    if is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    given = os.environ.get("HF_HUB_ETAG_TIMEOUT")
    seconds = constants.HF_HUB_ETAG_TIMEOUT if given else _CONNECTION_SECONDS
    try:
        url = hf_hub_url(source, name, subfolder=hub.get("subfolder"), revision=hub.get("revision"))
        get_hf_file_metadata(url, token=hub.get("token"), timeout=seconds)
    except HFValidationError:
        return ""  # the download says so
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        return f"{constants.ENDPOINT} answers with status {status}" if status >= 500 else ""
    except Exception as error:  # those of the HTTP library, which differs between releases of huggingface_hub
        return f"{constants.ENDPOINT}: {_first_line(error)}"
    return ""


def _check_repository(source: str) -> None:
    """Check that a source that is no folder could be a repository on the hub.

    Raises:
        CheckpointError: it is a file, a URL or a path; the message says what was probably meant.
    """
    path = local_path(source)
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{source}: expected a folder or a repository id, got a file; name the folder it is in")

    if "://" in source or source.startswith(("huggingface.co/", "hf.co/")):
        found = _URL.fullmatch(source)
        is_hub = found is not None and ("huggingface.co/" in source or "hf.co/" in source or source.startswith("hf://"))
        remedy = f"pass {found[1]!r}" if found is not None and is_hub else "download it and name its folder"
        raise CheckpointError(f"{source}: expected a folder or a repository id, got a URL; {remedy}")

    if path.is_dir() or _REPOSITORY.fullmatch(source):
        return
    parent = path.parent
    near = difflib.get_close_matches(path.name, [folder.name for folder in _subfolders(parent)], n=1)
    if near:
        hint = f"did you mean {parent / near[0]}?"
    elif found := _REPOSITORY_AND_MORE.fullmatch(source):
        hint = f"did you mean {found[1]}?"
    elif difflib.get_close_matches(source.lower(), [JAT_MINI]):
        hint = f"did you mean {JAT_MINI}?"
    elif not parent.is_dir():
        hint = f"there is no folder {parent} either"
    else:
        hint = "check the path"
    raise CheckpointError(
        f"{source}: expected a folder, a repository id (user/name) or {JAT_MINI}, got neither; {hint}"
    )


def check_source(source: str) -> None:
    """Check that `source` is "jat-mini", a folder, or could be the name of a repository on the hub.

    Raises:
        CheckpointError: it is none of them; the message says what was probably meant.
    """
    if isinstance(found := resolve(source), str):
        _check_repository(found)


def describe_folder(folder: Path) -> str:
    """Return what a folder that lacks a checkpoint's file has instead, with the remedy, as the rest of a sentence."""
    if not folder.is_dir():
        return f"; there is no folder {folder}"
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        return f"; the folder cannot be read ({error.strerror or error})"
    if "adapter_config.json" in names:
        return "; the folder holds an adapter: load it onto its model, merge it and save that (PEFT: merge_and_unload)"
    downloads = (folder, folder / "blobs", folder / ".cache" / "huggingface" / "download")
    if any(path for place in downloads for path in place.glob("*.incomplete")):
        return "; a download was interrupted (*.incomplete): run it again"
    foreign = [name for name in names if name.endswith((".gguf", ".onnx", ".h5", ".msgpack", ".tflite"))]
    if foreign:
        return f"; {foreign[0]} is another format, which is not read; get the checkpoint that it was made from"
    inner = [path for path in _subfolders(folder) if (path / "config.json").is_file()]
    inner += [path for path in _subfolders(folder / "snapshots") if (path / "config.json").is_file()]  # the hub's cache
    if inner:
        return f"; its subfolder {inner[-1].relative_to(folder)} has one: name {inner[-1]}"
    if "evaluations.json" in names:
        return "; the folder holds results of an evaluation" + (
            f": for the checkpoint in this package pass {JAT_MINI}" if folder.name == JAT_MINI else ""
        )
    return ""


def check_not_pointer(path: Path, start: bytes) -> None:
    """Check that a file is not the placeholder that git leaves for a large one.

    Args:
        path: name of the file, for the error.
        start: its first bytes.

    Raises:
        CheckpointError: it is a placeholder.
    """
    if start.startswith(LFS_POINTER):
        raise CheckpointError(
            f"{path}: expected the file, got a pointer of Git LFS to it; run `git lfs pull` in its repository, or "
            "download it with `hf download`"
        )


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        CheckpointError: the file does not hold a JSON object in UTF-8, or an object in it has a key twice.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: expected a readable file, got {error.strerror or error}") from None
    check_not_pointer(path, raw)
    if not raw.strip():
        raise CheckpointError(f"{path}: expected a JSON object, got an empty file")
    try:
        fields = json.loads(
            raw.decode("utf-8-sig"), object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant
        )
    except UnicodeDecodeError:
        raise CheckpointError(f"{path}: expected JSON in UTF-8, got another encoding; save it as UTF-8") from None
    except RecursionError:
        raise CheckpointError(f"{path}: expected a JSON object, got one that is nested too deeply") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: expected a JSON object, got {error}") from None
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(fields).__name__}")
    return fields


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[0]}".removesuffix(": ")[:200]


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name}, which is no number of JSON")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of a JSON file. Of a key that occurs twice, only one value would count, silently."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)} twice")
    return fields
