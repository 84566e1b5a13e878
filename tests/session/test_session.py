"""`start(profile)`: the right Hub, folders, GPU and rank; and nothing of the person's own seen, kept or sent.

What it does happens to the environment and at import, so most tests begin in a Python of their own.
"""

import importlib.util
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from ftlib import profiles
from ftlib.errors import FtlibError
from ftlib.session.session import Session, explain, project_root

RunPython = Callable[..., Any]

PLANTED = "hf_planted_by_the_test"
HUB = "https://huggingface.co"

# Stands between the rehearsal Hub and its clients, and keeps what they send.
SPY = """
import json, os, sys, uvicorn
sent, Config = [], uvicorn.Config
def spied(app, *address, **settings):
    async def gate(scope, receive, send):
        async def overheard():
            message = await receive()
            sent.append(message.get("body", b"").decode("latin-1"))
            return message
        sent.append(repr((scope["path"], scope["query_string"], scope["headers"])))
        await app(scope, overheard, send)
    return Config(gate, *address, **settings)
uvicorn.Config = spied
"""
REFUSED = """
from ftlib.errors import FtlibError
def refused(do):
    try:
        do()
    except FtlibError as error:
        return str(error)
"""


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def persons_own(tmp_path: Path) -> dict[str, str]:
    """The environment of a person who is logged in, sits behind a proxy and has settings of their own."""
    home = tmp_path / "home"
    for cache in (home / "hf", home / ".cache/huggingface"):
        cache.mkdir(parents=True)
        (cache / "token").write_text(PLANTED)
        (cache / "stored_tokens").write_text(f"[mine]\nhf_token = {PLANTED}\n")
    return {
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "HF_TOKEN": PLANTED,
        "HF_TOKEN_PATH": str(home / "hf/token"),
        "HF_HUB_CACHE": str(home / "hf/hub"),
        "HUGGING_FACE_HUB_TOKEN": PLANTED,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "ALL_PROXY": "socks5://127.0.0.1:9",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
        "NO_PROXY": "",
        "no_proxy": "",
    }


def test_a_rehearsal_neither_sees_nor_sends_nor_keeps_what_is_the_persons_own(
    run_python: RunPython, project: Path, persons_own: dict[str, str]
) -> None:
    home = Path(persons_own["HOME"])
    before = files_below(home)
    told = run_python(
        SPY
        + REFUSED
        + """
from ftlib import start
session = start("tiny")
environment = dict(os.environ)
from huggingface_hub import HfApi, constants, get_token, hf_hub_download
from datasets import config, load_dataset
again = [start("tiny") is session, dict(os.environ) == environment]
api = HfApi()
repo = api.create_repo("mine").repo_id
api.upload_file(path_or_fileobj=b"adapter", path_in_repo="file", repo_id=repo)
hf_hub_download(repo, "file")
rows = len(load_dataset("rehearsal/multilingual-thinking-sample", split="train"))
print(json.dumps({
    "environment": environment, "sent": sent, "token": get_token(), "account": api.whoami()["name"], "repo": repo,
    "rows": rows, "caches": [constants.HF_HUB_CACHE, constants.HF_TOKEN_PATH, str(config.HF_DATASETS_CACHE)],
    "says": session.hub_description, "url": session.hub_url, "again": again,
    "refused": [refused(lambda: start("gpt-oss-20b")), refused(lambda: start("tiny", "elsewhere"))],
    "device": session.device,
}))
""",
        **persons_own,
    )
    output = project / "outputs/tiny"
    assert output.stat().st_mode & 0o777 == 0o700, "others see nothing of it"
    assert (told["account"], told["repo"], told["rows"], told["device"]) == ("learner", "learner/mine", 1000, "cpu")
    assert told["again"] == [True, True]
    message = "this kernel already works with profile tiny and writes to outputs/tiny; restart it to change either"
    assert told["refused"] == [message, message]
    assert told["token"].startswith("rehearsal_")
    assert PLANTED not in json.dumps(told), "the token is still in the environment, or was sent"
    assert any(told["token"] in request for request in told["sent"]), "the spy did not listen"
    assert told["environment"]["HF_ENDPOINT"] == told["url"]
    assert told["environment"]["TRACKIO_DIR"] == str(output / "trackio")
    assert "rehearsal Hub on this machine" in told["says"]
    for cache in told["caches"]:
        assert Path(cache).is_relative_to(output / "huggingface")
    assert json.loads((output / "profile.json").read_text())["recipe"]["effective_batch_size"] == 16
    assert files_below(home) == before, "something was written to the person's home"
    written = files_below(project)
    assert any("multilingual-thinking-sample" in path for path in written)
    for secret in (PLANTED, told["token"]):
        assert not [path for path, content in written.items() if secret.encode() in content]


