"""Training killed at any moment and run again gives the adapter of an undisturbed run, on one process and on two.

Notebook 04 runs as it is, but for its plots, and for ten updates.
"""

import hashlib
import json
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest
from helpers import HANGING_S, ROOT
from helpers.launching import TRAIN, Launch, kill_all, nodes, ranks
from safetensors.torch import load_file
from torch.testing import assert_close

from ftlib.session import manifest

UPDATES = 10
BRIEF = 'extends = "tiny"\n[data]\nheld_out_share = 0.82\n[train]\nsave_steps = 3\n'
# Notes what is sealed, and ends the kernel just before a checkpoint is.
WATCH = """
import os, signal
from ftlib import manifest

def write(folder, names, seal=manifest.write):
    if folder.name == os.environ.get("KILLED_BEFORE_SEALING"):
        os.kill(os.getpid(), signal.SIGKILL)
    seal(folder, names)
    with open(os.environ.get("SEALED", os.devnull), "a") as sealed:
        print(folder.name, file=sealed)

manifest.write = write
"""


@pytest.fixture(autouse=True)
def _leave_nobody_behind() -> Iterator[None]:
    yield
    kill_all()


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


@dataclass(frozen=True)
class Training:
    """One run of a profile in a project, in one sitting or in several."""

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

    def start(self, **environment: str) -> Launch:
        return Launch([*TRAIN, *self.options], self.project, environment)

    def start_ranks(self) -> Launch:
        return ranks(self.project, *self.options)

    def record(self) -> dict[str, Any]:
        return json.loads((self.folder / "records/04_train_lora.json").read_text())

    def weights(self) -> dict[str, Any]:
        return load_file(self.folder / "adapter/adapter_model.safetensors")

    def checksum(self) -> str:
        return hashlib.sha256((self.folder / "adapter/adapter_model.safetensors").read_bytes()).hexdigest()

    def notebooks(self) -> set[str]:
        return {path.name for path in (self.folder / "notebooks").iterdir()}

    def checkpoints(self, *, sealed: bool) -> list[str]:
        """By name, the earliest first."""
        folders = (self.folder / "checkpoints").glob("checkpoint-*")
        found = [path.name for path in folders if manifest.is_complete(path) == sealed]
        return sorted(found, key=lambda name: int(name.rpartition("-")[2]))

    def has_begun(self) -> bool:
        """Whether the trainer is being made, or more."""
        return self.says("starting at the first update") or self.says("going on from checkpoint")

    def says(self, text: str) -> bool:
        kept = self.folder / "notebooks"
        return any(text in path.read_text() for path in kept.glob("04_train_lora*.ipynb"))


@pytest.fixture(scope="module")
def alone(project: Path) -> Training:
    """One process that nobody kills."""
    training = Training(project, "brief.toml", "alone")
    training.start().succeed()
    return training


def test_a_kill_before_a_checkpoint_is_sealed_changes_nothing(alone: Training, tmp_path: Path) -> None:
    training = Training(alone.project, "brief.toml", "killed")
    code, said = training.start(KILLED_BEFORE_SEALING="checkpoint-6").end()
    assert code == 1
    assert "Kernel died" in said
    assert training.checkpoints(sealed=False) == ["checkpoint-6"]
    assert not (training.folder / "adapter").exists()

    training.start(SEALED=str(tmp_path / "sealed")).succeed()
    assert training.says("going on from checkpoint-3")
    sealed = (tmp_path / "sealed").read_text().split()
    assert sealed[:3] == ["checkpoint-6", "checkpoint-9", "checkpoint-10"], "the first updates are not made again"
    assert training.checksum() == alone.checksum(), "the same adapter, to the last bit"
    assert training.record()["global_step"] == UPDATES
    assert training.checkpoints(sealed=False) == []
    assert training.notebooks() == {"04_train_lora.ipynb"}


def test_two_ranks_train_what_one_process_does(alone: Training) -> None:
    training = Training(alone.project, "brief.toml", "two-ranks")
    training.start_ranks().succeed()
    check_same(training, alone)
    assert training.record()["world_size"] == 2
    assert training.notebooks() == {"04_train_lora.ipynb"}, "rank 0 alone keeps what went well"
    assert {path.name for path in training.folder.iterdir()} == {
        "adapter", "checkpoints", "huggingface", "notebooks", "profile.json", "records", "trackio", "training.lock",
    }  # fmt: skip


def check_same(training: Training, other: Training) -> None:
    """Another number of processes shares the same rows out, and adds up in another order."""
    measured = [each.record() for each in (training, other)]
    for fixed in ("global_step", "effective_batch_size", "trainable_parameters"):
        assert len({record[fixed] for record in measured}) == 1
    assert measured[0]["training_loss"] == pytest.approx(measured[1]["training_loss"], rel=0.02)


# The rest is slow


def wait_until(happened: Callable[[], bool], launch: Launch, every_s: float = 0.05) -> None:
    while not happened() and not launch.is_over:
        time.sleep(every_s)


