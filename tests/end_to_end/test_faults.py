"""A Hub that fails: what may succeed later is retried, the rest is one line, and the command in it works later."""

import json
import math
import re
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.faulty_hub import FaultyHub
from huggingface_hub import HfApi, constants, hf_hub_download, set_client_factory, snapshot_download
from huggingface_hub.utils._http import default_client_factory
from transformers import AutoConfig

from ftlib import cli, profiles
from ftlib.model import publish, recipe
from ftlib.rehearsal.hub import MODEL_ID
from ftlib.session import hub_client, manifest, session

PROFILE = profiles.load("tiny")
REPO = f"learner/{PROFILE.hub.push_target}"
CREATE, COMMIT = "POST /api/repos/create", f"POST /api/models/{REPO}/commit/main"
WEIGHTS = f"/{REPO}/resolve/.*/adapter_model.safetensors"
THEN = "the saved adapter is complete and unchanged"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyHub]:
    """A Hub in good health, and this process set up as `start` sets up a kernel."""
    with FaultyHub(tmp_path / "hub") as hub:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # as in a rehearsal
        template = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(hub_client, "PATIENCE_S", dict.fromkeys(("connect", "read", "write", "pool"), 1.0))
        set_client_factory(hub_client.PatientClient)
        monkeypatch.setattr(time, "sleep", hub.waits.append)
        yield hub
        set_client_factory(default_client_factory)


@pytest.fixture
def adapter(hub: FaultyHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An adapter as notebook 04 saves it, in a run that this kernel has started."""
    run = session.Session(PROFILE, "tiny", tmp_path, "outputs", tmp_path / "outputs/tiny", hub.endpoint)
    monkeypatch.setattr(session, "_current", run)
    run.adapter_dir.mkdir(parents=True)
    for name in {*publish.ADAPTER_FILES} - {manifest.NAME, "README.md"}:
        (run.adapter_dir / name).write_bytes(name.encode() * 1000)
    base = {"base_model_name_or_path": PROFILE.hub.model, "revision": PROFILE.hub.model_revision}
    (run.adapter_dir / "adapter_config.json").write_text(json.dumps(base))
    manifest.write(run.adapter_dir, [path.name for path in run.adapter_dir.iterdir()])
    trained = recipe.asked(PROFILE.model_dump()) | {"lora.target_parameters": []}
    training = {"global_step": 63, "training_loss": 1.1, "recipe": trained}
    publish.model_card(PROFILE, REPO, training, {}).save(run.adapter_dir / "README.md")
    run.keep_profile()
    return run.adapter_dir


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def ftlib(monkeypatch: pytest.MonkeyPatch, command: str) -> int:
    """Run a command line in this process."""
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("fault", "request_", "told"),
    [
        ("503", CREATE, ""),
        ("409", COMMIT, ""),
        ("stall", "GET /api/whoami-v2", ""),
        ("reset half-way", COMMIT, ""),  # it is made, and made again without a change
        ("503", COMMIT, "the Hub answers 503 Service Unavailable; wait until it is well again"),
        ("stall", COMMIT, "the Hub is out of reach (ReadTimeout); check the network and the proxy"),
        ("cut short", "GET /api/whoami-v2", "the Hub is out of reach (RemoteProtocolError); check the network"),
    ],
)
def test_a_push_that_meets_a_fault(
    fault: str,
    request_: str,
    told: str,  # if it does not pass
    hub: FaultyHub,
    adapter: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = files_of(adapter)
    hub.fail(fault, request_, math.inf if told else 1)
    command = f"ftlib push --profile {PROFILE.name}"
    code = ftlib(monkeypatch, command)
    said = capsys.readouterr().err.splitlines()
    assert hub.failed >= 1
    assert hub.token not in str(said)
    assert sum(hub.waits) <= 20, "nobody waits longer"
    if told:
        assert (code, len([line for line in said if not line.endswith("trying again")])) == (1, 1)
        assert said[-1].startswith(f"error: {told}")
        command = said[-1].split("`")[-2]
        assert said[-1].endswith(f", then run `{command}`; {THEN}")
    else:
        assert (code, hub.waits, len(said)) == (0, [1], 1)
    hub.recover()
    assert ftlib(monkeypatch, command) == 0, "as often as one likes"
    assert capsys.readouterr().out.strip() == f"{hub.endpoint}/{REPO}"
    assert files_of(adapter) == before == files_of(Path(snapshot_download(REPO, cache_dir=adapter.parent / "cache")))


def test_the_waits_grow_unless_the_hub_names_them_and_end(hub: FaultyHub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.fail("503", CREATE, math.inf)
    with pytest.raises(Exception, match="503"):
        HfApi().create_repo("mine")
    assert hub.waits == [1, 2, 4, 8]
    assert capsys.readouterr().err == "the Hub answers 503 Service Unavailable; trying again\n" * 4
    hub.waits.clear()
    hub.fail("429", CREATE, 1)
    HfApi().create_repo("mine")
    assert hub.waits == [7], "as its Retry-After says"
    HfApi().create_repo("mine", exist_ok=True)
    assert hub.waits == [7], "a conflict that says that it exists is no fault"


@pytest.mark.parametrize(
    ("fault", "request_"), [("reset", f"HEAD {WEIGHTS}"), ("cut short", f"GET {WEIGHTS}"), ("503", f"GET {WEIGHTS}")]
)
def test_a_pull_that_meets_a_fault_is_whole(
    fault: str, request_: str, hub: FaultyHub, adapter: Path, tmp_path: Path
) -> None:
    HfApi().create_repo(REPO)
    HfApi().upload_folder(repo_id=REPO, folder_path=adapter)
    hub.fail(fault, request_, 1)
    assert files_of(Path(snapshot_download(REPO, cache_dir=tmp_path / "cache"))) == files_of(adapter)
    assert hub.failed == 1


def test_what_transformers_makes_of_a_fault_is_explained_and_a_cache_is_used_at_once(
    hub: FaultyHub, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It wraps what the Hub said into an OSError about something else."""
    cache = tmp_path / "cache"
    hub.fail("503", f"HEAD /{MODEL_ID}/resolve/.*/config.json", math.inf)
    with pytest.raises(OSError, match=r"^We couldn") as raised:
        AutoConfig.from_pretrained(MODEL_ID, cache_dir=cache)
    assert re.fullmatch(f"the Hub answers 503 Service Unavailable; .*{THEN}", session.explain(raised.value))
    hub.recover()
    path = hf_hub_download(MODEL_ID, "config.json", cache_dir=cache)
    hub.waits.clear()
    template = "http://127.0.0.1:9/{repo_id}/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    assert hf_hub_download(MODEL_ID, "config.json", cache_dir=cache) == path
    assert hub.waits == [], "nobody is there, and the file is in the cache"
