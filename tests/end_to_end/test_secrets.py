"""Secrets that a person has are in nothing that a run leaves behind, whether it ends well or not.

The search finds them in every form, and finds them in the same runs once the guard is taken away.
"""

import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
from helpers import HANGING_S, ROOT, write_notebook
from helpers.secret_search import find, occurs

from ftlib import profiles
from ftlib.model import checkpoints

# Of no known shape but the first: what is found is found by its value.
PLANTED = {
    "HF_TOKEN": "hf_pLaNtEdInThEeNvIrOnMeNtByThIsTeSt",
    "HUGGING_FACE_HUB_TOKEN": "planted-under-the-older-name",
    "AZUREML_TOKEN": "planted+for/azure==4e8b1c",
    "MY_API_KEY": "planted 'with' \"every\" <odd> & character\\é",
}
CACHED = {"token": "planted-in-the-cached-log-in", "refresh_token": "planted-beside-the-cached-log-in"}


# Runs


# What a careless cell does with each secret; SECRETS has those that start() hides from a rehearsal as well.
SHOW = """
import base64, logging, os, subprocess, sys, urllib.parse, warnings
from IPython.display import HTML, JSON, display
secrets = [*json.loads(Path(os.environ["SECRETS"]).read_text()), os.environ["HF_TOKEN"]]
for secret in secrets:
    print(secret, [secret], urllib.parse.quote(secret), base64.b64encode(f"u:{secret}".encode()))
    print(secret[:7], end="", flush=True); print(secret[7:])
    print(secret, file=sys.stderr)
    warnings.warn(secret); logging.warning(secret)
    display(HTML(secret), JSON({"secret": [secret]}))
    subprocess.run(["echo", secret])
print(dict(os.environ)); print(Path("~/.cache/huggingface/stored_tokens").expanduser().read_text())
secrets
"""
EARLY = "import json, os; print(dict(os.environ))"  # before the kernel is guarded
START = """
from pathlib import Path
from ftlib import start
session = start("tiny")
with open(os.environ["TOLD"], "a") as told:
    told.write(os.environ["HF_TOKEN"] + " ")
"""
RECORD = 'session.record("01_setup", shown=secrets, nested=[{"a": " ".join(secrets)}])'
RAISE = """
try:
    {}[secrets[0]]
except KeyError as error:
    raise PermissionError(f"these were refused: {secrets}") from error
"""
PUSH = """
from huggingface_hub import HfApi
HfApi(endpoint=os.environ["REFUSING_HUB"], token=secrets[-2]).create_repo("mine")
"""
RAISE_EARLY = f"raise PermissionError([os.environ[name] for name in {list(PLANTED)}])"
NO_GUARD = "from ftlib.session import redaction\nredaction._SHAPES.clear()\nredaction._forms = lambda secrets: []\n"


class RefusingHub(http.server.BaseHTTPRequestHandler):
    """Refuses everything, and repeats in its message the token that it was sent."""

    def do_POST(self) -> None:
        message = f"You may not do this with {self.headers['Authorization']}"
        self.send_response(403)
        self.send_header("X-Error-Message", message)
        self.end_headers()
        self.wfile.write(json.dumps({"error": message}).encode())

    def log_message(self, *arguments: Any) -> None:
        pass


@dataclass(frozen=True)
class Runs:
    """What runs of small notebooks left: folders of the project and the person's home, and the words they ended in."""

    folders: tuple[Path, ...]
    printed: list[str]
    secrets: dict[str, list[str]]

    def places(self, name: str) -> list[str]:
        """Where secrets of this name are to be found."""
        files = [path for secret in self.secrets[name] for path in find(secret, *self.folders)]
        said = [text for secret in self.secrets[name] for text in self.printed if occurs(secret, text)]
        return [path.relative_to(self.folders[0].parent).as_posix() for path in files] + said


@pytest.fixture(scope="module")
def refusing_hub() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), RefusingHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def log_in(home: Path) -> None:
    (home / ".cache/huggingface").mkdir(parents=True)
    (home / ".cache/huggingface/token").write_text(CACHED["token"])
    stored = f"[mine]\nhf_token = {CACHED['token']}\nrefresh_token = {CACHED['refresh_token']}\n"
    (home / ".cache/huggingface/stored_tokens").write_text(stored)


