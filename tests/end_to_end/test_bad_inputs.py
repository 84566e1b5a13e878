"""Every mistake of the table gets exit code 1 and one line that says what to do, and changes nothing that was there.

The command line runs in this process, and so do the cells of the real notebooks, as far as where the mistake has to be
found: before any model is loaded.
"""

import builtins
import errno
import os
import shutil
import sys
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import httpx2
import pytest
from datasets import Dataset, disable_progress_bars
from filelock import FileLock
from helpers import NOTEBOOKS
from helpers.bad_inputs import CASES, Case, adapter
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from ftlib import cli
from ftlib.model import checkpoints, publish
from ftlib.runner import execution, report
from ftlib.session import hub_client, kernel, manifest, session

TOKEN = "hf_neverShownNeverShownNeverShown"
EMPTY = '{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'
REQUEST = httpx2.Request("GET", "https://hub/api")


def rows(question: str = "Hi") -> Dataset:
    return Dataset.from_list([{"messages": [{"role": "user", "content": question}]}])


class World:
    """A project with a finished run, a Hub that takes everything, room on the disk, and what a case makes of these."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, notebooks: Any) -> None:
        self.root, self.output, self._patch, self._notebooks = root, root / "outputs/mine", monkeypatch, notebooks
        # How far each notebook comes: to the variables that its checks stand before.
        self.reach = {"02_explore_dataset": ["rows", "held_out"], "04_train_lora": ["repo"]}
        self.given = ""
        (root / "notebooks").mkdir()
        for folder in ("notebooks", "records", "adapter"):
            (self.output / folder).mkdir(parents=True)
        for name in NOTEBOOKS:
            for folder in (root, self.output):
                (folder / "notebooks" / f"{name}.ipynb").write_text(EMPTY)
            (self.output / "records" / f"{name}.json").write_text('{"base_bytes": 1}')
        self._seal("adapter", [name for name in publish.ADAPTER_FILES if name != manifest.NAME])
        for name, text in adapter().items():
            (root / name).write_text(text)
        self.role("write")
        self.free_bytes(10**12)
        monkeypatch.setattr(execution, "_execute", lambda name, parameters, folder: self.execute(name, parameters))

    def _seal(self, folder: str, names: list[str]) -> None:
        for name in names:
            (self.output / folder / name).write_text(f"finished {name}")
        manifest.write(self.output / folder, set(names) - {"README.md"})

    def files(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in self.output.rglob("*") if path.is_file()}

    def run(self, *command: str) -> Any:
        """What `ftlib …` exits with."""
        self._patch.setattr(sys, "argv", ["ftlib", *command])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code

    def execute(self, name: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """Execute a notebook's cells here; `given` is what papermill would inject. Returns what it came to."""
        cells = ["", self._notebooks.cells(name)[0], f"# Parameters\n{self.given}\n"]
        self._patch.setattr(kernel, "executed_cells", lambda: cells)
        current = session.start(parameters["profile"], parameters["output_root"])
        namespace = {"session": current, "profile": current.profile, "resume": parameters.get("resume")}
        if "baseline" in self.reach[name]:  # whose cell calls `start` itself
            namespace |= parameters
        namespace |= {"checkpoints": checkpoints, "train_dataset": rows()}
        return {variable: self._notebooks.run(name, variable, namespace) for variable in self.reach[name]}

    def environment(self, given: str) -> None:
        for variable in given.split(", "):
            self._patch.setenv(*variable.split("="))

    def meet(self, name: str, *where: str) -> None:
        """A notebook meets an error of the machine."""
        number = getattr(errno, name, None)
        error = OSError(number, "", *(str(self.root / path) for path in where)) if number else getattr(builtins, name)
        self._patch.setattr(execution, "_execute", Mock(side_effect=error))

    def full_while_reporting(self) -> None:
        self._patch.setattr(report, "page", Mock(side_effect=OSError(errno.ENOSPC, "")))

    def lose(self, name: str) -> None:
        (self.root / name).unlink()

    def no_folder(self) -> None:
        (self.root / "gone").mkdir()
        self._patch.chdir(self.root / "gone")
        (self.root / "gone").rmdir()

    def somebody_elses(self) -> None:
        """The notebooks above the working folder."""
        (self.root / "below").mkdir()
        self._patch.chdir(self.root / "below")
        if os.geteuid() == 0:
            os.chown(self.root / "notebooks", 1, 1)
        self._patch.setattr(os, "geteuid", lambda: 2)

    def no_token(self) -> None:
        self._patch.delenv("HF_TOKEN")

    def role(self, role: str) -> None:
        account = {"name": "learner", "orgs": [], "auth": {"accessToken": {"role": role}}}
        self._patch.setattr(hub_client, "whoami", lambda token: account)

    def answer(self, status: int | None) -> None:
        """The Hub refuses, or with None nobody answers."""
        error: Exception = httpx2.ConnectError(TOKEN, request=REQUEST)
        if status:
            error = HfHubHTTPError(TOKEN, response=httpx2.Response(status, request=REQUEST))
        self._patch.setattr(hub_client, "whoami", Mock(side_effect=error))

    def free_bytes(self, *later: int) -> None:
        """What the disk has at each look at it, the last for good."""
        looks = chain(later, repeat(later[-1]))
        self._patch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(total=10**13, free=next(looks)))

    def change(self, name: str) -> None:
        (self.output / name).write_text("changed")

    def checkpoint(self) -> None:
        folder = "checkpoints/checkpoint-3"
        (self.output / folder).mkdir(parents=True)
        self._seal(folder, ["adapter_model.safetensors", "progress.json"])

    def another_trains(self) -> None:
        self.checkpoint()
        self._patch.setattr(session, "CLAIM_TIMEOUT_S", 0.1)
        self._lock = FileLock(self.output / "training.lock")
        self._lock.acquire()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notebooks: Any) -> World:
    missing = RepositoryNotFoundError("missing", response=httpx2.Response(404, request=REQUEST))
    monkeypatch.chdir(tmp_path)
    for name in ("TRACKIO_DIR", "HF_HUB_DISABLE_TELEMETRY", "MLFLOW_MAX_LOG_PARAMS", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # so that what start() sets is taken back
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(session, "_connect", lambda profile, output_dir: ("http://127.0.0.1:9", []))
    monkeypatch.setattr(session, "_current", None)
    monkeypatch.setattr(HfApi, "model_info", Mock(side_effect=missing))
    disable_progress_bars()
    return World(tmp_path, monkeypatch, notebooks)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_mistake_gets_one_line_and_changes_nothing(
    case: Case, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extends = "" if "extends" in case.profile else 'extends = "tiny"\n'
    for name, content in {"mine.toml": extends + case.profile, **case.files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    world.given = case.given
    if case.circumstance:
        method, *arguments = case.circumstance
        getattr(world, method)(*arguments)
    before = world.files()
    assert world.run(*case.command) == 1
    said = capsys.readouterr().err
    assert TOKEN not in said
    assert str(tmp_path) not in said
    (line,) = said.splitlines()
    assert line.startswith("error: ")
    for part in case.message:
        assert part in line
        line = line.partition(part)[2]
    after = world.files()
    assert {path: after.get(path) for path in before} == before


@pytest.mark.parametrize("notebook", ["02_explore_dataset", "04_train_lora"])
def test_without_a_mistake_nothing_is_refused(notebook: str, world: World, tmp_path: Path) -> None:
    """Or the table would prove nothing: the same world, the same cells, and good rows."""
    good = next(case for case in CASES if case.name == "too small a share").files["rows.jsonl"]
    (tmp_path / "rows.jsonl").write_text(str(good))
    (tmp_path / "mine.toml").write_text('extends = "tiny"\n[data]\ndataset = "rows.jsonl"\nheld_out_share = 0.5\n')
    world.checkpoint()
    world.given = 'profile = "mine.toml"'
    assert world.run("run", notebook, "--profile", "mine.toml") == 0
