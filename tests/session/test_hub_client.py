"""Whether the adapter may be pushed is known before anything takes long."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from datasets import load_dataset
from huggingface_hub import HfApi, constants, set_client_factory
from huggingface_hub.utils._http import default_client_factory
from transformers import AutoConfig

from ftlib import profiles
from ftlib.errors import FtlibError
from ftlib.rehearsal.hub import RehearsalHub
from ftlib.session import hub_client

TINY = profiles.load("tiny").hub


@pytest.fixture
def rehearsal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RehearsalHub]:
    with RehearsalHub(tmp_path / "hub") as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("HF_TOKEN", hub.token)
        yield hub


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The client as `start` sets it up; the seconds that it would have waited."""
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    set_client_factory(hub_client.PatientClient)
    yield waits
    set_client_factory(default_client_factory)


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


@pytest.mark.parametrize(
    "ask",
    [
        lambda: AutoConfig.from_pretrained("a/b"),
        lambda: load_dataset("a/b", split="train"),
        lambda: HfApi().model_info("a/b"),
        lambda: HfApi().create_repo("b"),
        lambda: HfApi(token="hf_none").snapshot_download("a/b"),
    ],
)
def test_a_hub_that_nobody_reaches_is_asked_once(
    patient: list[float], ask: Callable[[], object], capfd: pytest.CaptureFixture[str]
) -> None:
    """The tests' own Hub is a port at which nobody listens."""
    with pytest.raises(Exception) as raised:  # noqa: PT011 (each library has its own)
        ask()
    assert hub_client.explain(raised.value).startswith("the Hub is out of reach (Connect")
    assert patient == []
    assert capfd.readouterr().err == ""


def test_a_hub_that_was_there_before_may_come_back(rehearsal: RehearsalHub, patient: list[float]) -> None:
    HfApi().whoami()
    rehearsal.stop()
    with pytest.raises(Exception, match="refused"):
        HfApi().create_repo("b")
    assert patient == [1, 2, 4, 8]


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda: HfApi().model_info("a/b"), "there is no model a/b, or your token may not see it; check hub.push"),
        (lambda: HfApi().dataset_info("a/b"), "there is no data set a/b, or your token may not see it; check data.d"),
        (lambda: HfApi().model_info(TINY.model, revision="x"), "has no revision 'x'; check hub.model_revision"),
        (lambda: HfApi().hf_hub_download(TINY.model, "a", revision="x"), "has no revision 'x'; check hub.model_rev"),
    ],
)
def test_what_is_missing_is_named_with_the_profiles_key(
    rehearsal: RehearsalHub, ask: Callable[[], object], told: str
) -> None:
    with pytest.raises(Exception, match="404") as raised:
        ask()
    assert told in hub_client.explain(raised.value, "ftlib push")


def test_a_base_with_a_flipped_bit_is_found(
    rehearsal: RehearsalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    hub_client.check_download(TINY.model, TINY.model_revision)  # nothing is there yet
    folder = Path(HfApi().snapshot_download(TINY.model, revision=TINY.model_revision))
    hub_client.check_download(TINY.model, TINY.model_revision)
    weights = (folder / "model.safetensors").resolve()
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(
        FtlibError, match=r"cached model\.safetensors of rehearsal/gpt-oss-tiny: found another checksum"
    ):
        hub_client.check_download(TINY.model, TINY.model_revision)
    refs = tmp_path / "cache/models--rehearsal--gpt-oss-tiny/refs"
    refs.mkdir(exist_ok=True)
    (refs / "main").write_bytes(b"\xff" * 40)
    with pytest.raises(FtlibError, match=r"^the cached refs/main of .*; delete models--rehearsal--gpt-oss-tiny/"):
        hub_client.check_download(TINY.model)  # the newest revision, of which nothing is cached
    with monkeypatch.context() as patched:
        patched.setenv("HF_TOKEN", "hf_" + "q" * 30)
        with pytest.raises(FtlibError, match="401"):
            hub_client.check_download(TINY.model, TINY.model_revision)


def test_a_rehearsals_own_words_are_shown(rehearsal: RehearsalHub, tmp_path: Path) -> None:
    HfApi().create_repo("adapter")
    (tmp_path / "hub/models/learner/adapter.json").write_text("{")
    said = refusal()
    assert "its record of learner/adapter is damaged: delete hub/models/learner/adapter.json" in said