def test_the_real_hub_is_met_with_the_persons_own_token_from_every_folder_of_the_project(
    run_python: RunPython, project: Path, persons_own: dict[str, str]
) -> None:
    """papermill runs a notebook in the project's folder, Jupyter and nbval in the notebook's own."""
    told = run_python(
        REFUSED
        + """
import json
from pathlib import Path
from ftlib import start
session = start("gpt-oss-20b", "other")
from huggingface_hub import constants, get_token
session.record("04_train_lora", global_step=63)
paths = [session.relative(session.adapter_dir / "README.md"), session.relative(Path("/elsewhere/secret/file"))]
refusals = [refused(lambda: session.device), refused(lambda: session.read_record("03_load_model"))]
print(json.dumps([
    [get_token(), constants.HF_HUB_CACHE, constants.ENDPOINT, session.hub_url, session.hub_description],
    [session.rank, session.world_size, session.is_main, session.gpus], paths, refusals,
]))
""",
        folder=project / "notebooks",
        **persons_own,
    )
    met, process, paths, refusals = told
    assert met == [PLANTED, persons_own["HF_HUB_CACHE"], HUB, HUB, f"the Hub is {HUB}"]
    assert process == [0, 1, True, 0]
    assert paths == ["other/gpt-oss-20b/adapter/README.md", "file"]
    assert json.loads((project / "other/gpt-oss-20b/records/04_train_lora.json").read_text()) == {"global_step": 63}
    assert refusals[0].startswith("found no GPU that torch can use (driver none, torch 2."), "42 GB would go into RAM"
    assert refusals[1] == "no record of 03_load_model in gpt-oss-20b/records; run 03_load_model.ipynb to its end first"


def test_a_client_that_was_imported_too_early_is_refused(run_python: RunPython) -> None:
    """It has read HF_ENDPOINT, HF_HOME and the token by then; one that talks to the right Hub will do."""
    code = """
import json
from huggingface_hub import constants
from ftlib import start
message = refused(lambda: start("tiny"))
constants.ENDPOINT = "https://huggingface.co"
print(json.dumps([message, start("gpt-oss-20b").hub_url]))
"""
    message, url = run_python(REFUSED + code)
    assert message.startswith("huggingface_hub was imported before start(...), which chooses the Hub; restart")
    assert url == HUB


@pytest.mark.parametrize("ranks", [{}, {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}])
def test_a_process_has_one_gpu_and_only_the_first_writes(
    run_python: RunPython, project: Path, ranks: dict[str, str]
) -> None:
    """With more than one in sight Trainer would wrap the model, and the loss would meet tensors on two GPUs."""
    code = """
import contextlib, io, json, os
from ftlib.session import device, kernel
device.installed_gpus = lambda: [None] * 4
device.driver = lambda: ("", "")
kernel.executed_cells = lambda: ["start()"]
from ftlib import start
with contextlib.redirect_stdout(io.StringIO()) as printed:
    session = start("gpt-oss-20b-fast")
session.record("04_train_lora", global_step=63)
from torch._dynamo import config
print(json.dumps([session.gpus, session.device, os.environ.get("CUDA_VISIBLE_DEVICES"), printed.getvalue(),
                  config.recompile_limit, config.fail_on_recompile_limit_hit]))
"""
    *told, limit, fails = run_python(code, **ranks)
    said = "using one of 4 GPUs; to train on more: ftlib run --profile gpt-oss-20b-fast\n"
    assert told == ([4, "cuda:1", None, ""] if ranks else [4, "cuda:0", "0", said])
    assert (limit, fails) == (64, True), "flex attention stops where it would no longer compile"
    assert bool(files_below(project)) is not bool(ranks)


def test_the_project_is_here_or_above_and_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    below = tmp_path / "project/notebooks/examples"
    below.mkdir(parents=True)
    places = {"project": "project", "project/notebooks": "project", ".": ".", "project/notebooks/examples": below}
    for folder, root in places.items():
        monkeypatch.chdir(tmp_path / folder)
        assert project_root() == tmp_path / root, "a folder that is only called notebooks is no project"
    (below.parent / "01_setup.ipynb").touch()
    assert project_root() == tmp_path / "project"
    monkeypatch.setattr(os, "geteuid", lambda: 2)
    if os.stat(below).st_uid == 0:  # noqa: PTH116
        os.chown(below.parent, 1, 1)
    with pytest.raises(
        FtlibError, match=r"^found notebooks of another user in \.\./\.\., expected your own; change to"
    ):
        project_root()
    monkeypatch.chdir(below.parent)
    assert project_root() == tmp_path / "project", "where one has gone oneself"


def test_a_damaged_cache_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache/datasets")
    Dataset.from_dict({"text": ["é" * 5000]}).save_to_disk("rows")
    (arrow,) = Path("rows").glob("*.arrow")
    for damaged in (b"", arrow.read_bytes()[:5000]):
        arrow.write_bytes(damaged)
        with pytest.raises((OSError, ValueError)) as raised:
            Dataset.from_file(str(arrow))
        assert re.fullmatch(
            r"a file below cache/datasets is damaged \(\w+\); delete that folder.*", explain(raised.value)
        )
    assert explain(ValueError("of one's own")) == ""


def test_mlflow_keeps_curves_beside_trackio_on_azures_compute_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(profiles.load("tiny"), "tiny", Path(os.curdir), "outputs", Path("outputs"), "")
    cases = {("azureml://x", True): ["trackio", "mlflow"], ("azureml://x", None): ["trackio"], ("", True): ["trackio"]}
    for (address, installed), trackers in cases.items():
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, found=installed: found)
        assert session.trackers == trackers
