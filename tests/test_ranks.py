"""Training on several processes: on one machine and as on several; and what becomes of all when one is killed.

Notebook 04 runs as it is, but for its plots, on few rows. What needs no model runs with a small notebook in its place.
"""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import nbformat
import psutil
import pytest
from conftest import write_notebook
from safetensors.torch import load_file
from torch.testing import assert_close

from ftlib import manifest

ROOT = Path(__file__).parents[1]
MINUTE_S = 60.0
BRIEF = 'extends = "tiny"\n[data]\nheld_out_share = 0.8\n[train]\ncheckpoint_steps = 3\n'
FTLIB = [sys.executable, "-m", "ftlib.cli", "run", "04_train_lora"]
# Two ranks meet; then rank 1 may leave, and rank 0 waits for it.
MEETING = """
import os, torch.distributed as ranks
ranks.init_process_group("gloo")
ranks.barrier()
if ranks.get_rank() == 1 and os.environ.get("LEAVES"):
    os._exit(1)
ranks.barrier()
"""


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


LAUNCHED: list["Launch"] = []


@pytest.fixture(autouse=True)
def _leave_nobody_behind() -> Iterator[None]:
    """Also where a test fails."""
    yield
    while LAUNCHED:
        for process in LAUNCHED.pop().processes():
            process.kill()


