"""Training killed at any moment and run again gives the adapter of an undisturbed run, bit for bit on a CPU.

Notebook 04's own cells run in a process of their own, which is killed with SIGKILL: at a random moment of the training,
or while a checkpoint is being written.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
# The notebook up to the saved adapter, without its plots; says when training begins.
TRAINING = """
import json, sys
cells = json.loads(sys.stdin.read())
namespace = {}
for cell in cells:
    if "trainer.train(" in cell:
        print("training", flush=True)
    exec(cell, namespace)
    if "trainer.save_model(" in cell:
        break
print("saved", flush=True)
"""


class Training:
    """One run's folder, in which notebook 04 can be started, killed and run again.

    Args:
        project: the project's folder.
        cells: the code of notebook 04.
        profile: the path of a profile.
        output_root: where this run writes.
    """

    def __init__(self, project: Path, cells: list[str], profile: str, output_root: str) -> None:
        self.folder = project / output_root / Path(profile).stem
        self._project = project
        (self.folder / "records").mkdir(parents=True)
        (self.folder / "records/03_load_model.json").write_text('{"base_bytes": 1}')
        parameters = f"profile = {profile!r}\noutput_root = {output_root!r}\nresume = True"
        self._code = json.dumps([parameters, *(cell for cell in cells[1:] if "plots." not in cell)])

    def start(self) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-c", TRAINING],
            cwd=self._project,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        process.stdin.write(self._code)
        process.stdin.close()
        process.stdin = None  # or communicate() would want to flush it
        return process

    def run(self) -> str:
        process = self.start()
        printed, said = process.communicate(timeout=500)
        assert process.returncode == 0, said
        return printed

    def start_training(self) -> subprocess.Popen[str]:
        process = self.start()
        assert process.stdout is not None
        if not any(line.startswith("training") for line in process.stdout):
            raise AssertionError(process.communicate()[1])
        return process

    def adapter(self) -> str:
        return hashlib.sha256((self.folder / "adapter/adapter_model.safetensors").read_bytes()).hexdigest()

    def unsealed(self) -> list[Path]:
        found = self.folder.glob("checkpoints/checkpoint-*")
        return [folder for folder in found if not (folder / "manifest.json").exists()]


Factory = Callable[[str], Training]


@pytest.fixture(scope="module")
def make_training(tmp_path_factory: pytest.TempPathFactory, notebooks: Any) -> Callable[[str], Factory]:
    """Prepares a project with a profile; each call of what it returns gives a run of its own."""

    def prepare(profile: str) -> Factory:
        project = tmp_path_factory.mktemp("interruption")
        (project / "notebooks").mkdir()
        (project / "brief.toml").write_text(profile)
        return lambda name: Training(project, notebooks.cells("04_train_lora"), "brief.toml", name)

    return prepare


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def kill_at_random(training: Training, chance: random.Random, seconds: float) -> bool:
    """Kill it somewhere in the `seconds` that training takes; True if it was not over before."""
    process = training.start_training()
    time.sleep(chance.uniform(0, seconds))
    running = process.poll() is None
    kill(process)
    return running


def kill_while_writing(training: Training, chance: random.Random, checkpoint: int) -> None:
    """Kill it within milliseconds of the moment at which the folder of the n-th checkpoint appears."""
    process = training.start_training()
    seen: set[Path] = set()
    while len(seen) < checkpoint and process.poll() is None:
        seen.update(training.unsealed())
        time.sleep(0.0005)
    time.sleep(chance.uniform(0, 0.01))
    kill(process)


def check_kills(make: Factory, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    undisturbed = make("undisturbed")
    process = undisturbed.start_training()
    began = time.monotonic()
    _, said = process.communicate(timeout=500)
    assert process.returncode == 0, said
    seconds = time.monotonic() - began
    half_written = killed = 0
    for number in range(kills):
        training = make(f"killed-{number}")
        if number % 2:
            kill_while_writing(training, chance, checkpoint=1 + number // 2 % 3)
        else:
            killed += kill_at_random(training, chance, seconds)
        half_written += bool(training.unsealed())
        training.run()
        assert training.adapter() == undisturbed.adapter(), f"after kill {number}"
        assert training.unsealed() == []
    assert half_written >= kills // 5, "some kills fall into the writing of a checkpoint"
    assert killed, "some kills fall into the training"


def test_five_kills_change_nothing(make_training: Callable[[str], Factory]) -> None:
    """A brief training of thirteen updates with a checkpoint every three."""
    profile = 'extends = "tiny"\n[data]\nheld_out_share = 0.8\n[train]\ncheckpoint_steps = 3\n'
    check_kills(make_training(profile), kills=5, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_kills_change_nothing(make_training: Callable[[str], Factory]) -> None:
    """The whole training of the tiny profile."""
    check_kills(make_training('extends = "tiny"\n'), kills=20, seed=1)
