"""Uploads are refused before anything is played or trained if the hub cannot take them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.hub import silent_server
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from jat_engine.hub_account import check_account, check_upload


def answer(error: type[HfHubHTTPError], code: int) -> HfHubHTTPError:
    response: Any = SimpleNamespace(status_code=code, headers={}, request=None)
    return error("no", response=response)


class Account:
    """Stand-in for the hub that knows an account."""

    token = "hf_x"
    role = "write"

    def model_info(self, *_: Any, **__: Any) -> None:
        raise answer(RepositoryNotFoundError, 404)  # an answer all the same

    def whoami(self) -> dict[str, Any]:
        return {"name": "me", "orgs": [{"name": "Lab"}], "auth": {"accessToken": {"role": self.role}}}

    def create_repo(self, **options: Any) -> None:
        if options != {"repo_id": "lab-2/agent", "repo_type": "dataset", "exist_ok": True}:
            raise answer(HfHubHTTPError, 403)


@pytest.fixture
def api() -> Any:
    return Account()


def raises(error: Exception) -> Callable[..., Any]:
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    return fails


def test_repositories_that_an_account_may_write_to(api: Any) -> None:
    for name in ("me/agent", "Me/Agent.v-1_0", "lab/agent"):
        check_upload(name, api=api)
    check_upload("lab-2/agent", repo_type="dataset", api=api)
    with pytest.raises(ValueError, match=r"--repo_id: .*those of me, Lab\), got 'other/agent'"):
        check_upload("other/agent", api=api)
    api.role = "read"
    with pytest.raises(ValueError, match="--push_to_hub: the token may only read"):
        check_upload("me/agent", api=api)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (answer(HfHubHTTPError, 401), "the hub does not accept the token; log in"),
        (answer(HfHubHTTPError, 500), "the hub answers no"),
        (ConnectionError("no\nroute"), r"the hub cannot be reached \(ConnectionError: no route\)"),
    ],
)
def test_accounts_that_cannot_upload(error: Exception, message: str, api: Any) -> None:
    api.whoami = raises(error)
    with pytest.raises(ValueError, match=message):
        check_account(api)


def test_a_missing_token_is_told_without_asking(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jat_engine.hub_account.get_token", lambda: None)
    api.token = None
    api.model_info = raises(AssertionError("asked"))
    with pytest.raises(ValueError, match="there is no token for the hub; log in"):
        check_account(api)


def test_a_silent_hub_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """`whoami` alone would wait for ever."""
    monkeypatch.setattr("jat_engine.hub_account._REACH_SECONDS", 0.2)
    with silent_server() as address, pytest.raises(ValueError, match="--push_to_hub: the hub cannot be reached"):
        check_account(HfApi(endpoint=address, token="hf_x"))
