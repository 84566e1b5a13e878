"""Whether the adapter may be pushed is known before anything takes long."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError

from ftlib import profiles
from ftlib.errors import FtlibError
from ftlib.rehearsal.hub import RehearsalHub
from ftlib.session import hub_client


@pytest.fixture
def rehearsal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RehearsalHub]:
    with RehearsalHub(tmp_path / "hub") as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("HF_TOKEN", hub.token)
        yield hub


def check(target: str = "adapter", *, private: bool = True) -> str:
    return hub_client.check_access(
        profiles.load("tiny").hub.model_copy(update={"push_target": target, "private": private})
    )


def refusal(target: str = "adapter", *, private: bool = True) -> str:
    with pytest.raises(FtlibError) as raised:
        check(target, private=private)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_the_target_is_named_in_full_whether_it_exists_or_not(rehearsal: RehearsalHub) -> None:
    assert check() == "learner/adapter"
    assert not HfApi().repo_exists("learner/adapter"), "a check makes nothing"
    HfApi().create_repo("adapter", private=True)
    assert check() == check(private=False) == "learner/adapter"


def test_a_push_that_would_fail_or_be_seen_is_refused_with_what_to_do(
    rehearsal: RehearsalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refusal("lab/adapter") == (
        "found a token of learner that may not write to lab/adapter; use a token that may write there, or change "
        "hub.push_target"
    )
    HfApi().create_repo("open", private=False)
    assert refusal("open").startswith("found learner/open public, expected a private repository, as hub.private = true")
    with monkeypatch.context() as patched:  # a list of organisations may say so, the repository has the last word
        patched.setattr(hub_client, "may_write", lambda account, repo: True)
        assert refusal("rehearsal/gpt-oss-tiny", private=False).startswith("the Hub answers 403 Forbidden; use a token")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "q" * 30)
    assert refusal().startswith("the Hub answers 401 Unauthorized; run `hf auth login`")
    assert "qqq" not in refusal()
    monkeypatch.delenv("HF_TOKEN")
    assert refusal().startswith("found no token, expected one that may write to hub.push_target adapter; run `hf auth")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "q" * 30)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert refusal() == "the Hub is out of reach (ConnectError); check the network and the proxy"


def test_an_error_is_explained_through_what_it_caused_and_only_if_it_is_the_hubs() -> None:
    request = httpx2.Request("GET", "http://hub", headers={"Authorization": "Bearer secret"})
    refused = HfHubHTTPError("secret", response=httpx2.Response(404, request=request))
    missing = OSError("secret is not a local folder")
    missing.__cause__ = refused
    expected = "the Hub answers 404 Not Found; check hub.push_target and hub.model, and that your token may see them"
    assert hub_client.explain(refused) == hub_client.explain(missing) == expected
    assert hub_client.explain(missing, "ftlib push") == (
        f"{expected}, then run `ftlib push`; the saved adapter is complete and unchanged"
    )
    assert hub_client.explain(ConnectionResetError("secret")) == (
        "the Hub is out of reach (ConnectionResetError); check the network and the proxy"
    )
    assert [hub_client.explain(error) for error in (OSError("disk"), ValueError(), KeyboardInterrupt())] == ["", "", ""]
