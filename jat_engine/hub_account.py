"""Checks that an account can upload to the Hugging Face hub, before hours are spent on what is to be uploaded."""

from __future__ import annotations

import contextlib
import re
from typing import Any

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError

from .errors import one_line

_REACH_SECONDS = 5.0
"""Longest wait for the hub's first answer. `whoami` itself would wait for ever."""

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN, to a token that may write"


def check_account(api: HfApi | None = None) -> dict[str, Any]:
    """Check that the hub answers and knows the token, and return what it says of the account.

    Args:
        api: client with the token to use; None takes the token of `hf auth login` or `HF_TOKEN`.

    Raises:
        ValueError: the hub cannot be reached, or does not accept the token.
    """
    api = api or HfApi()
    if not (api.token or get_token()):
        raise ValueError(f"--push_to_hub: there is no token for the hub; {_LOG_IN}")
    try:
        with contextlib.suppress(HfHubHTTPError):  # any answer shows that the hub can be reached
            api.model_info("jat-project/jat", timeout=_REACH_SECONDS)
        return dict(api.whoami())
    except HfHubHTTPError as error:
        refused = error.response is not None and error.response.status_code in (401, 403)
        reason = f"the hub does not accept the token; {_LOG_IN}" if refused else f"the hub answers {hub_reason(error)}"
        raise ValueError(f"--push_to_hub: {reason}") from None
    except Exception as error:  # no network: classes of the HTTP client, which differ between releases of the hub's
        raise ValueError(
            f"--push_to_hub: the hub cannot be reached ({type(error).__name__}: {hub_reason(error)}); leave "
            "--push_to_hub out, and upload later"
        ) from None


def check_upload(repo_id: str, *, repo_type: str = "model", api: HfApi | None = None) -> None:
    """Check that a repository's name is valid, and that this account may write to it. Uploads nothing.

    Args:
        repo_id: repository on the hub, "owner/name".
        repo_type: "model" or "dataset".
        api: as for `check_account`.

    Raises:
        ValueError: an upload would fail; the message names the reason.
    """
    name = r"[\w.-]*\w"
    if not re.fullmatch(f"{name}/{name}", repo_id, re.ASCII) or "--" in repo_id or ".." in repo_id:
        raise ValueError(f"--repo_id: expected owner/name of letters, digits, '-', '_' and '.', got {repo_id!r}")

    api = api or HfApi()
    account = check_account(api)
    role = ((account.get("auth") or {}).get("accessToken") or {}).get("role")
    if role == "read":
        raise ValueError(f"--push_to_hub: the token may only read; {_LOG_IN}")

    owners = [str(account.get("name")), *(str(org.get("name")) for org in account.get("orgs") or [])]
    if repo_id.partition("/")[0].lower() not in [owner.lower() for owner in owners]:
        try:
            api.create_repo(repo_id=repo_id, repo_type=repo_type, exist_ok=True)  # only the hub knows
        except HfHubHTTPError:
            raise ValueError(
                f"--repo_id: expected a repository that this account may write to (such as those of "
                f"{', '.join(owners)}), got {repo_id!r}"
            ) from None


def hub_reason(error: Exception) -> str:
    """Return the message of an error of the hub in one line, without the advice of its HTTP client."""
    return one_line(error).partition(" For more information")[0]
