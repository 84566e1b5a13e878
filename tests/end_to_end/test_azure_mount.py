"""The walkthrough with its output on Azure ML's mount, which knows no free space, and whose locks end at the machine.

The mount is Microsoft's own runtime over a local folder. Training takes a few updates on a part of the sample.
"""

import importlib.util
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers import HANGING_S, NOTEBOOKS, ROOT
from helpers.launching import TRAIN, Launch, leave_nobody_behind  # noqa: F401  # for every test

from ftlib import profiles
from ftlib.errors import FtlibError
from ftlib.session import manifest, records
from ftlib.session.session import OWNER, RESUMES, Session

ROWS = 180
PROFILE = 'extends = "tiny"\n[data]\ndataset = "rows.jsonl"\nheld_out_share = 0.1\n[train]\nsave_steps = 3\n'
HAS_MOUNT = Path("/dev/fuse").exists() and bool(importlib.util.find_spec("azureml.dataprep.rslex"))
pytestmark = [
    pytest.mark.skipif(not HAS_MOUNT, reason="Microsoft's mount needs /dev/fuse, and Linux on an x86_64"),
    pytest.mark.timeout(2 * HANGING_S),
]


@contextmanager
def serve(folder: Path, mounted: Path) -> Iterator[Path]:
    mounted.mkdir()
    command = [sys.executable, ROOT / "tests/helpers/azure_mount.py", folder, mounted, folder.parent]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"mounted\n"
        yield mounted
        process.communicate()


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts of one folder, as several machines have them."""
    (tmp_path / "stored").mkdir()
    with ExitStack() as mounts:
        yield lambda name: mounts.enter_context(serve(tmp_path / "stored", tmp_path / name))


@pytest.fixture
def project(tmp_path: Path, sample_rows: list[dict[str, Any]]) -> Path:
    shutil.copytree(ROOT / "notebooks", tmp_path / "project/notebooks")
    (tmp_path / "project/mine.toml").write_text(PROFILE)
    (tmp_path / "project/rows.jsonl").write_text("\n".join(map(json.dumps, sample_rows[:ROWS])))
    return tmp_path / "project"


@pytest.mark.slow
def test_all_notebooks_run_on_the_mount_killed_and_resumed(
    mount: Callable[[str], Path], project: Path, tmp_path: Path
) -> None:
    run = mount("first") / "runs/mine"
    assert shutil.disk_usage(run.parents[1]).total == 0, "as on Azure"

    def launch(root: Path, *notebooks: str, **environment: str) -> Launch:
        options = ["--profile", "mine.toml", "--output-root", str(root / "runs")]
        return Launch([*TRAIN[:3], *notebooks, *options], project, HOME=str(tmp_path / "home"), **environment)

    records.write(run / "records", NOTEBOOKS[2], {"base_bytes": 1})
    killed = launch(tmp_path / "first", TRAIN[3], AZUREML_RUN_ID="brave")
    while not manifest.is_complete(run / "checkpoints/checkpoint-6"):
        assert not killed.is_over, killed.end()
        time.sleep(0.1)
    killed.kill()

    again = launch(mount("second"), AZUREML_RUN_ID="sky", **{RESUMES: "brave"})
    again.succeed()
    run = tmp_path / "second/runs/mine"
    assert not (run / OWNER).exists()
    training, results = (records.read(run / "records", name) for name in NOTEBOOKS[3:5])
    assert training["global_step"] == 11
    assert "going on from checkpoint-" in (run / "notebooks/04_train_lora.ipynb").read_text()
    assert results["hub_files"]
    assert manifest.is_complete(run / "adapter")
    assert (run / "report/index.html").is_file()
    assert not (run / "huggingface").exists(), "downloads go to a local disk"
    assert (tmp_path / "home/.cache/ftlib/rehearsal/hub").is_dir()


def test_another_machine_is_refused_until_it_is_told_that_the_first_has_stopped(
    mount: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file's lock does not reach from one mount to another."""

    def claim(folder: Path, name: str) -> None:
        monkeypatch.setenv("AZUREML_RUN_ID", name)
        profile = profiles.load("tiny")
        Session(profile, "tiny", folder, ".", folder, "").claim_training()

    first, second = mount("first"), mount("second")
    claim(first, "brave")
    with pytest.raises(FtlibError, match=f"^brave trains in ./, or was stopped there; .* set {RESUMES}=brave$"):
        claim(second, "sky")
    claim(first, "brave")
    monkeypatch.setenv(RESUMES, "brave")
    claim(second, "sky")
    assert (first.parent / "stored" / OWNER).read_text() == "sky"
