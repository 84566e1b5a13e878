"""Whether the adapter may go up is known before anything takes long, and a Hub that does not answer is asked again."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tenacity
from huggingface_hub import HfApi, constants

from ftlib import profiles
from ftlib.errors import FtlibError
from ftlib.rehearsal.hub import RehearsalHub
from ftlib.session import hub_client


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that would have been waited."""
    waited: list[float] = []
    monkeypatch.setattr(tenacity.nap, "time", SimpleNamespace(sleep=waited.append))
    return waited


@pytest.fixture
def rehearsal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RehearsalHub]:
    with RehearsalHub(tmp_path / "hub") as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("HF_TOKEN", hub.token)
        yield hub


def refusal(target: str = "adapter", *, private: bool = True) -> str:
    hub = profiles.load("tiny").hub.model_copy(update={"push_target": target, "private": private})
    with pytest.raises(FtlibError) as raised:
        hub_client.check_access(hub)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_the_target_is_named_in_full_whether_it_exists_or_not(rehearsal: RehearsalHub) -> None:
    hub = profiles.load("tiny").hub
    assert hub_client.check_access(hub) == f"learner/{hub.push_target}"
    assert not list(HfApi().list_models(author="learner")), "a check makes nothing"
    HfApi().create_repo(hub.push_target)
    assert hub_client.check_access(hub) == f"learner/{hub.push_target}"


def test_without_a_token_it_says_how_to_get_one(rehearsal: RehearsalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert refusal() == (
        "found no token, expected one that may write to hub.push_target adapter; run `hf auth login` in a terminal, or "
        "set HF_TOKEN"
    )


def test_a_token_that_is_refused_is_not_shown(rehearsal: RehearsalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "q" * 30)
    message = refusal()
    assert message.startswith("the Hub answers 401 Unauthorized; run `hf auth login`")
    assert "qqq" not in message


def test_somebody_elses_account_is_refused(rehearsal: RehearsalHub) -> None:
    assert refusal("lab/adapter") == (
        "found a token of learner that may not write to lab/adapter; use a token that may write there, or change "
        "hub.push_target"
    )


def test_what_should_be_private_does_not_go_where_everybody_reads(rehearsal: RehearsalHub) -> None:
    HfApi().create_repo("adapter", private=False)
    assert refusal().startswith("found learner/adapter public, expected a private repository, as hub.private = true")
    HfApi().create_repo("hidden", private=True)
    hub = profiles.load("tiny").hub.model_copy(update={"push_target": "hidden", "private": False})
    assert hub_client.check_access(hub) == "learner/hidden"


def test_the_hubs_own_word_on_an_existing_repository_counts(
    rehearsal: RehearsalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list of a token's organisations says that it may write, the repository itself that it may not."""
    monkeypatch.setattr(hub_client, "may_write", lambda account, repo: True)
    assert refusal("rehearsal/gpt-oss-tiny", private=False).startswith(
        "the Hub answers 403 Forbidden; use a token that"
    )


def test_a_hub_out_of_reach_is_asked_again_and_told(
    waits: list[float], rehearsal: RehearsalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert refusal() == "the Hub is out of reach (ConnectError); check the network and the proxy"
    assert waits == [1, 2, 4, 8]


@pytest.mark.parametrize(("status", "tried"), [(503, 5), (429, 5), (403, 1), (402, 1)])
def test_a_token_is_asked_for_again_where_that_helps(
    waits: list[float], rehearsal: RehearsalHub, monkeypatch: pytest.MonkeyPatch, status: int, tried: int
) -> None:
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    request = httpx2.Request("GET", "http://hub", headers={"Authorization": "Bearer secret"})
    asked = []

    def refuse(token: str) -> dict[str, Any]:
        asked.append(token)
        raise HfHubHTTPError("secret", response=httpx2.Response(status, request=request, headers={"Retry-After": "50"}))

    monkeypatch.setattr(hub_client, "whoami", refuse)
    message = refusal()
    assert message.startswith(f"the Hub answers {status} ")
    assert "secret" not in message
    assert len(asked) == tried
    assert waits == [30] * (tried - 1), "as the Hub asks for, as far as that is bearable"


@pytest.mark.parametrize(
    ("token", "writes"),
    [({"role": "read"}, False), ({"role": "write"}, True), ({}, True)],
    ids=["read", "write", "of a kind that says nothing of it"],
)
def test_only_a_token_that_is_known_to_be_for_reading_is_refused(token: dict[str, str], writes: bool) -> None:
    account = {"name": "ada", "auth": {"accessToken": token}}
    assert hub_client.may_write(account, "ada/thing") is writes
    assert hub_client.may_write(account, "lab/thing") is False
