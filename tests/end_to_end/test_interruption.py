"""Training killed at any moment and run again gives the adapter of an undisturbed run, on one process and on two.

Notebook 04 runs as it is, but without its plots, and for ten updates.
"""

import json
import random
import time
from pathlib import Path
from threading import Thread
from typing import Any

import nbformat
import pytest
from helpers import HANGING_S, ROOT
from helpers.launching import TRAIN, Launch, azure_ml, leave_nobody_behind, ranks  # noqa: F401  # for every test
from jupyter_client.manager import start_new_kernel
from safetensors.torch import load_file
from torch.testing import assert_close

from ftlib.session import manifest

UPDATES = 10
BRIEF = 'extends = "tiny"\n[data]\nheld_out_share = 0.82\n[train]\nsave_steps = 3\n'
# Ends the kernel just before a checkpoint is sealed, and lists the checkpoints that are.
WATCH = """
import os, signal
from ftlib.session import manifest

def write(folder, names, seal=manifest.write):
    if folder.name == os.environ.get("KILLED_BEFORE_SEALING"):
        os.kill(os.getpid(), signal.SIGKILL)
    seal(folder, names)
    with open(os.environ.get("SEALED", os.devnull), "a") as sealed:
        print(folder.name, file=sealed)

manifest.write = write
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project before notebook 04, with a brief profile."""
    root = tmp_path_factory.mktemp("interruption") / "project"
    (root / "notebooks").mkdir(parents=True)
    notebook = nbformat.read(ROOT / "notebooks/04_train_lora.ipynb", as_version=4)
    notebook.cells = [cell for cell in notebook.cells if "plots." not in cell.source]
    (start,) = [place for place, cell in enumerate(notebook.cells) if "session = start(" in cell.source]
    notebook.cells.insert(start + 1, nbformat.v4.new_code_cell(WATCH))
    nbformat.write(notebook, root / "notebooks/04_train_lora.ipynb")
    (root / "brief.toml").write_text(BRIEF)
    return root


class Training:
    """One run in a project, interrupted or not."""

    def __init__(self, project: Path, output_root: str) -> None:
        self.project, self.folder = project, project / output_root / "brief"
        self.options = ["--profile", "brief.toml", "--output-root", output_root]
        self.weights = self.folder / "adapter/adapter_model.safetensors"
        (self.folder / "records").mkdir(parents=True)
        (self.folder / "records/03_load_model.json").write_text('{"base_bytes": 1}')

    def start(self, **environment: str) -> Launch:
        return Launch([*TRAIN, *self.options], self.project, **environment)

    def record(self) -> dict[str, Any]:
        return json.loads((self.folder / "records/04_train_lora.json").read_text())

    def checkpoints(self, *, sealed: bool) -> set[str]:
        folders = (self.folder / "checkpoints").glob("checkpoint-*")
        return {path.name for path in folders if manifest.is_complete(path) == sealed}

    def wait_for(self, checkpoint: str) -> bool:
        while checkpoint not in self.checkpoints(sealed=True):
            time.sleep(0.02)
        return True

    def says(self, text: str) -> bool:
        return any(text in path.read_text() for path in (self.folder / "notebooks").glob("04_train_lora*.ipynb"))


@pytest.fixture(scope="module")
def alone(project: Path) -> Training:
    """One process that nobody kills."""
    training = Training(project, "alone")
    training.start().succeed()
    return training


def test_a_kill_before_a_checkpoint_is_sealed_changes_nothing(alone: Training, tmp_path: Path) -> None:
    training = Training(alone.project, "killed")
    code, said = training.start(KILLED_BEFORE_SEALING="checkpoint-6").end()
    assert code == 1
    assert "Kernel died" in said
    assert training.checkpoints(sealed=False) == {"checkpoint-6"}
    assert not (training.folder / "adapter").exists()

    training.start(SEALED=str(tmp_path / "sealed")).succeed()
    sealed = (tmp_path / "sealed").read_text().split()
    assert sealed[:3] == ["checkpoint-6", "checkpoint-9", "checkpoint-10"], "the first updates are not made again"
    assert training.weights.read_bytes() == alone.weights.read_bytes()
    assert training.record()["global_step"] == UPDATES
    assert training.checkpoints(sealed=False) == set()


