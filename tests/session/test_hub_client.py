"""Whether the adapter may be pushed is known before anything takes long."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

from ftlib import profiles
from ftlib.errors import FtlibError
from ftlib.rehearsal.hub import RehearsalHub
from ftlib.session import hub_client

TINY = profiles.load("tiny").hub


@pytest.fixture
def rehearsal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RehearsalHub]:
    with RehearsalHub(tmp_path / "hub") as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("HF_TOKEN", hub.token)
        yield hub


def refusal(target: str = "adapter", *, private: bool = True) -> str:
    with pytest.raises(FtlibError) as raised:
        hub_client.check_access(TINY.model_copy(update={"push_target": target, "private": private}))
    return str(raised.value)


def test_the_target_is_named_in_full_whether_it_exists_or_not(rehearsal: RehearsalHub) -> None:
    assert hub_client.check_access(TINY) == f"learner/{TINY.push_target}"
    assert not HfApi().repo_exists(f"learner/{TINY.push_target}"), "a check makes nothing"
    HfApi().create_repo(TINY.push_target)
    assert hub_client.check_access(TINY) == f"learner/{TINY.push_target}"


def test_a_push_that_would_fail_or_be_seen_is_refused_with_what_to_do(
    rehearsal: RehearsalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    HfApi().create_repo("open", private=False)
    assert refusal("open").startswith("found learner/open public, expected a private repository, as hub.private = true")
    with monkeypatch.context() as patched:  # a list of organisations may say so, the repository has the last word
        patched.setattr(hub_client, "may_write", lambda account, repo: True)
        assert refusal("rehearsal/gpt-oss-tiny", private=False).startswith("the Hub answers 403 Forbidden; use a token")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "q" * 30)
    assert refusal().startswith("the Hub answers 401 Unauthorized; run `hf auth login`")


@pytest.mark.parametrize(("owner", "allowed"), [("ada", True), ("lab", False)])
def test_a_fine_grained_token_may_write_where_its_scopes_say(owner: str, allowed: bool) -> None:
    scopes = [{"entity": {"name": owner}, "permissions": ["repo.write"]}]
    token = {"role": "fineGrained", "fineGrained": {"scoped": scopes}}
    account = {"name": "ada", "orgs": [], "auth": {"accessToken": token}}
    assert hub_client.may_write(account, "ada/adapter") is allowed
