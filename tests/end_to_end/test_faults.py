"""A Hub that fails: what may pass is tried again, the rest is one line, and the command in it works later."""

import hashlib
import math
import shlex
import shutil
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
from ftlib.model import publish
from ftlib.rehearsal import ASSETS
from ftlib.rehearsal.hub import MODEL_ID
from ftlib.session import hub_client, manifest, session

PROFILE = profiles.load("tiny")
REPO = f"learner/{PROFILE.hub.push_target}"
API = f"/api/models/{REPO}"
CREATE, COMMIT = "POST /api/repos/create", f"POST {API}/commit/main"
WEIGHTS = f"/{REPO}/resolve/.*/adapter_model.safetensors"
THEN = "the saved adapter is complete and unchanged"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyHub]:
    with FaultyHub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that would have been waited, by us and by huggingface_hub."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


@pytest.fixture
def hub(server: FaultyHub, waits: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyHub]:
    """The Hub in good health and without repositories, and this process set up as `start` sets up a kernel."""
    server.recover()
    HfApi(server.endpoint, server.token).delete_repo(REPO, missing_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", server.token)
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # as in a rehearsal
    template = f"{server.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(hub_client, "PATIENCE_S", dict.fromkeys(("connect", "read", "write", "pool"), 1.0))
    set_client_factory(hub_client.PatientClient)
    yield server
    set_client_factory(default_client_factory)


@pytest.fixture
def adapter(hub: FaultyHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An adapter as notebook 04 saves it, in a run that this kernel has started."""
    run = session.Session(PROFILE, "tiny", tmp_path, "outputs", tmp_path / "outputs/tiny", hub.endpoint)
    monkeypatch.setattr(session, "_current", run)
    run.adapter_dir.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(ASSETS / "model" / name, run.adapter_dir)
    (run.adapter_dir / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (run.adapter_dir / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 1000)
    manifest.write(run.adapter_dir, [path.name for path in run.adapter_dir.iterdir()])
    training = {"global_step": 63, "training_loss": 1.13874}
    publish.model_card(PROFILE, REPO, training, {}).save(run.adapter_dir / "README.md")
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
    ("fault", "request_", "times", "told"),
    [
        ("503", CREATE, 1, None),
        ("409", COMMIT, 1, None),
        ("reset", f"POST {API}/preupload/main", 1, None),
        ("stall", "GET /api/whoami-v2", 1, None),
        ("reset half-way", COMMIT, 1, None),  # it is made, and made again without a change
        (
            "403",
            CREATE,
            1,
            "the Hub answers 403 Forbidden; use a token that may write there, or change hub.push_target",
        ),
        ("503", COMMIT, math.inf, "the Hub answers 503 Service Unavailable; wait until it is well again"),
        ("stall", COMMIT, math.inf, "the Hub is out of reach (ReadTimeout); check the network and the proxy"),
        ("cut short", "GET /api/whoami-v2", math.inf, "the Hub is out of reach (RemoteProtocolError); check the netw"),
    ],
)
def test_a_push_that_meets_a_fault(
    fault: str,
    request_: str,
    times: float,
    told: str | None,
    hub: FaultyHub,
    adapter: Path,
    waits: list[float],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = files_of(adapter)
    hub.fail(fault, request_, times)
    command = f"ftlib push --profile {PROFILE.name}"
    code = ftlib(monkeypatch, command)
    said = capsys.readouterr().err.splitlines()
    assert hub.failed >= 1
    assert hub.token not in str(said)
    assert sum(waits) <= 20, "nobody waits longer"
    if told is None:
        assert (code, waits) == (0, [1])
        assert [line.rpartition("; ")[2] for line in said] == ["trying again"]
    else:
        assert (code, len([line for line in said if not line.endswith("trying again")])) == (1, 1)
        assert said[-1].startswith(f"error: {told}")
        command = said[-1].split("`")[-2]
        assert said[-1].endswith(f", then run `{command}`; {THEN}")
    hub.recover()
    assert ftlib(monkeypatch, command) == 0, "as often as one likes"
    assert capsys.readouterr().out.strip() == f"{hub.endpoint}/{REPO}"
    assert files_of(adapter) == before
    on_the_hub = {file.path: file.blob_id for file in HfApi(hub.endpoint).list_repo_tree(REPO, recursive=True)}
    git_ids = {name: hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() for name, data in before.items()}
    assert on_the_hub == git_ids


def test_the_waits_grow_unless_the_hub_names_them_and_end(
    hub: FaultyHub, adapter: Path, waits: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fail("503", CREATE, math.inf)
    with pytest.raises(Exception, match="503"):
        HfApi().create_repo("mine")
    assert waits == [1, 2, 4, 8]
    assert capsys.readouterr().err == "the Hub answers 503 Service Unavailable; trying again\n" * 4
    waits.clear()
    hub.fail("429", CREATE, 1)
    HfApi().create_repo("mine", exist_ok=True)
    assert waits == [7], "as its Retry-After says"
    waits.clear()
    HfApi().create_repo("mine", exist_ok=True)
    assert waits == [], "a conflict that says that it exists is no fault"


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
    hub: FaultyHub, adapter: Path, waits: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It wraps what the Hub said into an OSError about something else."""
    request = f"HEAD /{MODEL_ID}/resolve/.*/config.json"
    cache = tmp_path / "cache"
    for fault, told in (("503", "answers 503 Service Unavailable"), ("404", "answers 404 Not Found")):
        hub.fail(fault, request, math.inf)
        with pytest.raises(OSError, match=r"^We couldn|gpt-oss-tiny") as raised:
            AutoConfig.from_pretrained(MODEL_ID, cache_dir=cache)
        assert session.explain(raised.value).startswith(f"the Hub {told}; ")
        assert session.explain(raised.value).endswith(THEN)
    hub.recover()
    path = hf_hub_download(MODEL_ID, "config.json", cache_dir=cache)
    waits.clear()
    template = "http://127.0.0.1:9/{repo_id}/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    assert hf_hub_download(MODEL_ID, "config.json", cache_dir=cache) == path
    assert waits == [], "nobody is there, and the file is in the cache"