def kill_at_random(training: Training, chance: random.Random, seconds: float) -> bool:
    """Kill it somewhere in the `seconds` that training takes; True if it was not over before."""
    launch = training.start()
    wait_until(training.has_begun, launch)
    time.sleep(chance.uniform(0, seconds))
    running = not launch.is_over
    launch.kill()
    return running


def kill_while_writing(training: Training, chance: random.Random, checkpoint: int) -> bool:
    """Kill it within milliseconds of the moment at which the folder of the n-th checkpoint appears."""
    launch, seen = training.start(), set[str]()

    def appeared() -> bool:
        seen.update(training.checkpoints(sealed=False))
        return len(seen) >= checkpoint

    wait_until(appeared, launch, every_s=0.0005)
    time.sleep(chance.uniform(0, 0.01))
    running = not launch.is_over
    launch.kill()
    return running


@pytest.mark.slow
@pytest.mark.timeout(8 * HANGING_S)
def test_twenty_kills_change_nothing(project: Path) -> None:
    chance = random.Random(1)
    undisturbed = Training(project, "brief.toml", "twenty-undisturbed")
    launch = undisturbed.start()
    wait_until(undisturbed.has_begun, launch)
    began = time.monotonic()
    launch.succeed()
    seconds = time.monotonic() - began
    half_written = killed = 0
    for number in range(20):
        training = Training(project, "brief.toml", f"killed-{number}")
        if number % 2:
            killed += kill_while_writing(training, chance, checkpoint=1 + number // 2 % 3)
        else:
            killed += kill_at_random(training, chance, seconds)
        half_written += bool(training.checkpoints(sealed=False))
        training.start().succeed()
        assert training.checksum() == undisturbed.checksum(), f"after kill {number}"
        assert training.checkpoints(sealed=False) == []
    assert half_written >= 4, "some kills fall into the writing of a checkpoint"
    assert killed >= 10, "most kills come before it is over"


VICTIMS = [("ftlib.cli", 1), ("ipykernel_launcher", 1), ("ftlib.cli", 0), ("ipykernel_launcher", 0), ("ftlib.cli", 1)]


def kill_a_rank(training: Training, victim: tuple[str, int], happened: Callable[[], bool], pause_s: float) -> bool:
    """Kill one rank, or its kernel, some time after something has happened; True if all ended because of it."""
    launch = training.start_ranks()
    wait_until(happened, launch)
    time.sleep(pause_s)
    wait_until(lambda: launch.find(*victim) is not None, launch)
    found = launch.find(*victim)
    if found is None:
        launch.succeed()
        return False
    found.kill()
    code, said = launch.end()
    if not code:  # it had just done its work
        return False
    program, rank = victim
    own = "04_train_lora" if rank == 0 else "04_train_lora.rank1"
    ended = rf"rank {rank} was ended by SIGKILL .*" if program == "ftlib.cli" else rf".*Kernel died.*/{own}\.unfin.*"
    assert code == 1
    assert re.fullmatch(f"error: {ended}\n", said), said
    return True


def run_to_the_end(training: Training, undisturbed: Training) -> None:
    sealed = training.checkpoints(sealed=True)
    training.start_ranks().succeed()
    assert training.says(f"going on from {sealed[-1]}" if sealed else "starting at the first update")
    assert training.record()["global_step"] == undisturbed.record()["global_step"]
    assert_close(training.weights(), undisturbed.weights())
    assert training.notebooks() == {"04_train_lora.ipynb"}


@pytest.mark.slow
@pytest.mark.timeout(4 * HANGING_S)
def test_five_times_a_rank_is_killed_and_the_next_sitting_goes_on(project: Path) -> None:
    """One training in six sittings, each killed at the start, or once training has begun, in turn; and on two nodes."""
    chance, killed, latest = random.Random(0), 0, 0
    undisturbed, training, apart = (
        Training(project, "brief.toml", name) for name in ("two-ranks-undisturbed", "two-ranks-killed", "two-nodes")
    )
    undisturbed.start_ranks().succeed()
    for number, victim in enumerate(VICTIMS):
        happened = training.has_begun if number % 2 else lambda: True
        killed += kill_a_rank(training, victim, happened, chance.uniform(0, 5))
        sealed = [int(name.rpartition("-")[2]) for name in training.checkpoints(sealed=True)]
        assert max(sealed, default=0) >= latest, "what was sealed stays"
        latest = max(sealed, default=0)
    assert killed >= 3, "most kills come before it is over"
    run_to_the_end(training, undisturbed)
    for node in nodes(project, *apart.options):
        node.succeed()
    check_same(apart, undisturbed)
    assert_close(apart.weights(), undisturbed.weights())


@pytest.mark.slow
def test_two_ranks_train_all_of_tiny_as_one_process_does(project: Path) -> None:
    alone, together = (Training(project, "tiny", name) for name in ("tiny-alone", "tiny-two-ranks"))
    alone.start().succeed()
    together.start_ranks().succeed()
    check_same(together, alone)
    assert together.record()["global_step"] == 63
