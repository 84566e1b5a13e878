"""Secrets that a person has are in nothing that a headless run writes or prints, whether it ends well or not."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import HANGING_S, ROOT, write_notebook
from helpers.secret_search import CACHED, PLANTED, find, log_in, occurs

from ftlib import cli, profiles
from ftlib.model import checkpoints

# What a careless cell does with each secret; SECRETS has those that start() hides from a rehearsal as well.
EARLY = "import json, os; print(dict(os.environ))"  # before start()
START = """
from pathlib import Path
from ftlib import start
session = start("tiny")
with open(os.environ["TOLD"], "a") as told:
    told.write(os.environ["HF_TOKEN"] + " ")
"""
SHOW = """
import base64, logging, sys, urllib.parse, warnings
from IPython.display import HTML, JSON, display
known = json.loads(Path(os.environ["SECRETS"]).read_text())
secrets = [*known, os.environ["HF_TOKEN"]]  # the last is the rehearsal's own, known by its shape alone
print([base64.b64encode(f"u:{secret}".encode()) for secret in known])
for secret in secrets:
    print(secret, [secret], urllib.parse.quote(secret))
    warnings.warn(secret); logging.warning(secret)
    display(HTML(secret), JSON({"secret": [secret]}))
session.record("01_setup", shown=secrets, nested=[{"a": " ".join(secrets)}])
secrets
"""
RAISE = 'raise PermissionError(f"these were refused: {secrets}")'


def test_no_secret_is_left_anywhere(tmp_path: Path) -> None:
    project, home, outside = tmp_path / "project", tmp_path / "home", tmp_path / "outside"
    cached = home / ".cache/huggingface"
    for place in (project / "notebooks", cached, outside):
        place.mkdir(parents=True)
    log_in(cached)
    write_notebook(project, "01_setup", EARLY, START, SHOW)
    write_notebook(project, "02_explore_dataset", EARLY, START, SHOW, RAISE)
    (outside / "secrets.json").write_text(json.dumps([*PLANTED.values(), *CACHED.values()]))
    environment = {name: value for name, value in os.environ.items() if name != "HF_HOME"} | PLANTED
    environment |= {"HOME": str(home), "PYTHONPATH": str(ROOT)}
    environment |= {"SECRETS": str(outside / "secrets.json"), "TOLD": str(outside / "told")}
    printed = []
    for command in (["run", "01_setup", "02_explore_dataset"], ["report"]):
        ftlib = [sys.executable, "-m", "ftlib.cli", *command]
        result = subprocess.run(ftlib, cwd=project, env=environment, capture_output=True, text=True, timeout=HANGING_S)
        printed.append(f"{result.returncode}: {result.stdout}{result.stderr}")
    for file in cached.iterdir():
        file.unlink()

    raised, reported = printed
    assert re.match(r"1: 01_setup +✓ .*\n02_explore_dataset +✗ ", raised)
    assert "PermissionError: these were refused: ['[secret removed]', " in raised
    assert reported == "0: outputs/tiny/report/index.html\n"
    output = project / "outputs/tiny"
    notebooks = {path.name.split(".")[0]: path.read_text() for path in (output / "notebooks").iterdir()}
    secrets = {*PLANTED.values(), *CACHED.values(), *(outside / "told").read_text().split()}
    assert (len(notebooks), len(secrets)) == (2, len(PLANTED) + len(CACHED) + 2)
    assert all(notebook.count("[secret removed]") > 50 for notebook in notebooks.values()), "each was shown"
    assert json.loads((output / "records/01_setup.json").read_text())["shown"] == ["[secret removed]"] * 6
    for secret in secrets:
        assert find(secret, project, home) == []
        assert not occurs(secret, "".join(printed).encode())


def test_an_error_that_nobody_expected_tells_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise RuntimeError("hf_pLaNtEdInThEeNvIrOnMeNtByThIsTeSt broke it")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err.endswith("RuntimeError: [secret removed] broke it\n")


def test_a_push_of_curves_makes_no_space(notebooks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """trackio would make one, in public, unless it is told not to."""
    tiny = profiles.load("tiny")
    session = SimpleNamespace(profile=tiny, is_main=False, checkpoints_dir=tmp_path, trackers=["trackio"], world_size=1)
    given = {"profile": tiny, "session": session, "checkpoints": checkpoints}
    monkeypatch.setattr("trackio.init", lambda **settings: None)
    assert notebooks.run("04_train_lora", "training_args", given).trackio_static_space_id is False