@dataclass
class Launch:
    """A command with all the processes that it has started, also those that have outlived their parents."""

    command: list[str]
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._mark = {"FTLIB_TEST_LAUNCH": uuid4().hex}
        own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **self.environment, **self._mark}
        LAUNCHED.append(self)
        self._process = subprocess.Popen(
            self.command,
            cwd=self.folder,
            env=os.environ | own,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def processes(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            try:
                if process.environ().items() >= self._mark.items():
                    yield process
            except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
                continue

    def find(self, program: str, rank: int) -> psutil.Process | None:
        """The process of a rank that runs `ftlib.cli` or, once it has begun, `ipykernel_launcher`."""
        for process in self.processes():
            try:
                if process.environ().get("RANK") == str(rank) and program in process.cmdline():
                    return process
            except psutil.NoSuchProcess:
                continue
        return None

    @property
    def is_over(self) -> bool:
        return self._process.poll() is not None

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self, seconds: float = 300.0) -> tuple[int, str]:
        """Wait until it is over; returns its exit code and what it said of an error, once nobody is left."""
        latest = time.monotonic() + seconds
        said = self._process.communicate(timeout=seconds)[1]
        while left := [process.cmdline() for process in self.processes()]:
            assert time.monotonic() < latest, left
            time.sleep(0.1)
        return self._process.returncode, said

    def succeed(self) -> None:
        code, said = self.end()
        assert (code, said) == (0, "")


def ranks(folder: Path, *options: str, **environment: str) -> Launch:
    return Launch([*FTLIB, "--nproc", "2", *options], folder, environment)


def nodes(folder: Path, *options: str) -> list[Launch]:
    """Two machines of one rank each, both this one."""
    port = free_port()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    at = ["--master-addr=127.0.0.1", f"--master-port={port}"]
    run = ["-m", *FTLIB[2:], *options]
    return [Launch([*torchrun, *at, f"--node-rank={rank}", *run], folder) for rank in range(2)]


def azure_ml(*folders: Path, **environment: str) -> list[Launch]:
    """The command itself once a rank, on a machine with its folder each, told by the environment who it is."""
    shared = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [Launch(FTLIB, folder, {**shared, **environment, "RANK": str(rank)}) for rank, folder in enumerate(folders)]


@pytest.fixture(scope="module")
def training_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after notebook 03, with a brief profile."""
    root = tmp_path_factory.mktemp("ranks") / "project"
    (root / "notebooks").mkdir(parents=True)
    notebook = nbformat.read(ROOT / "notebooks/04_train_lora.ipynb", as_version=4)
    notebook.cells = [cell for cell in notebook.cells if "plots." not in cell.source]
    nbformat.write(notebook, root / "notebooks/04_train_lora.ipynb")
    (root / "brief.toml").write_text(BRIEF)
    return root


@dataclass(frozen=True)
class Training:
    """One run of a profile in a project."""

    project: Path
    profile: str
    output_root: str

    def __post_init__(self) -> None:
        (self.folder / "records").mkdir(parents=True)
        (self.folder / "records/03_load_model.json").write_text('{"base_bytes": 1}')

    @property
    def folder(self) -> Path:
        return self.project / self.output_root / Path(self.profile).stem

    @property
    def options(self) -> list[str]:
        return ["--profile", self.profile, "--output-root", self.output_root]

    def record(self) -> dict[str, Any]:
        return json.loads((self.folder / "records/04_train_lora.json").read_text())

    def adapter(self) -> dict[str, Any]:
        return load_file(self.folder / "adapter/adapter_model.safetensors")

    def notebooks(self) -> set[str]:
        return {path.name for path in (self.folder / "notebooks").iterdir()}

    def sealed(self) -> list[int]:
        folders = (self.folder / "checkpoints").glob("checkpoint-*")
        return sorted(int(path.name.rpartition("-")[2]) for path in folders if manifest.is_complete(path))

    def has_begun(self) -> bool:
        """Whether the trainer is being made, or more."""
        kept = self.folder / "notebooks/04_train_lora.unfinished.ipynb"
        try:
            return re.search("starting at the first update|going on from checkpoint", kept.read_text()) is not None
        except FileNotFoundError:
            return False


@dataclass(frozen=True)
class Undisturbed:
    """Two ranks that nobody kills."""

    training: Training
    seconds: float


def undisturbed_of(project: Path, profile: str) -> Undisturbed:
    training, began = Training(project, profile, "two-ranks"), time.monotonic()
    ranks(project, *training.options).succeed()
    return Undisturbed(training, time.monotonic() - began)


@pytest.fixture(scope="module")
def undisturbed(training_project: Path) -> Undisturbed:
    return undisturbed_of(training_project, "brief.toml")


def test_two_nodes_train_what_two_ranks_do(training_project: Path, undisturbed: Undisturbed) -> None:
    training = Training(training_project, "brief.toml", "two-nodes")
    for node in nodes(training_project, *training.options):
        node.succeed()
    both = [training.record(), undisturbed.training.record()]
    assert [(record["world_size"], record["global_step"], record["effective_batch"]) for record in both] == [
        (2, 11, 16)
    ] * 2
    assert_close(training.adapter(), undisturbed.training.adapter())
    for each in (training, undisturbed.training):
        assert each.notebooks() == {"04_train_lora.ipynb"}, "rank 0 alone keeps what went well"
        assert {path.name for path in each.folder.iterdir()} == {
            "adapter", "checkpoints", "huggingface", "notebooks", "profile.json", "records", "trackio", "training.lock",
        }  # fmt: skip


def kill_at_random(training: Training, chance: random.Random, program: str, rank: int, seconds: float | None) -> bool:
    """Kill one rank, or its kernel, within so many seconds of the start, or else of training; True if all ended so."""
    launch = ranks(training.project, *training.options)
    if seconds is None:
        while not training.has_begun() and not launch.is_over:
            time.sleep(0.05)
    time.sleep(chance.uniform(0, seconds or 2.0))
    while (victim := launch.find(program, rank)) is None and not launch.is_over:
        time.sleep(0.05)
    if victim is None:
        launch.succeed()
        return False
    victim.kill()
    code, said = launch.end(MINUTE_S)
    if not code:  # it had just done its work
        return False
    own = "04_train_lora" if rank == 0 else "04_train_lora.rank1"
    ended = rf"rank {rank} was ended by SIGKILL .*" if program == "ftlib.cli" else rf".*Kernel died.*/{own}\.unfin.*"
    assert (code, said.count("\n")) == (1, 1)
    assert re.fullmatch(f"error: {ended}\n", said), said
    return True


def check_end(training: Training, undisturbed: Undisturbed) -> None:
    sealed = training.sealed()
    ranks(training.project, *training.options).succeed()
    text = (training.folder / "notebooks/04_train_lora.ipynb").read_text()
    assert (f"going on from checkpoint-{sealed[-1]}" if sealed else "starting at the first update") in text
    assert training.record()["global_step"] == undisturbed.training.record()["global_step"]
    assert_close(training.adapter(), undisturbed.training.adapter())
    assert training.notebooks() == {"04_train_lora.ipynb"}


VICTIMS = [("ftlib.cli", 1), ("ipykernel_launcher", 1), ("ftlib.cli", 0), ("ipykernel_launcher", 0), ("ftlib.cli", 1)]


def test_five_times_a_rank_is_killed_and_the_next_sitting_goes_on(undisturbed: Undisturbed) -> None:
    """One training in six sittings: a rank is killed at any moment, or after training has begun, in turn."""
    chance = random.Random(0)
    training = Training(undisturbed.training.project, "brief.toml", "killed")
    killed, sealed = 0, [0]
    for number, victim in enumerate(VICTIMS):
        within = None if number % 2 else undisturbed.seconds
        killed += kill_at_random(training, chance, *victim, within)
        assert (training.sealed() or [0])[-1] >= sealed[-1], "what was sealed stays"
        sealed = training.sealed() or [0]
    assert killed >= 3, "most kills come before it is over"
    check_end(training, undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_after_each_of_five_kills_the_next_sitting_comes_to_the_end(training_project: Path) -> None:
    """The whole training of the tiny profile; and two nodes, and one process, do the same work."""
    undisturbed, chance = undisturbed_of(training_project, "tiny"), random.Random(1)
    for number, victim in enumerate(VICTIMS):
        training = Training(training_project, "tiny", f"killed-{number}")
        kill_at_random(training, chance, *victim, undisturbed.seconds)
        check_end(training, undisturbed)
    alone, apart = (Training(training_project, "tiny", name) for name in ("one-process", "two-nodes"))
    Launch([*FTLIB, *alone.options], training_project).succeed()
    for node in nodes(training_project, *apart.options):
        node.succeed()
    records = [each.record() for each in (alone, apart, undisturbed.training)]
    assert [(record["global_step"], record["effective_batch"]) for record in records] == [(63, 16)] * 3
    losses = [record["training_loss"] for record in records]
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=0.02)


def test_azure_ml_starts_a_rank_at_a_time(project: Path) -> None:
    write_notebook(project, "04_train_lora", MEETING)
    for rank in azure_ml(project, project):
        rank.succeed()
    assert [path.name for path in (project / "outputs/tiny/notebooks").iterdir()] == ["04_train_lora.ipynb"]


def test_without_anyone_to_end_it_a_rank_ends_when_another_is_lost(project: Path) -> None:
    write_notebook(project, "04_train_lora", MEETING)
    (code, said), (other_code, other_said) = (rank.end(MINUTE_S) for rank in azure_ml(project, project, LEAVES="1"))
    assert (code, other_code) == (1, 1)
    assert re.search(r"cell \[3\] .*: lost the connection to another rank, whose own error says why \(Runtime", said)
    assert said.count("\n") == 1
    assert "Kernel died" in other_said


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_ranks_do_not_outlive_who_started_them(project: Path, number: signal.Signals) -> None:
    write_notebook(
        project, "04_train_lora", "import os\nopen('begun' + os.environ['RANK'], 'w').close()\nwhile True: 1"
    )
    launch = ranks(project)
    while not all((project / f"begun{rank}").exists() for rank in range(2)):
        assert not launch.is_over
        time.sleep(0.05)
    launch.send(number)
    code, said = launch.end(MINUTE_S)
    if number == signal.SIGTERM:
        assert (code, said) == (1, "error: stopped by SIGTERM; run it again to go on from the last checkpoint\n")


# As notebook 04 comes to the point from which training would go on.
LOOKING_FOR_A_CHECKPOINT = """
from ftlib import start
session = start(profile, output_root)
import torch.distributed as ranks
from datasets import Dataset
from ftlib import checkpoints
ranks.init_process_group("gloo")
checkpoints.last_complete(session, Dataset.from_list([{"messages": []}]), resume)
"""


def test_machines_that_share_no_folder_are_refused(tmp_path: Path) -> None:
    folders = [tmp_path / "machine-0", tmp_path / "machine-1"]
    for folder in folders:
        (folder / "notebooks").mkdir(parents=True)
        write_notebook(folder, "04_train_lora", LOOKING_FOR_A_CHECKPOINT)
    for launch in azure_ml(*folders):
        code, said = launch.end(MINUTE_S)
        assert code == 1
        assert "rank 1 does not see what rank 0 writes to outputs/tiny/; mount one folder on all machines" in said
    assert not list(tmp_path.glob("*/outputs/tiny/rank-0*"))