def run(folder: Path, refusing_hub: str, commands: list[list[str]], guard: bool = True) -> Runs:
    """Run each command in a project of small notebooks, as a person who has all the planted secrets."""
    project, home, outside = folder / "project", folder / "home", folder / "outside"
    for place in (project / "notebooks", home, outside):
        place.mkdir(parents=True)
    log_in(home)
    write_notebook(project, "01_setup", EARLY, START, SHOW, RECORD)
    write_notebook(project, "02_explore_dataset", EARLY, START, SHOW, RECORD, RAISE)
    write_notebook(project, "04_train_lora", EARLY, RAISE_EARLY)
    write_notebook(project, "05_push_and_infer", EARLY, START, SHOW, PUSH)
    (outside / "secrets.json").write_text(json.dumps([*PLANTED.values(), *CACHED.values()]))
    if not guard:
        (outside / "sitecustomize.py").write_text(NO_GUARD)
    unset = ("HF_HOME", "PYTEST_CURRENT_TEST")  # with the latter, ipykernel does not listen to child processes
    environment = {name: value for name, value in os.environ.items() if name not in unset} | PLANTED
    environment |= {"HOME": str(home), "PYTHONPATH": f"{outside}:{ROOT}", "REFUSING_HUB": refusing_hub}
    environment |= {"SECRETS": str(outside / "secrets.json"), "TOLD": str(outside / "told")}
    printed = []
    for command in commands:
        ftlib = [sys.executable, "-m", "ftlib.cli", *command]
        result = subprocess.run(ftlib, cwd=project, env=environment, capture_output=True, text=True, timeout=HANGING_S)
        printed.append(f"{result.returncode}: {result.stdout}{result.stderr}")
    for planted in (home / ".cache/huggingface").iterdir():
        planted.unlink()
    told = outside / "told"
    secrets = {name: [secret] for name, secret in (PLANTED | CACHED).items()}
    return Runs((project, home), printed, secrets | {"rehearsal": told.read_text().split() if told.exists() else []})


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, refusing_hub: str) -> Runs:
    commands = [["run", "01_setup", "02_explore_dataset"], ["run", "05_push_and_infer"], ["report"]]
    return run(tmp_path_factory.mktemp("guarded"), refusing_hub, commands)


@pytest.fixture(scope="module")
def unguarded(tmp_path_factory: pytest.TempPathFactory, refusing_hub: str) -> Runs:
    return run(tmp_path_factory.mktemp("unguarded"), refusing_hub, [["run", "02_explore_dataset"]], guard=False)


NAMES = [*PLANTED, *CACHED, "rehearsal"]


def test_runs_end_as_they_should(guarded: Runs) -> None:
    """Each secret was shown in every way, and the Hub's refusal with the token in it was kept."""
    raised, refused, reported = guarded.printed
    assert re.match(r"1: 01_setup +✓ .*\n02_explore_dataset +✗ ", raised)
    assert "PermissionError: these were refused: ['[secret removed]', " in raised
    assert re.match(r"1: 05_push_and_infer +✗ ", refused)
    assert reported == "0: outputs/tiny/report/index.html\n"
    output = guarded.folders[0] / "outputs/tiny"
    notebooks = {path.name.split(".")[0]: path.read_text() for path in (output / "notebooks").iterdir()}
    assert set(notebooks) == {"01_setup", "02_explore_dataset", "05_push_and_infer"}
    assert all(notebook.count("[secret removed]") > 10 * len(NAMES) for notebook in notebooks.values())
    assert "You may not do this with Bearer [secret removed]" in notebooks["05_push_and_infer"]
    assert len(guarded.secrets["rehearsal"]) == 3
    record = json.loads((output / "records/01_setup.json").read_text())
    assert record["shown"] == ["[secret removed]"] * len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_no_secret_is_left_anywhere(guarded: Runs, name: str) -> None:
    assert guarded.places(name) == []