@pytest.mark.slow
@pytest.mark.timeout(4 * HANGING_S)
def test_kills_at_any_moment_change_nothing(alone: Training) -> None:
    """Some come just after a checkpoint was sealed, others while the next one's files are written."""
    chance, killed = random.Random(1), 0
    for number in range(6):
        training = Training(alone.project, f"killed-{number}")
        launch = training.start()
        sealed, while_writing = chance.choice([3, 6]), number % 2
        while not launch.is_over and f"checkpoint-{sealed}" not in training.checkpoints(sealed=True):
            time.sleep(0.0005)
        while not launch.is_over and while_writing and not training.checkpoints(sealed=False):
            time.sleep(0.0005)
        time.sleep(chance.uniform(0, 0.01))
        killed += not launch.is_over
        launch.kill()
        training.start().succeed()
        assert training.weights.read_bytes() == alone.weights.read_bytes(), f"after kill {number}"
        assert training.checkpoints(sealed=False) == set()
    assert killed >= 3, "most kills come before it is over"


@pytest.mark.slow
def test_a_kernel_that_is_interrupted_says_so_in_one_line_and_goes_on(
    alone: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in JupyterLab: the cell is interrupted while it trains, run again, and so are the cells below it."""
    training = Training(alone.project, "by-hand")
    notebook = nbformat.read(alone.project / "notebooks/04_train_lora.ipynb", as_version=4)
    given = 'profile, output_root, resume = "brief.toml", "by-hand", False'
    _, *sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    (trains,) = [place for place, source in enumerate(sources) if "trainer.train(" in source]
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as of the others: threads add up in another order
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(alone.project))
    try:
        for source in (given, *sources[:trains]):
            assert execute(client, source)[0] == "ok", source
        interrupting = Thread(target=lambda: training.wait_for("checkpoint-3") and manager.interrupt_kernel())
        interrupting.start()
        status, said = execute(client, sources[trains])
        interrupting.join()
        assert (status, len(said[-1].splitlines())) == ("error", 1)
        assert "stopped by hand; a training goes on from its last checkpoint" in said[-1]
        for source in sources[trains:]:
            status, said = execute(client, source)
            assert status == "ok", said
    finally:
        manager.shutdown_kernel(now=True)
    assert training.weights.read_bytes() == alone.weights.read_bytes()


def execute(client: Any, source: str) -> tuple[str, list[str]]:
    """Run a cell in a kernel; returns "ok" or "error", and the texts that a person sees."""
    said: list[str] = []

    def keep(message: dict[str, Any]) -> None:
        content = message["content"]
        if text := content.get("text") or "\n".join(content.get("traceback", [])):
            said.append(text)

    reply = client.execute_interactive(source, output_hook=keep, timeout=HANGING_S)
    return reply["content"]["status"], said


@pytest.fixture(scope="module")
def together(alone: Training) -> Training:
    training = Training(alone.project, "two-ranks")
    ranks(alone.project, *training.options).succeed()
    return training


def check_same_training(one: dict[str, Any], two: dict[str, Any]) -> None:
    """Two ranks share the rows out differently from one, and add up in another order."""
    for fixed in ("global_step", "effective_batch_size", "trainable_parameters"):
        assert two[fixed] == one[fixed]
    assert two["training_loss"] == pytest.approx(one["training_loss"], rel=0.02)


def test_two_ranks_train_what_one_does(alone: Training, together: Training) -> None:
    check_same_training(alone.record(), together.record())
    assert together.record()["world_size"] == 2
    assert {path.name for path in (together.folder / "notebooks").iterdir()} == {"04_train_lora.ipynb"}


@pytest.mark.slow
@pytest.mark.timeout(4 * HANGING_S)
def test_two_ranks_do_so_after_a_kill_and_on_two_machines(alone: Training, together: Training) -> None:
    killed, apart = (Training(alone.project, name) for name in ("ranks-killed", "two-machines"))
    launch = ranks(alone.project, *killed.options)
    while not launch.is_over and not killed.checkpoints(sealed=True):
        time.sleep(0.05)
    launch.find("ipykernel_launcher", 1).kill()
    code, said = launch.end()
    assert (code, "Kernel died" in said) == (1, True)
    ranks(alone.project, *killed.options).succeed()
    assert killed.says("going on from checkpoint-")

    for node in azure_ml(alone.project, *apart.options):
        node.succeed()
    for training in (killed, apart):
        assert_close(load_file(training.weights), load_file(together.weights))
        check_same_training(alone.record(), training.record())