@pytest.mark.parametrize("name", NAMES)
def test_without_the_guard_the_search_finds_each(unguarded: Runs, name: str) -> None:
    places = unguarded.places(name)
    for place in ("notebooks/02_explore_dataset.unfinished.ipynb", "records/01_setup.json"):
        assert f"project/outputs/tiny/{place}" in places
    assert places[-1].startswith("1: 02_explore_dataset")


def test_a_failing_rank_tells_no_secret(tmp_path: Path, refusing_hub: str) -> None:
    runs = run(tmp_path, refusing_hub, [["run", "04_train_lora", "--nproc", "2"]])
    assert "PermissionError: ['[secret removed]', '[secret removed]', " in runs.printed[0]
    assert runs.printed[0].count("\n") == 2, "a line for the notebook, and one for the error"
    assert list(tmp_path.glob("project/outputs/tiny/notebooks/*.rank1.unfinished.ipynb"))
    assert [runs.places(name) for name in PLANTED] == [[]] * len(PLANTED)


def test_an_error_that_nobody_expected_tells_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ftlib import cli

    def fail() -> None:
        raise RuntimeError(f"{PLANTED['HF_TOKEN']} broke it")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.endswith("RuntimeError: [secret removed] broke it\n")


# trackio


SPIES = """
import trackio
from trackio import deploy, utils
opened = []
trackio.show = lambda **settings: opened.append("dashboard")
deploy.create_space_if_not_exists = lambda *arguments: opened.append("space")
assert utils.is_in_notebook()
"""


def test_curves_open_no_dashboard_in_a_kernel(tmp_path: Path, notebooks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its address would carry a write token; the same cell without its switch opens one."""
    begin = notebooks.cell_with("04_train_lora", "trackio.init(")
    assert begin.count("embed=False") == 1
    project = tmp_path / "project"
    (project / "notebooks").mkdir(parents=True)
    monkeypatch.chdir(project)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    again = begin.replace("embed=False, ", "").replace("profile.track.project", "'another'")
    cells = ["from ftlib import start; session = start('tiny'); profile = session.profile", SPIES, begin]
    write_notebook(project, "04_train_lora", *cells, "print(opened)", again, "print(opened); trackio.finish()")
    result = subprocess.run([sys.executable, "-m", "ftlib.cli", "run", "04_train_lora"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    kept = nbformat.read(project / "outputs/tiny/notebooks/04_train_lora.ipynb", as_version=4)
    shown = [output.text.splitlines()[0] for cell in kept.cells for output in cell.get("outputs", [])]
    assert shown == ["[]", "['dashboard']"]


@pytest.mark.parametrize("switch", [True, False])
def test_curves_make_no_space(notebooks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, switch: bool) -> None:
    """With the notebook's settings, neither the end of training nor a push; without the switch, a push makes one."""
    import trackio
    from transformers.integrations import TrackioCallback

    monkeypatch.setattr(trackio, "init", lambda **settings: None)
    session = SimpleNamespace(is_main=False, checkpoints_dir=tmp_path, trackers=["trackio"])
    given = {"profile": profiles.load("tiny"), "session": session, "checkpoints": checkpoints}
    arguments = notebooks.run("04_train_lora", "bookkeeping", given)
    if not switch:
        del arguments["trackio_static_space_id"]
    made: list[str] = []
    monkeypatch.setattr(trackio, "sync", lambda **settings: made.append(settings["space_id"]))
    monkeypatch.setattr(trackio, "freeze", lambda **settings: made.append(settings["new_space_id"]))
    monkeypatch.setattr(trackio, "finish", lambda: None)
    monkeypatch.setattr(trackio.context_vars, "current_project", SimpleNamespace(get=lambda: "project"))
    args = SimpleNamespace(
        **{"trackio_static_space_id": None, "hub_private_repo": None, "trackio_bucket_id": None} | arguments
    )
    callback, state = TrackioCallback(), SimpleNamespace(is_world_process_zero=True)
    callback._initialized = True
    callback.on_train_end(args, state, None)
    callback.on_push_begin(args, state, None, SimpleNamespace())
    assert bool(made) == (not switch)
